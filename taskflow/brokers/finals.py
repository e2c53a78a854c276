"""How jobs ended, asked and waited for by many at once: they share the questions, and the look behind the wake-ups."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING

from taskflow.brokers.waiting import closed_meanwhile, fail, not_kept, settled
from taskflow.core.backoff import Pauses
from taskflow.errors import BrokerError, BrokerUnavailable, ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from taskflow.brokers.base import Final
    from taskflow.brokers.waiting import Awaited

LAST_LOOK_S = 2.0  # for the answer, at least: a wait that is over looks once more, as a word may have got lost
_GAP_S = 0.05  # between two looks, however many jobs end
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.25, 2.0  # between two that fail: how late an end is heard of after an outage
_AT_ONCE = 500  # ids of one question


class Look:
    """One slow look for all who wait for jobs to end, while somebody does; and at once when nobody said which did.

    `ended` answers those of some ids for which there is nothing to wait any more.
    """

    def __init__(self, awaited: Awaited, ended: Callable[[list[str]], Awaitable[Iterable[str]]]) -> None:
        self._awaited, self._ended = awaited, ended
        self._hint = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    def begin(self, listen: Callable[[], Awaitable[float]]) -> None:
        """Look, unless it does already. `listen` lets us be told, and gives the seconds until the next look."""
        if not self._is_closed and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._look(listen), name="taskflow-finals-look")

    def at_once(self) -> None:
        """Jobs may have ended, whichever."""
        self._hint.set()

    async def _look(self, listen: Callable[[], Awaitable[float]]) -> None:
        pauses = Pauses(_FIRST_PAUSE_S, _MOST_PAUSE_S, random.random)
        try:
            while self._awaited:
                try:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(await listen()):
                            await self._hint.wait()
                    self._hint.clear()
                    ended = await self._ended(list(self._awaited))
                except (BrokerError, ConfigError):  # an outage, a password that is being changed: waited out
                    await asyncio.sleep(pauses.next_s())
                else:
                    pauses.reset()
                    self._awaited.tell(ended)
                    await asyncio.sleep(_GAP_S)
        finally:  # with nobody who looks for them, those who wait look themselves
            self._awaited.tell_all()

    async def close(self) -> None:
        """Whoever waits is woken. Nothing begins anew."""
        self._is_closed = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))


class Question:
    """What will be asked next."""

    def __init__(self) -> None:
        self.job_ids: dict[str, None] = {}
        self.wait_s = 0.0
        self.answer: asyncio.Future[dict[str, Final | None]] = asyncio.get_running_loop().create_future()


class FinalsReader:
    """Reads the ends of jobs, by `ask`: some ids, and for how many seconds the rest is waited for."""

    def __init__(self, ask: Callable[[list[str], float], Awaitable[dict[str, Final | None]]], where: str) -> None:
        self._ask_server, self._where = ask, where
        self._next: Question | None = None
        self._task: asyncio.Task[None] | None = None

    async def read(self, job_ids: Sequence[str], left_s: float | None) -> dict[str, Final]:
        """Those that are final. The rest is waited for `left_s` more; None: nobody waits.

        Raises `JobNotFound` when none is kept, `BrokerUnavailable` when there is no answer in `left_s` (nor within
        LAST_LOOK_S), and what `ask` raises.
        """
        if self._next is None:
            self._next = Question()
        question = self._next
        question.job_ids.update(dict.fromkeys(job_ids))
        question.wait_s = max(question.wait_s, left_s or 0.0)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._ask(), name="taskflow-finals")
        if left_s is not None and not await settled(question.answer, max(LAST_LOOK_S, left_s)):
            raise BrokerUnavailable(
                f"{self._where} did not answer in time: whether the jobs have ended is not known",
                retry_after_s=1.0,
                kind="timeout",
            )
        found = await asyncio.shield(question.answer)
        kept = [(job_id, found[job_id]) for job_id in job_ids if job_id in found]
        if not kept:
            raise not_kept(job_ids)
        return {job_id: final for job_id, final in kept if final is not None}

    async def _ask(self) -> None:
        while (question := self._next) is not None:
            self._next = None
            try:
                answer = await self._answered([*question.job_ids], question.wait_s)
            except asyncio.CancelledError:
                fail(question.answer, closed_meanwhile(self._where))
                raise
            except Exception as error:  # noqa: BLE001 - it is raised where it was asked
                fail(question.answer, error)
            else:
                question.answer.set_result(answer)

    async def _answered(self, job_ids: list[str], wait_s: float) -> dict[str, Final | None]:
        found: dict[str, Final | None] = {}
        for at in range(0, len(job_ids), _AT_ONCE):
            found |= await self._ask_server(job_ids[at : at + _AT_ONCE], wait_s)
        return found

    async def close(self) -> None:
        """Whoever asks is told that it was closed."""
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait((task,))
        question, self._next = self._next, None
        if question is not None:
            fail(question.answer, closed_meanwhile(self._where))
