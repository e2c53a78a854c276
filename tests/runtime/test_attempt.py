"""What becomes of a job after each thing that a handler can do, and what a handler can know of its job."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import aiohttp
import pytest

from taskflow import (
    BrokerUnavailable,
    Bulkhead,
    BulkheadFull,
    CircuitBreaker,
    CircuitOpen,
    GiveUp,
    JobExpired,
    JobFailed,
    JobNotFound,
    PayloadError,
    RateLimited,
    Retry,
    RetryLater,
    Snooze,
    StaleClaim,
    TaskFlow,
    current_job,
)
from taskflow.core import events
from taskflow.telemetry.context import bind_correlation_id
from taskflow.testing import TestFlow, all_blocked
from tests.runtime.fleet import Fleet
from tests.runtime.made import heard, make_flow, put

if TYPE_CHECKING:
    from taskflow.brokers.base import JobInfo

pytestmark = pytest.mark.anyio


async def info(t: Any, job_id: str) -> JobInfo:
    found = await t.broker.show(job_id)
    assert found is not None
    return found  # type: ignore[no-any-return]


async def after_one_attempt(raises: BaseException, *, flow: TaskFlow | None = None, **policies: Any) -> JobInfo:
    """The job of a handler that raised this, after its first attempt."""
    flow = flow or make_flow()

    @flow.task(**policies)
    async def work() -> NoReturn:
        raise raises

    async with flow.test() as t:
        job = await work.submit()
        await t.run_until_idle()
        return await info(t, job.id)


# --- words of the handler ------------------------------------------------


async def test_an_error_spends_an_attempt_and_the_job_runs_again_after_its_backoff() -> None:
    job = await after_one_attempt(OSError("no route"))

    assert (job.state, job.attempts, job.snoozes) == ("scheduled", 1, 0)
    assert 0 < job.due_at - job.submitted_at <= 0.5
    (error,) = job.errors
    assert (error.attempt, error.type, error.message, error.kind) == (1, "OSError", "no route", "transient")
    assert "in work" in error.stack
    assert "raise raises" in error.stack


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(), "transient"),
        (ConnectionResetError(), "transient"),
        (aiohttp.ClientConnectionError(), "transient"),
        (ValueError(), "bad_data"),
        (KeyError("x"), "bad_data"),
        (ZeroDivisionError(), "bad_data"),
        (RuntimeError(), "error"),
        (ExceptionGroup("two", [OSError(), TimeoutError()]), "transient"),
        (ExceptionGroup("two", [OSError(), ValueError()]), "error"),
    ],
)
async def test_the_kind_tells_bad_data_from_infrastructure_on_fire(error: Exception, kind: str) -> None:
    job = await after_one_attempt(error)

    assert [one.kind for one in job.errors] == [kind]


async def test_an_error_that_retry_does_not_cover_is_the_end() -> None:
    job = await after_one_attempt(KeyError("x"), retry=Retry(attempts=5, on=(OSError,)))

    assert (job.state, job.attempts) == ("dead", 1)


async def test_the_last_attempt_is_the_end_and_no_attempt_is_over_the_limit() -> None:
    flow = make_flow()
    runs: list[int] = []

    @flow.task(retry=Retry(attempts=4))
    async def work() -> None:
        runs.append(current_job().attempt)
        raise OSError("no route")

    async with flow.test() as t:
        job = await work.submit()
        await t.advance(60)

        assert runs == [1, 2, 3, 4]
        with pytest.raises(JobFailed, match="OSError: no route") as failed:
            await job.result(0)
        assert "in work" in failed.value.__notes__[0]
        assert [error.attempt for error in (await info(t, job.id)).errors] == [1, 2, 3, 4]


async def test_retry_later_spends_an_attempt_and_waits_as_long_as_it_says() -> None:
    job = await after_one_attempt(RetryLater(90, "the file is not there yet"))

    assert (job.state, job.attempts) == ("scheduled", 1)
    assert job.due_at - job.submitted_at == 90
    assert job.errors[0].message == "the file is not there yet"


async def test_retry_later_on_the_last_attempt_is_the_end() -> None:
    job = await after_one_attempt(RetryLater(90), retry=Retry(attempts=1))

    assert job.state == "dead"


async def test_snooze_spends_no_attempt() -> None:
    job = await after_one_attempt(Snooze(60, "not today"), retry=Retry(attempts=1))

    assert (job.state, job.attempts, job.snoozes, job.reason) == ("scheduled", 0, 1, "not today")
    assert job.due_at - job.submitted_at == 60


async def test_snooze_with_hold_closes_the_gate_for_all_jobs_that_need_it() -> None:
    flow = make_flow()
    runs: list[int] = []

    @flow.task(breaker=CircuitBreaker("smtp"))
    async def work(number: int) -> None:
        runs.append(number)
        if len(runs) == 1:
            raise Snooze(60, "421 try later", hold="smtp")

    async with TestFlow(flow, concurrency=1) as t:
        await work.submit_many([work.call(number) for number in range(5)])
        await t.advance(59)
        early = list(runs)
        await t.advance(2)

    assert early == [0]
    assert sorted(runs) == [0, 0, 1, 2, 3, 4]


async def test_a_hold_of_a_gate_that_the_job_does_not_have_is_said() -> None:
    job = await after_one_attempt(Snooze(60, "no", hold="smpt"), breaker=CircuitBreaker("smtp"))

    assert "no gate 'smpt'" in job.reason


async def test_what_a_handler_says_of_itself_is_kept_as_any_message() -> None:
    """Without secrets that show, not endless, and as text that every broker takes; an exception is a reason, too."""
    later = await after_one_attempt(RetryLater(1, "postgres://ada:hunter2@db/x"))
    snoozed = await after_one_attempt(Snooze(1, OSError("\ud800 password=hunter2")))  # type: ignore[arg-type]
    flow = make_flow()

    @flow.task(bulkhead=Bulkhead("smtp", 1))
    async def mail() -> None:
        raise Snooze(60, "\ud800" + "x" * 10_000, hold="smtp")

    async with flow.test() as t:
        await mail.submit()
        await t.run_until_idle()
        (gate,) = await t.broker.gates()

    assert later.errors[0].message == "postgres://***@db/x"
    assert snoozed.reason == "\\ud800 password=***"
    assert gate.reason.startswith("\\ud800xxx")
    assert len(gate.reason) < 2_100


async def test_give_up_is_the_end() -> None:
    job = await after_one_attempt(GiveUp("the account is closed"), retry=Retry(attempts=9))

    assert (job.state, job.attempts) == ("dead", 1)
    assert (job.errors[0].kind, job.errors[0].message) == ("given_up", "the account is closed")


@pytest.mark.parametrize("error", [CircuitOpen, BulkheadFull, RateLimited, BrokerUnavailable])
async def test_being_turned_away_inside_a_handler_spends_no_attempt(error: Any) -> None:
    job = await after_one_attempt(error("not now", retry_after_s=12.0), retry=Retry(attempts=1))

    assert (job.state, job.attempts, job.snoozes, job.reason) == ("scheduled", 0, 1, error.code)
    assert job.due_at - job.submitted_at == 12


async def test_a_retry_after_of_nothing_does_not_make_the_job_spin() -> None:
    job = await after_one_attempt(CircuitOpen("not now", retry_after_s=0.0))

    assert job.due_at - job.submitted_at >= 1


@pytest.mark.parametrize("error", [SystemExit(2), asyncio.CancelledError()])
async def test_what_would_end_a_program_ends_an_attempt(error: BaseException) -> None:
    job = await after_one_attempt(error)

    assert (job.state, job.attempts) == ("scheduled", 1)
    assert type(error).__name__ in job.errors[0].stack


async def test_an_exception_that_cannot_even_be_printed_is_kept() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    job = await after_one_attempt(Unprintable())

    assert job.state == "scheduled"
    assert "__str__ raised" in job.errors[0].message


async def test_text_that_no_database_keeps_is_made_text_that_each_does() -> None:
    job = await after_one_attempt(ValueError("half a pair \ud800 and a \0"))

    job.errors[0].message.encode()
    job.errors[0].stack.encode()
    assert "\0" not in job.errors[0].message + job.errors[0].stack


async def test_a_long_story_is_cut_and_its_newest_part_kept() -> None:
    def deep(levels: int) -> NoReturn:
        if levels:
            deep(levels - 1)
        raise ValueError("x" * 10_000)

    flow = make_flow()

    @flow.task
    async def work() -> None:
        try:
            deep(300)
        except ValueError as error:
            raise OSError("the newest") from error

    async with flow.test() as t:
        job = await work.submit()
        await t.run_until_idle()
        (error,) = (await info(t, job.id)).errors

    assert len(error.stack) < 17_000
    assert error.stack.rstrip().endswith("the newest")


# --- results -------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "words"), [(object(), "no JSON"), ("x" * 2_000_000, "at most 1,048,576"), ({1, object()}, "no JSON")]
)
async def test_a_result_that_cannot_be_kept_is_the_end_and_says_why(result: object, words: str) -> None:
    flow = make_flow()

    @flow.task
    async def work() -> Any:
        return result

    async with flow.test() as t:
        job = await work.submit()
        await t.run_until_idle()
        found = await info(t, job.id)

        assert found.state == "dead"
        assert found.errors[0].kind == "bad_result"
        assert words in found.errors[0].message


# --- time ----------------------------------------------------------------


async def test_a_handler_that_runs_out_of_time_is_cancelled_and_its_stack_kept() -> None:
    flow = make_flow()

    async def deep_inside() -> None:
        await flow.clock.sleep(100)

    @flow.task(timeout=30)
    async def work() -> None:
        await deep_inside()

    async with flow.test() as t:
        job = await work.submit()
        await t.advance(30)
        found = await info(t, job.id)

        assert (found.state, found.attempts) == ("scheduled", 1)
        assert (found.errors[0].type, found.errors[0].kind) == ("TimeoutError", "timeout")
        assert "30 s" in found.errors[0].message
        assert "deep_inside" in found.errors[0].stack


async def test_debris_of_the_cancellation_does_not_hide_the_timeout() -> None:
    flow = make_flow()

    @flow.task(timeout=30, retry=Retry(attempts=2, on=(TimeoutError,)))
    async def work() -> None:
        try:
            await flow.clock.sleep(100)
        finally:
            raise RuntimeError("session is closed")

    async with flow.test() as t:
        job = await work.submit()
        await t.advance(30)
        found = await info(t, job.id)

        assert found.state == "scheduled"  # a timeout is worth another attempt, whatever broke in its wake
        assert found.errors[0].kind == "timeout"
        assert "session is closed" in found.errors[0].stack


async def test_retry_decides_about_timeouts_too() -> None:
    flow = make_flow()

    @flow.task(timeout=30, retry=Retry(attempts=5, never=(TimeoutError,)))
    async def work() -> None:
        await flow.clock.sleep(100)

    async with flow.test() as t:
        job = await work.submit()
        await t.advance(30)

        assert await job.status() == "dead"


async def test_a_word_of_the_handler_counts_even_when_it_was_stopped() -> None:
    flow = make_flow()

    @flow.task(timeout=30)
    async def work() -> None:
        try:
            await flow.clock.sleep(100)
        except asyncio.CancelledError:
            raise Snooze(60, "half done") from None

    async with flow.test() as t:
        job = await work.submit()
        await t.advance(30)
        found = await info(t, job.id)

        assert (found.attempts, found.snoozes, found.reason) == (0, 1, "half done")


async def test_the_deadline_ends_a_job_that_runs_and_no_attempt_outlives_it() -> None:
    flow = make_flow()
    left: list[float] = []

    @flow.task(timeout=30, deadline=45, retry=Retry(attempts=9, base=1, jitter="none"))
    async def work() -> None:
        left.append(current_job().remaining_s())
        await flow.clock.sleep(100)

    async with flow.test() as t:
        job = await work.submit()
        await t.advance(44)
        running = await job.status()
        await t.advance(2)

        assert running == "running"
        with pytest.raises(JobExpired):
            await job.result(0)
        assert left == [30, 14]


async def test_a_job_whose_deadline_passes_while_it_waits_never_starts() -> None:
    flow = make_flow()
    runs: list[int] = []

    @flow.task
    async def blocks() -> None:
        await flow.clock.sleep(20)

    @flow.task(deadline=10)
    async def work() -> None:
        runs.append(1)

    async with TestFlow(flow, concurrency=1) as t:
        await blocks.submit()
        job = await work.submit()
        await t.advance(30)

        assert await job.status() == "expired"
    assert runs == []


async def test_snoozes_end_with_the_longest_wait() -> None:
    flow = make_flow()

    @flow.task(max_wait=100)
    async def work() -> None:
        raise Snooze(30)

    async with flow.test() as t:
        job = await work.submit()
        await t.advance(130)
        found = await info(t, job.id)

        assert (found.state, found.attempts) == ("expired", 0)
        assert found.snoozes in (3, 4)


async def test_the_longest_wait_does_not_cut_short_a_job_that_runs() -> None:
    flow = make_flow()

    @flow.task(max_wait=10, timeout=100)
    async def work() -> str:
        await flow.clock.sleep(50)
        return "done"

    async with flow.test() as t:
        job = await work.submit()
        await t.advance(60)

        assert await job.result(0) == "done"


# --- jobs that do not fit ------------------------------------------------


async def test_an_unknown_task_waits_ever_longer_for_the_deploy_that_knows_it() -> None:
    def register(flow: TaskFlow) -> None:
        @flow.task(name="another")
        async def another() -> None: ...

    fleet = Fleet(register)
    member = await fleet.start()
    unknown = heard(member.flow, events.TaskUnknown)
    await put(fleet.broker, "a")

    await fleet.clock.advance(5 + 10 + 20 + 40 + 80 + 160 + 300 + 300)

    waits = [event.retry_after_s for event in unknown]
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    found = await fleet.broker.show("a")
    assert found is not None
    assert (found.state, found.attempts, found.reason) == ("scheduled", 0, "unknown_task")
    await fleet.stop()


@pytest.mark.parametrize(
    ("payload", "state", "kind"),
    [
        (b'{"v":1,"args":{"removed":1}}', "dead", "bad_payload"),
        (b'{"v":1,"args":{"number":"no"}}', "dead", "bad_payload"),
        (b'{"v":1,"args":{}}', "dead", "bad_payload"),
        (b"no JSON", "dead", "bad_payload"),
        (b'{"v":1,"args":{"number":1},"opt":{"timeout":"no"}}', "dead", "bad_payload"),
        (b'{"v":1,"args":{"number":1},"opt":{"retry":[1]}}', "dead", "bad_payload"),
        (b'{"v":1,"args":{"number":1},"opt":{"retry":["a",1,1,1,"full"]}}', "dead", "bad_payload"),
        (b'{"v":1,"args":{"number":1},"opt":{"retry":[3,[],1,1,"full"]}}', "dead", "bad_payload"),
        (b'{"v":1,"args":{"number":1},"surprise":1}', "dead", "bad_payload"),
        (b'{"v":2,"arguments":[1]}', "scheduled", None),
        (b'{"v":2,"args":{"number":1}}', "scheduled", None),
    ],
)
async def test_a_payload_that_does_not_fit_is_buried_and_one_from_the_future_waits(
    payload: bytes, state: str, kind: str | None
) -> None:
    runs: list[int] = []

    def register(flow: TaskFlow) -> None:
        @flow.task(name="task")
        async def work(number: int) -> None:
            runs.append(number)

    fleet = Fleet(register)
    await fleet.start()
    await put(fleet.broker, "a", payload=payload)
    await all_blocked()

    found = await fleet.broker.show("a")
    assert found is not None
    assert (found.state, found.attempts) == (state, 0)
    assert [error.kind for error in found.errors] == ([] if kind is None else [kind])
    assert runs == []
    await fleet.stop()


# --- what a handler knows ------------------------------------------------


async def test_a_handler_knows_its_job() -> None:
    flow = make_flow()
    known: dict[str, Any] = {}

    @flow.task(queue="mail", timeout=30, lane=lambda to: to.partition("@")[2], breaker=CircuitBreaker("smtp"))
    async def work(to: str) -> None:
        job = current_job()
        known.update(
            id=job.id, task=job.task, queue=job.queue, lane=job.lane, gates=job.gates, attempt=job.attempt,
            token=job.token, left=job.remaining_s(), cid=job.correlation_id,
        )  # fmt: skip

    async with flow.test() as t:
        job = await work.submit("ada@example.org")
        await t.run_until_idle()

    assert known.pop("token") >= 1
    assert known == {
        "id": job.id,
        "task": "work",
        "queue": "mail",
        "lane": "example.org",
        "gates": ("smtp",),
        "attempt": 1,
        "left": 30,
        "cid": job.id,
    }


async def test_a_sync_handler_knows_its_job_in_its_thread() -> None:
    flow = make_flow()

    @flow.task
    def work() -> tuple[str, bool]:
        return current_job().id, threading.current_thread() is threading.main_thread()

    async with flow.test() as t:
        job = await work.submit()
        await t.run_until_idle()

        assert await job.result(0) == (job.id, False)


async def test_outside_a_job_there_is_none() -> None:
    with pytest.raises(LookupError, match="inside a handler"):
        current_job()


async def test_a_child_job_inherits_the_correlation_id_of_the_request_behind_its_parent() -> None:
    flow = make_flow()
    seen: dict[str, str] = {}

    @flow.task
    async def child() -> None:
        seen["child"] = current_job().correlation_id

    @flow.task
    def grandparent() -> None:
        seen["grandparent"] = current_job().correlation_id

    @flow.task
    async def parent() -> None:
        seen["parent"] = current_job().correlation_id
        await child.submit()

    async with flow.test() as t:
        with bind_correlation_id("request-7"):
            await parent.submit()
            await grandparent.options(correlation_id="said-so").submit()
        own = await child.submit()
        await t.broker.cancel([own.id])
        await t.run_until_idle()

    assert seen == {"parent": "request-7", "child": "request-7", "grandparent": "said-so"}


async def test_a_checkpoint_is_handed_to_the_next_attempt_and_progress_to_whoever_looks() -> None:
    flow = make_flow()
    found: list[Any] = []

    @flow.task
    async def work() -> None:
        job = current_job()
        found.append(job.last_checkpoint)
        await job.progress({"done": 5, "of": 10})
        await job.checkpoint({"offset": 42})
        if job.attempt == 1:
            raise OSError("no route")

    async with flow.test() as t:
        job = await work.submit()
        await t.run_until_idle()
        progress = (await info(t, job.id)).progress
        await t.advance(1)

    assert found == [None, {"offset": 42}]
    assert progress == b'{"done":5,"of":10}'


async def test_progress_and_checkpoints_wait_through_an_outage() -> None:
    flow = make_flow()

    @flow.task(retry=Retry(attempts=1))
    async def work() -> str:
        await current_job().progress(1)
        return "done"

    async with flow.test() as t:
        t.faults.cut("note")
        job = await work.submit()
        await t.advance(60)
        t.faults.mend()
        t.faults.lose_reply("note")
        await t.advance(10)

        assert await job.result(0) == "done"


async def test_the_note_of_a_claim_that_is_lost_is_refused_and_changes_nothing() -> None:
    flow = make_flow()
    raised: list[BaseException] = []

    @flow.task
    async def work() -> None:
        try:
            await flow.clock.sleep(2)
            await current_job().checkpoint("late")
        except StaleClaim as error:
            raised.append(error)

    async with flow.test() as t:
        await t.advance(5)  # only now is this worker a judge of who is dead
        job = await work.submit()
        await all_blocked()
        await t.broker.leave(t.running.worker.name)
        await t.broker.pause("default")
        t.faults.cut("beat")
        await t.advance(3)

        assert [error.code for error in raised if isinstance(error, StaleClaim)] == ["stale_claim"]
        assert await job.status() == "ready"


async def test_notes_are_json_and_small() -> None:
    flow = make_flow()
    raised: list[str] = []

    @flow.task
    async def work() -> None:
        for state in (object(), "x" * 300_000):
            with pytest.raises(PayloadError) as error:
                await current_job().progress(state)
            raised.append(str(error.value))

    async with flow.test() as t:
        job = await work.submit()
        await t.run_until_idle()

        assert await job.status() == "succeeded"
    assert "must be JSON" in raised[0]
    assert "at most 262,144" in raised[1]


async def test_a_sync_handler_that_raises_has_its_own_stack() -> None:
    flow = make_flow()

    @flow.task(retry=Retry(attempts=1))
    def work() -> None:
        raise ValueError("no")

    async with flow.test() as t:
        job = await work.submit()
        await t.run_until_idle()
        found = await info(t, job.id)

    assert (found.errors[0].type, found.errors[0].kind) == ("ValueError", "bad_data")
    assert "in work" in found.errors[0].stack


async def test_a_job_that_is_kept_no_longer_is_not_found() -> None:
    flow = make_flow(retention={"finished_s": 10.0, "result_s": 5.0})

    @flow.task
    async def work() -> int:
        return 1

    async with flow.test() as t:
        job = await work.submit()
        await t.run_until_idle()
        await t.advance(7)
        with pytest.raises(JobNotFound, match="kept no longer"):
            await job.result(0)
        await t.advance(10)
        with pytest.raises(JobNotFound):
            await job.result(0)
        with pytest.raises(JobNotFound):
            await job.status()
        with pytest.raises(JobNotFound):
            await job.cancel()
