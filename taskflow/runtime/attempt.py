"""One job's walk through a worker: read → admit → run under its time limit → outcome → decision → settle.

Admission comes before the attempt is counted: a job whose deadline has passed, that a person cancelled, whose breaker
is open or whose task is unknown here has not been attempted.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from taskflow.core import events
from taskflow.core.backoff import exponential
from taskflow.core.decision import Release, decide
from taskflow.core.gate import family
from taskflow.core.outcome import Interrupted, Outcome, Rejected, Succeeded
from taskflow.core.specs import Retry
from taskflow.errors import ConfigError, PayloadError
from taskflow.runtime import outcomes
from taskflow.runtime.breakers import TurnedAway
from taskflow.runtime.codec import Envelope, NewerEnvelope
from taskflow.runtime.control import ControlFlow, Snooze
from taskflow.runtime.current import CurrentJob
from taskflow.runtime.processes import NoProcess
from taskflow.runtime.settle import Ended, GateHold, Settler
from taskflow.runtime.slot import CANCELLED, SHUTDOWN, TIMEOUT, Slot, Stopped
from taskflow.runtime.threads import NoThread
from taskflow.telemetry.context import job_context

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from taskflow.brokers.base import Broker, Note, Settled
    from taskflow.clock import Clock
    from taskflow.core.job import Claim
    from taskflow.runtime.breakers import Admitted, Breakers
    from taskflow.runtime.calls import BrokerCalls
    from taskflow.runtime.importing import Where
    from taskflow.runtime.leases import Leases
    from taskflow.runtime.places import Places
    from taskflow.runtime.processes import Child, Processes
    from taskflow.runtime.task import TaskDef
    from taskflow.runtime.threads import ThreadSlots
    from taskflow.settings import Settings
    from taskflow.settings.tuning import TaskPolicy

_UNKNOWN_FIRST_S, _UNKNOWN_MOST_S = 5.0, 300.0
_NO_PLACE_S = 5.0
_LONGEST_HOLD_S = 86_400.0  # what one answer of a third party may close a gate for
_NO_POLICY = Retry()  # for what goes wrong before the task's own is known


@dataclass(slots=True, eq=False)
class Walk:
    """A claim on its way through this worker. `at` is when it came here, `started_at` when its handler did."""

    claim: Claim
    at: float
    slot: Slot
    correlation_id: str
    started_at: float = 0.0
    policy: TaskPolicy | None = None
    hold: GateHold | None = None
    child: Child | None = None  # the process that was taken for it
    has_ended: bool = False


class Ready(NamedTuple):
    """What an attempt needs."""

    task: TaskDef
    policy: TaskPolicy
    envelope: Envelope
    admitted: Admitted


class Attempts:
    """Makes attempts for one worker; `running` is what it is at, by job id and token.

    A job may be here twice: a handler that goes on after its claim was lost, and the next claim of the same job.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        calls: BrokerCalls,
        tasks: Mapping[str, TaskDef],
        settings: Settings,
        clock: Clock,
        rng: random.Random,
        emit: Callable[[events.Event], None],
        leases: Leases,
        settler: Settler,
        breakers: Breakers,
        threads: ThreadSlots,
        processes: Processes,
    ) -> None:
        self._broker = broker
        self._calls = calls
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
        self._processes = processes
        self._keep_bound = self._keep
        self.running: dict[tuple[str, int], Walk] = {}
        self.ended = 0
        self.cut_off = 0  # handlers that were stopped by a shutdown

    async def make(self, slot: Slot, claim: Claim, at: float) -> None:
        """Make one attempt, and leave what came of it to the settler.

        Raises only what ends the slot's task, or the loop; the job is with the settler even then.
        """
        if not self._leases.holds(claim.job_id, claim.token):
            return  # lost while it waited here
        walk = Walk(claim, at, slot, claim.job_id)
        try:
            ready = self._admit(walk)
            if isinstance(ready, Ready):
                await self._run(walk, ready)
            else:
                self._end(walk, ready)
        except BaseException as error:
            is_ours = isinstance(error, Exception)  # no handler's: those are outcomes by now
            if not walk.has_ended:
                self._end(walk, outcomes.failed(error, covers=_NO_POLICY.covers) if is_ours else Interrupted())
            if not is_ours:
                raise

    def _admit(self, walk: Walk) -> Ready | Outcome:
        """What the attempt needs, or why there is none."""
        claim = walk.claim
        task = self._tasks.get(claim.task)
        if task is None:
            return self._unknown(claim)
        try:
            envelope = task.codec.load(claim.payload)
            walk.policy = policy = task.policy(self._settings, envelope.options)
        except NewerEnvelope:
            return self._unknown(claim)
        except (PayloadError, ConfigError) as error:
            return outcomes.invalid(error)
        if envelope.correlation_id is not None:
            walk.correlation_id = envelope.correlation_id
        if self._is_late(walk):
            return outcomes.overdue(claim.expire_reason)
        admitted = self._breakers.admit(claim, policy)
        if isinstance(admitted, TurnedAway):
            walk.hold = admitted.hold
            return admitted.outcome
        return Ready(task, policy, envelope, admitted)

    def _unknown(self, claim: Claim) -> Outcome:
        """A task that this process does not know waits for the deploy that does, ever longer."""
        wait_s = exponential(claim.snoozes + 1, base_s=_UNKNOWN_FIRST_S, factor=2, cap_s=_UNKNOWN_MOST_S)
        self._emit(events.TaskUnknown(claim.job_id, claim.task, claim.queue, wait_s))
        return Rejected("unknown_task", wait_s)

    def _is_late(self, walk: Walk) -> bool:
        """Whether the job has passed its deadline, or waited too long."""
        return walk.claim.expires_in_s <= self._clock.now() - walk.at

    async def _take_place(self, walk: Walk, where: Where | None) -> Outcome | None:
        """Take a thread for a sync handler, or the child process that has it at `where`, or say why there is none.

        One for each thread waits as long as it takes, so that none is ever idle. The others come back later: async
        handlers need their slots. That takes its time too, or a long queue would be claimed and sent away in a spin.
        """
        places = self._threads.places if where is None else self._processes.places
        if where is not None and (child := self._processes.try_take(where)) is not None:
            walk.child = child
            return None
        has_place = places.try_take()
        if has_place and where is None:
            return None
        claim, slot = walk.claim, walk.slot
        key = (claim.job_id, claim.token)
        walk.started_at = self._clock.now()
        self.running[key] = walk
        try:
            while not has_place:
                slot.start_clock(self._clock.now() + _NO_PLACE_S)
                try:
                    await slot.run(places.take())
                    break
                except Stopped as stopped:
                    if stopped.why != TIMEOUT:
                        raise
                if places.is_crowded:
                    return self._no_place(places)
                if self._is_late(walk):
                    return outcomes.overdue(claim.expire_reason)
            if where is not None:
                walk.child = await slot.run(self._processes.prepare(where))
        except Stopped as stopped:
            self._count_cut_off(stopped.why)
            return Interrupted(cancelled=stopped.why == CANCELLED)
        except NoProcess:
            return self._no_place(places)
        finally:
            del self.running[key]
        if self._is_late(walk):
            if walk.child is None:
                places.give_back()
            else:
                self._processes.put_back(walk.child)
            return outcomes.overdue(claim.expire_reason)
        return None

    def _no_place(self, places: Places) -> Outcome:
        return Rejected(places.busy, _NO_PLACE_S * (1 + self._rng.random()))

    async def _run(self, walk: Walk, ready: Ready) -> None:
        task, policy, envelope, admitted = ready
        claim, slot, clock = walk.claim, walk.slot, self._clock
        if not task.is_async and (denied := await self._take_place(walk, task.where)) is not None:
            self._breakers.report(admitted, None, 0.0)
            self._end(walk, denied)
            return
        started_at = clock.now()
        deadline_at = started_at + policy.timeout_s
        if claim.expire_reason == "deadline":  # the longest wait, on the other hand, is over once the job runs
            deadline_at = min(deadline_at, walk.at + claim.expires_in_s)
        job = CurrentJob(claim, self._keep_bound, clock, walk.correlation_id, envelope.traceparent, deadline_at)
        key = (claim.job_id, claim.token)
        walk.started_at = started_at
        self.running[key] = walk
        self._leases.limit(claim.job_id, claim.token, deadline_at)
        before = job_context.set(job)
        self._emit(events.AttemptStarted(claim, walk.correlation_id))
        thread: asyncio.Future[Any] | None = None
        args, kwargs = task.codec.call_args(envelope.args)
        outcome: Outcome
        try:
            slot.start_clock(deadline_at)
            if walk.child is not None:
                outcome = await slot.run(
                    self._processes.run(walk.child, task, claim, job, retry=policy.retry, keep=self._keep_bound)
                )
            else:
                if task.is_async:
                    result = await slot.run(task.fn(*args, **kwargs))
                else:
                    thread = self._threads.start(lambda: task.fn(*args, **kwargs))
                    result = await slot.run(_join(thread))
                outcome = outcomes.succeeded(task, result, max_bytes=self._max_result_bytes)
        except Stopped as stopped:
            # Where a killed handler was, its process does not tell; where we waited for it tells nobody anything.
            where = stopped.__cause__ if walk.child is None else None
            outcome = self._stopped(walk, stopped.why, policy, where)
        except NoThread:
            self._threads.places.give_back()
            outcome = self._no_place(self._threads.places)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is an outcome
            outcome = self._raised(walk, slot.stopped, policy, error)
        finally:
            job_context.reset(before)
            del self.running[key]
            self._leases.ended(claim.job_id, claim.token)
        run_s = clock.now() - started_at
        if slot.stopped == TIMEOUT and isinstance(outcome, Succeeded):
            self._emit(events.TimeoutIgnored(claim.job_id, claim.task, claim.queue, run_s))
        if (hold := self._breakers.report(admitted, outcome, run_s)) is not None:
            walk.hold = hold
        error_record = getattr(outcome, "error", None)
        self._emit(events.AttemptEnded(claim, walk.correlation_id, outcomes.label(outcome), run_s, error_record))
        self._end(walk, outcome)
        if thread is not None:
            await self._let_go(thread, claim)

    def _raised(self, walk: Walk, why: str | None, policy: TaskPolicy, error: Exception) -> Outcome:
        """The outcome of a handler that raised `error`, after it had been told to stop if `why` is set."""
        if why is not None and why != CANCELLED and not isinstance(error, ControlFlow):
            # Most likely the cancellation's own debris: a shutdown must not spend an attempt, a timeout is a timeout.
            return self._stopped(walk, why, policy, error)
        if isinstance(error, Snooze) and error.hold is not None:
            walk.hold = _hold(walk.claim, error)
        return outcomes.failed(error, covers=policy.retry.covers)

    def _stopped(self, walk: Walk, why: str, policy: TaskPolicy, error: BaseException | None) -> Outcome:
        claim = walk.claim
        self._count_cut_off(why)
        if why == TIMEOUT and claim.expire_reason == "deadline" and self._is_late(walk):
            return outcomes.overdue(claim.expire_reason)
        return outcomes.stopped(why, timeout_s=policy.timeout_s, covers=policy.retry.covers, error=error)

    def _count_cut_off(self, why: str) -> None:
        self.cut_off += why == SHUTDOWN

    async def _let_go(self, thread: asyncio.Future[Any], claim: Claim) -> None:
        """Give the thread's slot back when it has really ended. Until then this slot keeps its place."""
        if not thread.done():
            # Nobody waits for what it raises, and asyncio complains about exceptions that nobody saw.
            thread.add_done_callback(asyncio.Future.exception)
            self._threads.places.abandoned += 1
            self._emit(events.ThreadAbandoned(claim.job_id, claim.task, claim.queue))
            try:
                await asyncio.wait([thread])
            finally:
                self._threads.places.abandoned -= 1
        thread.exception()
        self._threads.places.give_back()

    async def _keep(self, note: Note) -> Settled:
        """Progress and checkpoints wait through an outage: one that is ours is no reason for the handler to fail."""
        (answer,) = await self._calls.until_heard("note", lambda: self._broker.note([note]))
        return answer

    def hand_back(self, running: Walk) -> None:
        """Give back a job whose handler does not stop: its word will not count any more."""
        self.cut_off += 1
        self._settler.push(Ended(running.claim, Release(), running.claim.job_id, running.claim.age_s))

    def _end(self, walk: Walk, outcome: Outcome) -> None:
        """Decide, and leave the rest to the settler."""
        claim = walk.claim
        walk.has_ended = True
        retry = _NO_POLICY if walk.policy is None else walk.policy.retry
        decision = decide(claim, outcome, retry=retry, jitter=self._rng.random())
        self.ended += 1
        total_s = claim.age_s + self._clock.now() - walk.at
        self._settler.push(Ended(claim, decision, walk.correlation_id, total_s, walk.hold))


def _hold(claim: Claim, snooze: Snooze) -> GateHold | None:
    """The gate that `raise Snooze(..., hold=name)` closes: the job's own one of that policy name."""
    for gate in claim.gates:
        if family(gate) == snooze.hold:
            return GateHold(gate, min(snooze.seconds, _LONGEST_HOLD_S), snooze.reason)
    snooze.reason = f"{snooze.reason} (it has no gate {snooze.hold!r} to hold)"
    return None


async def _join(thread: asyncio.Future[Any]) -> Any:
    """The thread's result. Cancelling this leaves the thread alone."""
    await asyncio.wait([thread])
    return thread.result()
