"""One job's walk through a worker: read → admit → run under its time limit → outcome → decision → settle.

Admission comes before the attempt is counted: a job whose deadline has passed, that a person cancelled, whose breaker
is open or whose task is unknown here has not been attempted.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from taskflow.brokers.base import Completing, Settled
from taskflow.clock import NEVER
from taskflow.core import events
from taskflow.core.backoff import exponential
from taskflow.core.decision import Release, complete, decide
from taskflow.core.gate import of_family
from taskflow.core.outcome import Interrupted, Outcome, Rejected, Succeeded
from taskflow.core.specs import Retry
from taskflow.errors import ConfigError, PayloadError
from taskflow.runtime import outcomes
from taskflow.runtime.budgets import Budgets
from taskflow.runtime.codec import NewerEnvelope
from taskflow.runtime.control import ControlFlow, Snooze
from taskflow.runtime.leases import OVERTIME_S
from taskflow.runtime.process import NoProcess
from taskflow.runtime.slot import CANCELLED, SHUTDOWN, TIMEOUT, Slot, Stopped
from taskflow.runtime.threads import NoThread
from taskflow.runtime.walk import Completion, Notebook, Walk
from taskflow.runtime.words import GateHold
from taskflow.telemetry.context import job_context

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping
    from contextvars import Token

    from taskflow.brokers.base import Broker, Note
    from taskflow.clock import Clock
    from taskflow.core.decision import Decision
    from taskflow.core.job import Claim
    from taskflow.core.specs import RetryBudget
    from taskflow.runtime.breakers import Breakers
    from taskflow.runtime.calls import BrokerCalls
    from taskflow.runtime.importing import Where
    from taskflow.runtime.leases import Leases
    from taskflow.runtime.places import Places
    from taskflow.runtime.processes import Processes
    from taskflow.runtime.settle import Settler
    from taskflow.runtime.task import TaskDef
    from taskflow.runtime.threads import ThreadSlots
    from taskflow.settings import Settings
    from taskflow.settings.tuning import TaskPolicy
    from taskflow.telemetry.context import JobContext

_UNKNOWN_FIRST_S, _UNKNOWN_MOST_S = 5.0, 300.0
_NO_PLACE_S = 5.0
_LONGEST_HOLD_S = 86_400.0  # what one answer of a third party may close a gate for
_SPREAD = 0.1  # those who were told to wait the same time come back over this share of it: later, never earlier
_GONE: dict[str, Any] = {}  # arguments live no longer than the handler does
_NO_POLICY = Retry()  # for what goes wrong before the task's own is known


class Attempts:
    """Makes attempts for one worker; `running` is what it is at.

    A job may be here twice: a handler that goes on after its claim was lost, and the next claim of the same job.
    `is_watched` says whether someone wants to hear of each start before the handler has the word.
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
        self._now = clock.now
        self._rng = rng
        self._emit = emit
        self._leases = leases
        self._claims = leases.claims
        self._settler = settler
        self._breakers = breakers
        self._budgets = Budgets(clock, rng.random)
        self._threads = threads
        self._processes = processes
        self.is_watched = False
        self._notebook = Notebook(self._keep, clock, self._complete_in)
        self.running: dict[Walk, None] = {}  # in order: a seed replays the same
        self.ended = 0
        self.cut_off = 0  # handlers that were stopped by a shutdown

    def admit(self, walk: Walk, slot: Slot) -> bool:
        """Whether `run` is to make an attempt. If not, what becomes of the job is with the settler, or with others."""
        claim = walk.claim
        if self._claims.get(claim.job_id) is not walk:
            return False  # lost while it waited here
        now = self._now()
        if now >= self._leases.trusted_until:  # this process stood still: others may run it by now
            self.settle(walk, Release())
            return False
        walk.slot = slot
        walk.started_at = now
        try:
            outcome = self._admit(walk, claim, now)
        except Exception as error:  # noqa: BLE001 - ours: the job gets another try, and this slot goes on
            outcome = self._failed(error, _NO_POLICY)
        if outcome is None:
            return True
        if walk.admitted is not None:
            self._breakers.give_back(walk.admitted)
        self._end(walk, outcome, now)
        return False

    def _admit(self, walk: Walk, claim: Claim, now: float) -> Outcome | None:
        """Find what the attempt needs; or why there is none."""
        task = self._tasks.get(claim.task)
        if task is None:
            return self._unknown(claim)
        try:
            args, correlation_id, walk.traceparent, options = task.codec.load(claim.payload)
            policy = task.policy(self._settings, options)
        except NewerEnvelope:
            return self._unknown(claim)
        except (PayloadError, ConfigError) as error:
            return outcomes.invalid(error)
        walk.definition, walk.policy, walk.args = task, policy, args
        if correlation_id is not None:
            walk.correlation_id = correlation_id
        if claim.expires_in_s <= now - walk.at:
            return outcomes.overdue(claim.expire_reason)
        if policy.breaker is not None:
            admitted = self._breakers.admit(claim, policy, policy.breaker)
            if isinstance(admitted, Rejected):
                return admitted
            walk.admitted = admitted
        if policy.retry.budget is not None and task.is_async:
            return self._charge(walk, policy.retry, policy.retry.budget)
        return None  # a sync one pays once it has its place: it may be sent away before

    def _charge(self, walk: Walk, retry: Retry, budget: RetryBudget) -> Outcome | None:
        """Take the token of a retry, or say when to look again. A probe needs none: all the others wait for it."""
        if walk.admitted is not None and walk.admitted.is_probe:
            return None
        return self._budgets.charge(walk.claim, retry, budget)

    def _unknown(self, claim: Claim) -> Outcome:
        """A task that this process does not know waits for the deploy that does, ever longer."""
        wait_s = exponential(claim.snoozes + 1, base_s=_UNKNOWN_FIRST_S, factor=2, cap_s=_UNKNOWN_MOST_S)
        self._emit(events.TaskUnknown(claim.job_id, claim.task, claim.queue, wait_s))
        return Rejected("unknown_task", wait_s)

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
        claim, slot, clock = walk.claim, walk.slot, self._clock
        walk.started_at = clock.now()
        self.running[walk] = None
        try:
            while not has_place:
                try:
                    await slot.run(places.take(), clock.now() + _NO_PLACE_S)
                    break
                except Stopped as stopped:
                    if stopped.why != TIMEOUT:
                        raise
                if places.is_crowded:
                    return self._no_place(places)
                if _is_late(walk, clock.now()):
                    return outcomes.overdue(claim.expire_reason)
            if where is not None:
                walk.child = await slot.run(self._processes.prepare(where), NEVER)
        except Stopped as stopped:
            self._count_cut_off(stopped.why)
            return Interrupted(cancelled=stopped.why == CANCELLED)
        except NoProcess:
            return self._no_place(places)
        finally:
            del self.running[walk]
        walk.started_at = now = clock.now()
        if _is_late(walk, now):
            self._leave_place(walk)
            return outcomes.overdue(claim.expire_reason)
        return None

    async def _get_ready(self, walk: Walk, policy: TaskPolicy, where: Where | None) -> Outcome | None:
        """What a sync handler needs beyond what `admit` has found; or why there is no attempt."""
        denied = await self._take_place(walk, where)
        if denied is None and policy.retry.budget is not None:
            denied = self._charge(walk, policy.retry, policy.retry.budget)
            if denied is not None:
                self._leave_place(walk)
        return denied

    def _leave_place(self, walk: Walk) -> None:
        """The place was taken, and is not needed."""
        if walk.child is None:
            self._threads.places.give_back()
        else:
            self._processes.put_back(walk.child)

    def _no_place(self, places: Places) -> Outcome:
        return Rejected(places.busy, _NO_PLACE_S * (1 + self._rng.random()))

    async def run(self, walk: Walk) -> None:
        """Make the attempt, and leave what came of it to the settler.

        Raises only what ends the slot's task, or the loop; the job is with the settler even then.
        """
        thread: asyncio.Future[Any] | None = None
        try:
            task, policy, slot = walk.definition, walk.policy, walk.slot
            assert policy is not None
            if not task.is_async and (denied := await self._get_ready(walk, policy, task.where)) is not None:
                if walk.admitted is not None:
                    self._breakers.give_back(walk.admitted)
                self._end(walk, denied, self._now())
                return
            before = self._begin(walk, policy.timeout_s)
            outcome: Outcome
            try:
                if task.is_async:
                    result = await task.start(**walk.args)
                    if walk.completion is None:  # as `_succeeded`, which is one more call
                        outcome = outcomes.succeeded(task, result, max_bytes=self._max_result_bytes)
                    else:
                        outcome = self._succeeded(walk, task, result)
                elif walk.child is not None:
                    outcome = await self._processes.run(walk.child, walk, retry=policy.retry)
                else:
                    thread = self._threads.start(partial(task.start, **walk.args))
                    result = await _join(thread)
                    outcome = self._succeeded(walk, task, result)
            except BaseException as error:  # noqa: BLE001 - whatever a handler raises is an outcome; the rest is raised
                outcome = self._outcome_of(walk, policy, slot.caught(error))
            finally:
                slot.end()
                job_context.reset(before)
                del self.running[walk]
                walk.vouched_until, walk.args = NEVER, _GONE
            now = self._now()
            walk.run_s = now - walk.started_at
            if type(outcome) is Succeeded and slot.stopped is None and walk.admitted is None:
                walk.outcome, walk.error = "succeeded", None
            else:
                outcome = self._conclude(walk, outcome)
            self._end(walk, outcome, now, was_run=True)
        except BaseException as error:
            is_ours = isinstance(error, Exception)  # no handler's: those are outcomes by now
            if not walk.has_ended:
                outcome = self._failed(error, _NO_POLICY) if is_ours else Interrupted()
                self._end(walk, outcome, self._now())
            if not is_ours:
                raise
        if thread is not None:
            await self._let_go(thread, walk.claim)

    def _begin(self, walk: Walk, timeout_s: float) -> Token[JobContext | None]:
        """The handler is about to run."""
        deadline_at = walk.started_at + timeout_s
        if walk.claim.expire_reason == "deadline":  # the longest wait, on the other hand, is over once the job runs
            deadline_at = min(deadline_at, walk.at + walk.claim.expires_in_s)
        walk.deadline_at, walk.notebook = deadline_at, self._notebook
        self.running[walk] = None
        walk.vouched_until = deadline_at + OVERTIME_S
        if self.is_watched:
            self._emit(events.AttemptsStarted((walk,)))
        else:
            self._settler.started(walk)
        walk.slot.begin(deadline_at)
        return job_context.set(walk)

    def _succeeded(self, walk: Walk, task: TaskDef, result: Any) -> Outcome:
        if walk.completion is not None:
            return Succeeded(walk.completion.result)
        return outcomes.succeeded(task, result, max_bytes=self._max_result_bytes)

    def _conclude(self, walk: Walk, outcome: Outcome) -> Outcome:
        """What the listeners are told of a handler's end, and what its breaker makes of the outcome."""
        walk.outcome, walk.error = outcomes.label(outcome), getattr(outcome, "error", None)
        if walk.slot.stopped == TIMEOUT and isinstance(outcome, Succeeded):
            claim = walk.claim
            self._emit(events.TimeoutIgnored(claim.job_id, claim.task, claim.queue, walk.run_s))
        if isinstance(outcome, Rejected) and outcome.reason == outcomes.THROTTLED:
            outcome = self._throttled(walk, outcome)
        if walk.admitted is not None:
            outcome, word = self._breakers.report(walk.admitted, outcome, walk.run_s)
            if word is not None:
                walk.hold = word
        return outcome

    def _throttled(self, walk: Walk, outcome: Rejected) -> Rejected:
        """Its dependency said: not now. That is for all who need it; and they do not come back all at once."""
        policy = walk.policy
        assert policy is not None
        spec = policy.rate or policy.breaker or policy.bulkhead
        gate = None if spec is None else of_family(walk.claim.gates, spec.name)
        if gate is not None:
            walk.hold = GateHold(gate, min(outcome.retry_after_s, _LONGEST_HOLD_S), outcome.reason)
        return replace(outcome, retry_after_s=outcome.retry_after_s * (1 + _SPREAD * self._rng.random()))

    def _outcome_of(self, walk: Walk, policy: TaskPolicy, error: Exception) -> Outcome:
        """The outcome of a handler that ended with `error`."""
        match error:
            case Stopped(why=why):
                # Where a killed handler was, its process does not tell; where we waited for it tells nobody anything.
                return self._stopped(walk, why, policy, error.__cause__ if walk.child is None else None)
            case NoThread():
                self._threads.places.give_back()
                return self._no_place(self._threads.places)
            case _:
                return self._raised(walk, walk.slot.stopped, policy, error)

    def _raised(self, walk: Walk, why: str | None, policy: TaskPolicy, error: Exception) -> Outcome:
        """The outcome of a handler that raised `error`, after it had been told to stop if `why` is set."""
        if why is not None and why != CANCELLED and not isinstance(error, ControlFlow):
            # Most likely the cancellation's own debris: a shutdown must not spend an attempt, a timeout is a timeout.
            return self._stopped(walk, why, policy, error)
        if isinstance(error, Snooze) and error.hold is not None:
            walk.hold = _hold(walk.claim, error)
        return self._failed(error, policy.retry)

    def _failed(self, error: BaseException, retry: Retry) -> Outcome:
        return outcomes.failed(error, covers=retry.covers, wall=self._clock.wall())

    def _stopped(self, walk: Walk, why: str, policy: TaskPolicy, error: BaseException | None) -> Outcome:
        claim = walk.claim
        self._count_cut_off(why)
        if why == TIMEOUT and claim.expire_reason == "deadline" and _is_late(walk, self._clock.now()):
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

    async def _complete_in(self, walk: Walk, connection: Any, result: Any) -> Settled:
        """Not repeated, unlike all else: an error leaves the transaction to its owner."""
        broker = self._broker
        if not isinstance(broker, Completing):
            raise ConfigError(
                f"complete_in(): jobs live in {broker.name}, which knows no transactions; return the result instead"
            )
        data = walk.definition.codec.dump_result(result, max_bytes=self._max_result_bytes)
        answer = await broker.complete_in(connection, walk.claim.job_id, walk.claim.token, data)
        if answer is Settled.APPLIED:
            walk.completion = Completion(data)
        return answer

    def hand_back(self, running: Walk) -> None:
        """Give back a job whose handler does not stop: its word will not count any more."""
        self.cut_off += 1
        running.has_ended = True
        handed = Walk(running.claim, running.at)  # of its own: what the handler still comes to must not change it
        if self._claims.get(handed.claim.job_id) is running:
            self._claims[handed.claim.job_id] = handed
        self.settle(handed, Release())

    def settle(self, walk: Walk, decision: Decision) -> None:
        """Leave what was decided without an attempt to the settler."""
        walk.has_ended = True
        walk.decision = decision
        walk.total_s = walk.claim.age_s + self._clock.now() - walk.at
        self._settler.push(walk)

    def settle_unstarted(self, walk: Walk, decision: Decision) -> None:
        """The same for a job that no slot has taken, unless its claim was lost, or made anew, meanwhile."""
        if self._claims.get(walk.claim.job_id) is walk:
            self.settle(walk, decision)

    def _end(self, walk: Walk, outcome: Outcome, now: float, *, was_run: bool = False) -> None:
        """Decide, and leave the rest to the settler."""
        if walk.has_ended:
            return  # it was handed back: told by the same claim, its word would pass for one that was heard before
        claim = walk.claim
        walk.has_ended = True
        if type(outcome) is Succeeded:
            walk.decision = complete(outcome)
        else:
            walk.decision = self._decide(claim, outcome, _NO_POLICY if walk.policy is None else walk.policy.retry)
        walk.total_s = claim.age_s + now - walk.at
        self.ended += 1
        self._settler.push(walk, was_run=was_run)

    def _decide(self, claim: Claim, outcome: Outcome, retry: Retry) -> Decision:
        jitter = self._rng.random()
        try:
            return decide(claim, outcome, retry=retry, jitter=jitter)
        except Exception as error:  # noqa: BLE001 - a backoff of the user's own: the job must not stay where it is for that
            outcome = outcomes.without_delay(outcome, error)
            return decide(claim, outcome, retry=replace(retry, delay=None), jitter=jitter)


def _is_late(walk: Walk, now: float) -> bool:
    """Whether the job has passed its deadline, or waited too long."""
    return walk.claim.expires_in_s <= now - walk.at


def _hold(claim: Claim, snooze: Snooze) -> GateHold | None:
    """The gate that `raise Snooze(..., hold=name)` closes: the job's own one of that policy name."""
    gate = None if snooze.hold is None else of_family(claim.gates, snooze.hold)
    if gate is not None:
        return GateHold(gate, min(snooze.seconds, _LONGEST_HOLD_S), outcomes.kept(snooze.reason))
    snooze.reason = f"{snooze.reason} (it has no gate {snooze.hold!r} to hold)"
    return None


async def _join(thread: asyncio.Future[Any]) -> Any:
    """The thread's result. Cancelling this leaves the thread alone."""
    await asyncio.wait([thread])
    return thread.result()
