"""When a dependency fails, its jobs wait; they are not burnt."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from taskflow import Bulkhead, CircuitBreaker, RateLimit, Retry
from taskflow.core import events
from taskflow.core.gate import Gate, Release, change, recoveries_of
from taskflow.core.outcome import ErrorRecord, Failed, Interrupted, Outcome, Rejected, Succeeded
from taskflow.core.specs import CircuitBreaker as Spec
from taskflow.runtime import breakers
from taskflow.runtime.breakers import Admitted, Breakers
from taskflow.settings import Settings, TaskOverride
from taskflow.settings.tuning import TaskPolicy, resolve
from taskflow.testing import TestFlow, VirtualClock
from tests.runtime.made import heard, make_claim, make_flow

if TYPE_CHECKING:
    from taskflow.runtime.breakers import Judged
    from taskflow.runtime.words import GateWord

pytestmark = pytest.mark.anyio

BROKEN = Failed(ErrorRecord("OSError", "no", "transient"))
DONE = Succeeded()


async def test_an_open_breaker_spends_no_attempts_and_the_jobs_run_when_it_closes() -> None:
    flow = make_flow()
    is_down = True
    runs: list[float] = []

    @flow.task(
        breaker=CircuitBreaker("smtp", consecutive=3, open_for=10), retry=Retry(attempts=3, base=1, jitter="none")
    )
    async def send(number: int) -> int:
        runs.append(flow.clock.now())
        if is_down:
            raise OSError("connection refused")
        return number

    moved = heard(flow, events.BreakerMoved)
    async with TestFlow(flow, concurrency=5) as t:
        jobs = await send.submit_many([send.call(number) for number in range(200)])
        await t.advance(60)
        tried = len(runs)
        found = [await t.broker.show(job.id) for job in jobs]
        is_down = False
        await t.advance(120)
        states = {await job.status() for job in jobs}

    assert tried <= 5 + 6  # what ran when it opened, and a probe now and then
    assert max(job.attempts for job in found if job is not None) < 3
    assert sum(job.snoozes for job in found if job is not None) < 60  # the rest waited in the queue, untouched
    assert states == {"succeeded"}
    assert [event.to for event in moved][-2:] == ["half_open", "closed"]


async def test_jobs_of_other_dependencies_keep_flowing() -> None:
    flow = make_flow()

    @flow.task(breaker=CircuitBreaker("smtp", consecutive=1, open_for=60), retry=Retry(attempts=9))
    async def send() -> None:
        raise OSError

    @flow.task
    async def other(number: int) -> int:
        return number

    async with TestFlow(flow, concurrency=2) as t:
        await send.submit_many([send.call() for _ in range(50)])
        await t.advance(1)
        jobs = await other.submit_many([other.call(number) for number in range(50)])
        await t.run_until_idle()

        assert [await job.result(0) for job in jobs] == list(range(50))


async def test_one_lane_that_fails_does_not_hold_the_others() -> None:
    flow = make_flow()

    @flow.task(
        breaker=CircuitBreaker("http", consecutive=1, open_for=60, per_lane=True),
        lane=lambda host: host,
        retry=Retry(attempts=1),
    )
    async def call(host: str) -> str:
        if host == "down":
            raise OSError
        return host

    async with flow.test() as t:
        await call.submit("down")
        await t.run_until_idle()
        held = await call.submit("down")
        fine = await call.submit("up")
        await t.run_until_idle()
        gates = {gate.name: gate.held_until for gate in await t.broker.gates()}

        assert await held.status() == "ready"
        assert await fine.result(0) == "up"
        assert gates["http/down"] > t.clock.wall()


@pytest.mark.parametrize("retry", [Retry(attempts=1, on=(OSError,)), Retry(attempts=1)])
async def test_bad_data_says_nothing_about_the_dependency_retried_or_not(retry: Retry) -> None:
    flow = make_flow()

    @flow.task(breaker=CircuitBreaker("smtp", consecutive=2), retry=retry)
    async def send() -> None:
        raise ValueError("no address")

    moved = heard(flow, events.BreakerMoved)
    async with flow.test() as t:
        await send.submit_many([send.call() for _ in range(30)])
        await t.run_until_idle()

    assert moved == []


async def test_timeouts_open_a_breaker_even_where_they_are_not_retried() -> None:
    flow = make_flow()

    @flow.task(timeout=5, breaker=CircuitBreaker("slow", consecutive=2), retry=Retry(attempts=1, on=(OSError,), never=(TimeoutError,)))  # fmt: skip
    async def send() -> None:
        await flow.clock.sleep(60)

    moved = heard(flow, events.BreakerMoved)
    async with flow.test() as t:
        await send.submit_many([send.call() for _ in range(2)])
        await t.advance(6)

    assert [event.to for event in moved] == ["open"]


async def test_whoever_looks_at_an_open_breaker_sees_which_error_opened_it() -> None:
    flow = make_flow()

    @flow.task(breaker=CircuitBreaker("smtp", consecutive=3, open_for=10), retry=Retry(attempts=9, base=1))
    async def send(number: int) -> None:
        raise ConnectionRefusedError("a secret in its text")

    moved = heard(flow, events.BreakerMoved)
    async with TestFlow(flow, concurrency=5) as t:
        await send.submit_many([send.call(number) for number in range(5)])
        await t.advance(5)
        (gate,) = await t.broker.gates()

    assert [(event.to, event.cause) for event in moved] == [("open", "ConnectionRefusedError")]
    assert gate.reason == "circuit_open: ConnectionRefusedError"


async def test_a_breaker_that_opened_for_slow_calls_says_so() -> None:
    flow = make_flow()
    spec = CircuitBreaker("smtp", slow_call=5, slow_rate=1, min_calls=2)

    @flow.task(breaker=spec)
    async def send() -> None:
        await flow.clock.sleep(6)

    moved = heard(flow, events.BreakerMoved)
    async with flow.test() as t:
        await send.submit_many([send.call() for _ in range(2)])
        await t.advance(7)

    assert [(event.to, event.cause) for event in moved] == [("open", "slow_call")]


async def test_a_job_that_runs_out_of_its_own_deadline_says_nothing_about_the_dependency() -> None:
    flow = make_flow()

    @flow.task(timeout=30, deadline=5, breaker=CircuitBreaker("slow", consecutive=1))
    async def send() -> None:
        await flow.clock.sleep(60)

    moved = heard(flow, events.BreakerMoved)
    async with flow.test() as t:
        job = await send.submit()
        await t.advance(6)

        assert await job.status() == "expired"
    assert moved == []


async def test_bulkheads_and_rates_hold_for_all_jobs_of_a_task() -> None:
    flow = make_flow()
    now = most = 0
    started: list[float] = []

    @flow.task(bulkhead=Bulkhead("db", 3))
    async def query() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await flow.clock.sleep(1)
        now -= 1

    @flow.task(rate=RateLimit("api", "60/m"))
    async def call() -> None:
        started.append(flow.clock.now())

    async with TestFlow(flow, concurrency=20) as t:
        jobs = await query.submit_many([query.call() for _ in range(12)])
        await call.submit_many([call.call() for _ in range(5)])
        await t.advance(6)

        assert {await job.status() for job in jobs} == {"succeeded"}
    assert most == 3
    assert [round(at) for at in started] == [0, 1, 2, 3, 4]


class Bench:
    """One worker's breakers, and the gates that their words move."""

    def __init__(self, seed: int = 0) -> None:
        self.clock = VirtualClock()
        self.events: list[Any] = []
        self.breakers = Breakers(self.clock, self.events.append, random.Random(seed))
        self.gates: dict[str, Gate] = {}

    def admit(
        self, policy: TaskPolicy, gate: str = "smtp", *, of: Gate | None = None, attempts: int = 0
    ) -> Admitted | Rejected:
        """A claim through `gate` as it is, or as it was when it was `of`."""
        record = self.gates.get(gate, Gate(gate)) if of is None else of
        claim = make_claim(gates=(gate,), recoveries=recoveries_of([record]), attempts=attempts)
        assert policy.breaker is not None
        return self.breakers.admit(claim, policy, policy.breaker)

    def report(self, admitted: Admitted | Rejected, outcome: Outcome, run_s: float = 0.1) -> GateWord | None:
        return self.judge(admitted, outcome, run_s).word

    def judge(self, admitted: Admitted | Rejected, outcome: Outcome, run_s: float = 0.1) -> Judged:
        assert isinstance(admitted, Admitted)
        judged = self.breakers.report(admitted, outcome, run_s)
        if judged.word is not None:
            self.tell(judged.word)
        return judged

    def tell(self, word: GateWord) -> None:
        before = self.gates.get(word.gate, Gate(word.gate))
        self.gates[word.gate] = change(before, word.change, now=self.clock.wall())
        self.breakers.heard(word, self.gates[word.gate])

    def moves(self) -> list[str]:
        return [event.to for event in self.events if isinstance(event, events.BreakerMoved)]

    def wait(self, seconds: float) -> None:
        self.clock._now += seconds


