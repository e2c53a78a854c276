"""The results of jobs that were submitted together, fetched together.

Whoever submits a thousand jobs reads their results one after the other. One look at the next hundred costs a broker
little more than one at the first of them. A look waits for nothing, and tells no more than the broker said: who finds
nothing here asks for its own job alone, and waits as long as it likes.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from taskflow.errors import BrokerError, JobNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskflow.brokers.base import Broker, Final

_FIRST, _MOST = 10, 100  # jobs in one look
_LARGE = 1_048_576  # bytes of results; a look that brought more is followed by a smaller one
_MOST_REST = 64  # jobs that are asked for alone after looks that were in vain
_result = attrgetter("result")  # runs in C, as all of a look that is done for each job


class Results:
    """Those of `ids`, for handles that are read in this order. Others cost a look in vain now and then."""

    __slots__ = ("_at", "_ids", "_is_looking", "_pause", "_rest", "_width", "known")

    def __init__(self, ids: Sequence[str]) -> None:
        # What the last look found, until it is read: each once, and none for longer than until the next look.
        self.known: dict[str, Final] = {}
        self._ids = ids
        self._at = 0  # the place of the job that was last looked for
        self._width = _FIRST
        # Jobs to ask for alone before the next look: of the first, none is final as a rule.
        self._rest = self._pause = 1
        self._is_looking = False

    async def look(self, broker: Broker, job_id: str) -> Final | None:
        """How the job ended, if this is the time for a look, and it is final. Keeps what else it found."""
        if self._is_looking:  # one of many that wait at once: each goes alone, as they would all ask for the same
            return None
        if self._rest:
            self._rest -= 1
            return None
        try:
            at = self._at = self._ids.index(job_id, self._at, self._at + 2 * _MOST)
        except ValueError:  # read in another order
            self._look_later()
            return None
        self._is_looking = True
        try:
            found = await broker.finals(self._ids[at : at + self._width], 0.0)
        except (BrokerError, JobNotFound):  # it is heard by whoever asks for the one job
            found = {}
        finally:
            self._is_looking = False
        if found:
            self._pause = 1
            size = sum(map(len, filter(None, map(_result, found.values()))))
            self._width = max(1, self._width // 2) if size > _LARGE else min(_MOST, self._width * 2)
        else:
            self._look_later()
        final = found.pop(job_id, None)
        self.known = found
        return final

    def _look_later(self) -> None:
        self._rest = self._pause = min(_MOST_REST, self._pause * 2)
