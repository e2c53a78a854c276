"""How jobs ended, asked for by many at once: whoever asks while a question is under way shares the next one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from taskflow.brokers.redis import wire
from taskflow.brokers.waiting import closed_meanwhile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskflow.brokers.base import Final
    from taskflow.brokers.redis.link import Link

_AT_ONCE = 500  # ids of one question


class Question:
    """What will be asked next."""

    def __init__(self) -> None:
        self.job_ids: dict[str, None] = {}
        self.wait_s = 0.0
        self.answer: asyncio.Future[dict[str, Final | None]] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        self.answer.set_exception(error)
        self.answer.exception()  # whoever asked may be gone: asyncio need not tell


class FinalsReader:
    """Reads the ends of jobs, and registers who waits for them."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._next: Question | None = None
        self._task: asyncio.Task[None] | None = None

    async def read(self, job_ids: Sequence[str], wait_s: float) -> dict[str, Final | None]:
        """Of those that are kept: how each ended, or None. Ends within `wait_s` are told on the channel."""
        if self._next is None:
            self._next = Question()
        question = self._next
        question.job_ids.update(dict.fromkeys(job_ids))
        question.wait_s = max(question.wait_s, wait_s)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._ask(), name="taskflow-redis-finals")
        found = await asyncio.shield(question.answer)
        return {job_id: found[job_id] for job_id in job_ids if job_id in found}

    async def _ask(self) -> None:
        while (question := self._next) is not None:
            self._next = None
            try:
                answer = await self._answered([*question.job_ids], question.wait_s)
            except asyncio.CancelledError:
                question.fail(closed_meanwhile(self._link.where))
                raise
            except Exception as error:  # noqa: BLE001 - it is raised where it was asked
                question.fail(error)
            else:
                question.answer.set_result(answer)

    async def _answered(self, job_ids: list[str], wait_s: float) -> dict[str, Final | None]:
        found: dict[str, Final | None] = {}
        for at in range(0, len(job_ids), _AT_ONCE):
            some = job_ids[at : at + _AT_ONCE]
            found |= wire.finals(some, await self._link.run("finals", wire.text(some), repr(wait_s)))
        return found

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait((task,))
        question, self._next = self._next, None
        if question is not None:
            question.fail(closed_meanwhile(self._link.where))