def policy_of(spec: Spec, **override: Any) -> TaskPolicy:
    settings = Settings(tasks={"task": TaskOverride(breaker=override)} if override else {})  # type: ignore[arg-type]
    return resolve(settings, "task", {"breaker": spec})


THRICE = policy_of(Spec("smtp", consecutive=5, open_for=10))
ONCE = policy_of(Spec("smtp", consecutive=1, open_for=10, close_after=1))


def test_two_tasks_of_one_dependency_share_its_breaker_though_one_of_them_is_tuned() -> None:
    bench = Bench()
    plain = policy_of(Spec("smtp", consecutive=4))
    tuned = policy_of(Spec("smtp", consecutive=4), open_for_s=77)

    words = [bench.report(bench.admit(policy), BROKEN) for policy in (plain, tuned, plain, tuned)]

    assert words[:3] == [None] * 3
    assert words[3] is not None
    assert bench.gates["smtp"].held_until == bench.clock.wall() + 77


def test_a_claim_from_before_the_trip_that_has_not_started_is_turned_away_and_spends_nothing() -> None:
    bench = Bench()
    running = bench.admit(ONCE)
    before = bench.gates.get("smtp", Gate("smtp"))
    bench.report(running, BROKEN)

    turned = bench.admit(ONCE, of=before)

    assert isinstance(turned, Rejected)
    assert (turned.reason, 10 <= turned.retry_after_s <= 11) == ("circuit_open", True)
    assert bench.moves() == ["open"]


