"""One job's walk through a worker: read → admit → run under its time limit → outcome → decision → settle.

Admission comes before the attempt is counted: a job whose deadline has passed, that a person cancelled, whose breaker
is open or whose task is unknown here has not been attempted.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskflow.core import events
from taskflow.core.backoff import exponential
from taskflow.core.decision import decide
from taskflow.core.gate import family
from taskflow.core.outcome import Interrupted, Outcome, Rejected
from taskflow.core.specs import Retry
from taskflow.errors import PayloadError
from taskflow.runtime import outcomes
from taskflow.runtime.codec import Envelope, NewerEnvelope
from taskflow.runtime.control import Snooze
from taskflow.runtime.current import CurrentJob
from taskflow.runtime.settle import Ended, GateHold, Settler
from taskflow.runtime.slot import CANCELLED, TIMEOUT, Slot, Stopped
from taskflow.telemetry.context import job_context

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from taskflow.brokers.base import Broker
    from taskflow.clock import Clock
    from taskflow.core.job import Claim
    from taskflow.runtime.breakers import Admitted, Breakers
    from taskflow.runtime.leases import Leases
    from taskflow.runtime.task import TaskDef
    from taskflow.runtime.threads import ThreadSlots
    from taskflow.settings import Settings, TaskPolicy

_UNKNOWN_FIRST_S, _UNKNOWN_MOST_S = 5.0, 300.0
_NO_THREAD_S = 5.0
_NO_POLICY = Retry()  # a job that cannot even be read is never retried, whatever this says


@dataclass(slots=True, eq=False)
class Running:
    """A handler that runs now."""

    slot: Slot
    claim: Claim
    started_at: float


@dataclass(slots=True, eq=False)
class Ticket:
    """A claim on its walk. `at` is when it came here (this worker's clock)."""

    claim: Claim
    at: float
    correlation_id: str
    policy: TaskPolicy | None = None
    hold: GateHold | None = None


class Attempts:
    """Makes attempts for one worker; `running` is what it is at."""

    def __init__(
        self,
        *,
        broker: Broker,
        tasks: Mapping[str, TaskDef],
        settings: Settings,
        clock: Clock,
        rng: random.Random,
        emit: Callable[[events.Event], None],
        leases: Leases,
        settler: Settler,
        breakers: Breakers,
        threads: ThreadSlots,
    ) -> None:
        self._broker = broker
        self._tasks = tasks
        self._settings = settings
        self._max_result_bytes = settings.retention.result_max_bytes
        self._clock = clock
        self._rng = rng
        self._emit = emit
        self._leases = leases
        self._settler = settler
        self._breakers = breakers
        self._threads = threads
        self.running: dict[str, Running] = {}
        self.cancelled: set[str] = set()  # asked to cancel before they started
        self.ended = 0

    async def make(self, slot: Slot, claim: Claim, at: float) -> None:
        """Make one attempt, and leave what came of it to the settler. Raises only if the slot itself is cancelled."""
        if not self._leases.holds(claim.job_id, claim.token):
            return  # lost while it waited here
        ticket = Ticket(claim, at, claim.job_id)
        task = self._tasks.get(claim.task)
        if task is None:
            self._end(ticket, self._unknown(claim))
            return
        try:
            envelope = task.codec.load(claim.payload)
            ticket.policy = policy = task.policy(self._settings, envelope.options)
        except NewerEnvelope:
            self._end(ticket, self._unknown(claim))
            return
        except PayloadError as error:
            self._end(ticket, outcomes.invalid(error))
            return
        if envelope.correlation_id is not None:
            ticket.correlation_id = envelope.correlation_id
        if (early := self._early(claim, at)) is not None:
            self._end(ticket, early)
            return
        admitted = self._breakers.admit(claim, policy)
        if isinstance(admitted, Rejected):
            self._end(ticket, admitted)
            return
        if task.is_async:
            await self._run(slot, task, ticket, policy, envelope, admitted)
        elif (denied := await self._take_thread(slot)) is not None:
            self._breakers.report(admitted, None, 0.0)
            self._end(ticket, denied)
        else:
            await self._run(slot, task, ticket, policy, envelope, admitted)

    def _unknown(self, claim: Claim) -> Outcome:
        """A task that this process does not know waits for the deploy that does, ever longer."""
        wait_s = exponential(claim.snoozes + 1, base_s=_UNKNOWN_FIRST_S, factor=2, cap_s=_UNKNOWN_MOST_S)
        self._emit(events.TaskUnknown(claim.job_id, claim.task, claim.queue, wait_s))
        return Rejected("unknown_task", wait_s)

    def _early(self, claim: Claim, at: float) -> Outcome | None:
        """Why this claim need not start at all."""
        if claim.job_id in self.cancelled:
            self.cancelled.discard(claim.job_id)
            return Interrupted(cancelled=True)
        if claim.expires_in_s <= self._clock.now() - at:
            return outcomes.overdue(claim.expire_reason)
        return None

    async def _take_thread(self, slot: Slot) -> Outcome | None:
        """Take a thread for a sync handler; or why there is none: all are held by handlers that were given up on."""
        if self._threads.taken < self._threads.limit:
            await self._threads.take()
            return None
        slot.start_clock(self._clock.now() + _NO_THREAD_S)
        try:
            await slot.run(self._threads.take)
        except Stopped as stopped:
            if stopped.why == TIMEOUT:
                return Rejected("threads_busy", _NO_THREAD_S * (1 + self._rng.random()))
            return Interrupted(cancelled=stopped.why == CANCELLED)
        return None

    async def _run(
        self, slot: Slot, task: TaskDef, ticket: Ticket, policy: TaskPolicy, envelope: Envelope, admitted: Admitted, /
    ) -> None:
        claim, clock = ticket.claim, self._clock
        started_at = clock.now()
        deadline_at = started_at + policy.timeout_s
        if claim.expire_reason == "deadline":  # the longest wait, on the other hand, is over once the job runs
            deadline_at = min(deadline_at, ticket.at + claim.expires_in_s)
        job = CurrentJob(claim, self._broker, clock, ticket.correlation_id, envelope.traceparent, deadline_at)
        self.running[claim.job_id] = Running(slot, claim, started_at)
        self._leases.limit(claim.job_id, claim.token, deadline_at)
        before = job_context.set(job)
        self._emit(events.AttemptStarted(claim, ticket.correlation_id))
        thread: asyncio.Future[Any] | None = None
        args, kwargs = task.codec.call_args(envelope.args)
        try:
            slot.start_clock(deadline_at)
            if task.is_async:
                result = await slot.run(lambda: task.fn(*args, **kwargs))
            else:
                thread = self._threads.start(lambda: task.fn(*args, **kwargs))
                result = await slot.run(lambda: _join(thread))
            outcome = outcomes.succeeded(task, result, max_bytes=self._max_result_bytes)
        except Stopped as stopped:
            outcome = self._stopped(ticket, stopped.why, policy)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is an outcome
            outcome = outcomes.failed(error, covers=policy.retry.covers)
            if isinstance(error, Snooze) and error.hold is not None:
                ticket.hold = _hold(claim, error)
        finally:
            job_context.reset(before)
            del self.running[claim.job_id]
        run_s = clock.now() - started_at
        if (opened := self._breakers.report(admitted, outcome, run_s)) is not None:
            ticket.hold = GateHold(admitted.gate, opened.for_s, opened.reason)
        error_record = getattr(outcome, "error", None)
        self._emit(events.AttemptEnded(claim, ticket.correlation_id, outcomes.label(outcome), run_s, error_record))
        self._end(ticket, outcome)
        if thread is not None:
            await self._let_go(thread, claim)

    def _stopped(self, ticket: Ticket, why: str, policy: TaskPolicy) -> Outcome:
        claim = ticket.claim
        is_late = claim.expire_reason == "deadline" and claim.expires_in_s <= self._clock.now() - ticket.at
        if why == TIMEOUT and is_late:
            return outcomes.overdue(claim.expire_reason)
        return outcomes.stopped(why, timeout_s=policy.timeout_s)

    async def _let_go(self, thread: asyncio.Future[Any], claim: Claim) -> None:
        """Give the thread's slot back when it has really ended. Until then this slot keeps its place."""
        if not thread.done():
            self._threads.abandoned += 1
            self._emit(events.ThreadAbandoned(claim.job_id, claim.task, claim.queue))
            try:
                await asyncio.wait([thread])
            finally:
                self._threads.abandoned -= 1
        thread.exception()  # nobody waits for it any more; asyncio complains about exceptions that nobody saw
        self._threads.give_back()

    def _end(self, ticket: Ticket, outcome: Outcome) -> None:
        """Decide, and leave the rest to the settler."""
        claim = ticket.claim
        retry = _NO_POLICY if ticket.policy is None else ticket.policy.retry
        decision = decide(claim, outcome, retry=retry, jitter=self._rng.random())
        self.ended += 1
        total_s = claim.age_s + self._clock.now() - ticket.at
        self._settler.push(Ended(claim, decision, ticket.correlation_id, total_s, ticket.hold))


def _hold(claim: Claim, snooze: Snooze) -> GateHold | None:
    """The gate that `raise Snooze(..., hold=name)` closes: the job's own one of that policy name."""
    for gate in claim.gates:
        if family(gate) == snooze.hold:
            return GateHold(gate, snooze.seconds, snooze.reason)
    return None


async def _join(thread: asyncio.Future[Any]) -> Any:
    """The thread's result. Cancelling this leaves the thread alone."""
    await asyncio.wait([thread])
    return thread.result()