def test_results_of_calls_from_before_the_trip_count_for_nothing() -> None:
    bench = Bench()
    running = [bench.admit(ONCE) for _ in range(5)]
    bench.report(running[0], BROKEN)
    tripped = bench.gates["smtp"]

    words = [bench.report(one, outcome) for one, outcome in zip(running[1:], [BROKEN, DONE] * 2, strict=True)]

    assert words == [None] * 4
    assert bench.gates["smtp"] == tripped


def test_a_fleet_trips_once_and_whoever_was_second_adopts_it_without_a_word() -> None:
    first, second = Bench(1), Bench(2)
    running = second.admit(ONCE)
    old = second.admit(ONCE)
    first.report(first.admit(ONCE), BROKEN)
    second.gates = first.gates

    second.report(running, BROKEN)

    assert first.gates["smtp"].failed == 1
    assert (first.moves(), second.moves()) == (["open"], [])
    assert isinstance(second.admit(ONCE, of=Gate("smtp")), Rejected)
    assert second.report(old, BROKEN) is None


def test_a_probe_that_failed_holds_the_gate_for_longer_and_is_nobodys_attempt() -> None:
    bench = Bench()
    bench.report(bench.admit(ONCE), BROKEN)
    bench.wait(10)

    probe = bench.admit(ONCE)
    outcome, _ = bench.judge(probe, BROKEN)

    assert isinstance(probe, Admitted)
    assert probe.is_probe
    assert isinstance(outcome, Rejected)
    assert (outcome.reason, outcome.error, 20 <= outcome.retry_after_s <= 22) == ("circuit_open", BROKEN.error, True)
    assert bench.gates["smtp"].held_until == bench.clock.wall() + 20
    assert bench.moves() == ["open", "half_open", "open"]


def test_good_probes_open_the_gate_step_by_step_and_each_transition_is_announced_once() -> None:
    bench = Bench()
    bench.report(bench.admit(ONCE), BROKEN)
    bench.wait(10)
    widths = []

    while (ramp := bench.gates["smtp"].ramp) is not None:
        widths.append(ramp)
        for one in [bench.admit(ONCE) for _ in range(ramp)]:
            bench.report(one, DONE)

    assert widths == [1, 2, 4, 8, 16, 32]
    assert bench.moves() == ["open", "half_open", "closed"]


def test_a_failure_in_a_ramp_is_an_attempt_and_a_round_of_them_trips_the_gate() -> None:
    bench = Bench()
    policy = policy_of(Spec("smtp", consecutive=5, open_for=10, close_after=1))
    for _ in range(5):
        bench.report(bench.admit(policy), BROKEN)
    bench.wait(10)
    bench.report(bench.admit(policy), DONE)

    first, second = bench.admit(policy), bench.admit(policy)
    late = bench.gates["smtp"]
    outcome, _ = bench.judge(first, BROKEN)
    after_one = bench.gates["smtp"]
    bench.report(second, BROKEN)

    assert outcome is BROKEN
    assert isinstance(bench.admit(policy, of=late), Rejected)
    assert (after_one.ramp, after_one.bad) == (2, 1)
    assert (bench.gates["smtp"].ramp, bench.gates["smtp"].failed) == (1, 2)
    assert bench.moves() == ["open", "half_open", "open"]


@pytest.mark.parametrize("outcome", [Interrupted(), Interrupted(cancelled=True), Failed(BROKEN.error, retryable=False)])
def test_a_probe_that_says_nothing_of_its_dependency_changes_nothing(outcome: Outcome) -> None:
    bench = Bench()
    bench.report(bench.admit(ONCE), BROKEN)
    bench.wait(10)
    before = bench.gates["smtp"]

    probe = bench.admit(ONCE)

    assert bench.judge(probe, outcome) == (outcome, None)
    assert bench.gates["smtp"] == before


def test_a_probe_that_is_slow_is_a_bad_one_though_its_job_is_done() -> None:
    bench = Bench()
    policy = policy_of(Spec("smtp", consecutive=1, open_for=10, close_after=1, slow_call=2))
    bench.report(bench.admit(policy), BROKEN)
    bench.wait(10)

    outcome, _ = bench.judge(bench.admit(policy), DONE, run_s=3)

    assert outcome is DONE
    assert bench.gates["smtp"].failed == 2


def test_while_all_is_well_the_gate_hears_nothing() -> None:
    bench = Bench()

    words = [bench.report(bench.admit(THRICE), outcome) for outcome in [DONE, BROKEN, DONE, DONE] * 50]

    assert words == [None] * 200
    assert bench.events == []


def test_a_release_by_a_person_forgets_what_was_counted() -> None:
    bench = Bench()
    policy = policy_of(Spec("smtp", consecutive=2, open_for=10))
    bench.report(bench.admit(policy), BROKEN)
    bench.report(bench.admit(policy), BROKEN)
    bench.gates["smtp"] = change(bench.gates["smtp"], Release(), now=bench.clock.wall())

    words = [bench.report(bench.admit(policy), BROKEN) for _ in range(2)]

    assert words[0] is None
    assert words[1] is not None
    assert (bench.gates["smtp"].era, bench.gates["smtp"].failed) == (3, 1)


def test_a_gate_that_the_broker_forgot_is_counted_from_the_beginning() -> None:
    bench = Bench()
    bench.report(bench.admit(ONCE), BROKEN)
    bench.wait(11)
    bench.gates.clear()

    bench.report(bench.admit(ONCE), BROKEN)

    assert (bench.gates["smtp"].era, bench.gates["smtp"].failed) == (1, 1)


def test_jobs_without_the_gate_are_turned_away_by_the_worker_alone() -> None:
    bench = Bench()
    assert bench.report(bench.admit(ONCE, "other"), BROKEN) is None

    turned = bench.admit(ONCE, "other")
    bench.wait(10)
    probe = bench.admit(ONCE, "other")
    sibling = bench.admit(ONCE, "other")
    with_the_gate = bench.admit(ONCE)

    assert isinstance(turned, Rejected)
    assert isinstance(sibling, Rejected)
    assert isinstance(with_the_gate, Admitted)
    assert isinstance(bench.judge(probe, BROKEN).outcome, Rejected)
    bench.wait(20)
    assert bench.judge(bench.admit(ONCE, "other"), DONE) == (DONE, None)
    assert bench.moves() == ["open", "half_open", "open", "half_open", "closed"]
    assert bench.gates == {}


def test_a_probe_without_the_gate_that_never_started_gives_way() -> None:
    bench = Bench()
    bench.report(bench.admit(ONCE, "other"), BROKEN)
    bench.wait(10)

    probe = bench.admit(ONCE, "other")
    assert isinstance(probe, Admitted)
    bench.breakers.give_back(probe)

    assert isinstance(bench.admit(ONCE, "other"), Admitted)


# ---- a job that is about to die of its dependency ----


def test_the_last_attempt_of_a_lone_job_trips_the_gate_instead_of_killing_it() -> None:
    bench = Bench()
    bench.report(bench.admit(THRICE), BROKEN)

    second, _ = bench.judge(bench.admit(THRICE, attempts=1), BROKEN)
    third, word = bench.judge(bench.admit(THRICE, attempts=2), BROKEN)

    assert second is BROKEN
    assert isinstance(third, Rejected)
    assert word is not None
    assert bench.moves() == ["open"]


def test_the_last_attempt_that_fails_after_the_gate_tripped_is_spared_too() -> None:
    bench = Bench()
    last = bench.admit(THRICE, attempts=2)
    bench.report(bench.admit(ONCE), BROKEN)

    outcome, word = bench.judge(last, BROKEN)

    assert isinstance(outcome, Rejected)
    assert word is None


@pytest.mark.parametrize("kind", ["bad_data", "error"])
def test_the_last_attempt_of_a_job_that_has_itself_to_blame_is_its_last(kind: str) -> None:
    bench = Bench()
    own_fault = Failed(ErrorRecord("KeyError", "no", kind))

    assert bench.judge(bench.admit(THRICE, attempts=2), own_fault) == (own_fault, None)


def test_the_last_attempt_is_the_last_where_others_have_come_through() -> None:
    bench = Bench()
    bench.report(bench.admit(THRICE), DONE)

    soon = bench.judge(bench.admit(THRICE, attempts=2), BROKEN)
    bench.wait(61)
    later = bench.judge(bench.admit(THRICE, attempts=2), BROKEN)

    assert soon == (BROKEN, None)
    assert isinstance(later.outcome, Rejected)


def test_a_job_that_has_one_attempt_only_has_one_attempt_only() -> None:
    bench = Bench()
    policy = resolve(Settings(), "task", {"breaker": Spec("smtp"), "retry": Retry(attempts=1)})

    assert bench.judge(bench.admit(policy), BROKEN) == (BROKEN, None)


def test_the_number_of_breakers_is_bounded_and_open_ones_go_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakers, "_MOST", 10)
    bench = Bench()
    policy = policy_of(Spec("http", consecutive=1, per_lane=True))
    bench.report(bench.admit(policy, "http/down"), BROKEN)

    for number in range(100):
        bench.admit(policy, f"http/{number}")
    kept = bench.admit(policy, "http/down", of=Gate("http/down"))
    for number in range(200):
        bench.report(bench.admit(policy, f"http/open-{number}"), BROKEN)

    assert isinstance(kept, Rejected)
    assert len(bench.breakers._views) == 10
