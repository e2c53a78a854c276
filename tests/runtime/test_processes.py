"""Jobs in child processes: what they know, what becomes of them, and that none of them outlives its worker."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from taskflow import CircuitBreaker, ConfigError, ErrorClass, JobFailed, Retry, TaskFlow
from taskflow.core import events
from taskflow.runtime.frames import Frame
from taskflow.runtime.processes import _command
from taskflow.telemetry.context import bind_correlation_id
from tests.runtime import handlers, unimportable
from tests.runtime.fleet import Fleet
from tests.runtime.made import heard, make_flow, put

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.brokers.base import JobInfo
    from taskflow.testing import TestFlow

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
LIMIT_S = 30.0


async def until(is_so: Callable[[], bool], *, turn_s: float = 0.005) -> None:
    end = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < end
        await asyncio.sleep(turn_s)


def is_there(pid: int) -> bool:
    """Whether there is such a process, be it a zombie."""
    return Path(f"/proc/{pid}").exists()


def is_alive(pid: int) -> bool:
    """Whether it runs: a zombie that init has not looked at yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def written(file: Path) -> int:
    """The pid that a handler writes into `file`."""
    await until(lambda: pid_in(file) != 0)
    return pid_in(file)


def pid_in(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


async def info(t: Any, job_id: str) -> JobInfo:
    found = await t.broker.show(job_id)
    assert found is not None
    return found  # type: ignore[no-any-return]


async def after_one_attempt(
    fn: Callable[..., Any], *args: Any, flow: TaskFlow | None = None, **policies: Any
) -> tuple[JobInfo, int]:
    """The job of a handler after its first attempt, and the result of another in the same worker."""
    flow = flow or make_flow()
    task = flow.task(isolation="process", **policies)(fn)
    next_task = flow.task(isolation="process")(handlers.double)
    async with flow.test() as t:
        job = await task.submit(*args)
        await t.run_until_idle()
        found = await info(t, job.id)
        next_job = await next_task.submit(21)
        await t.run_until_idle()
        return found, await next_job.result(0)


# --- what a handler gets, and gives --------------------------------------


async def test_arguments_and_results_are_validated_in_the_process_as_in_the_worker() -> None:
    flow = make_flow()
    mirrored = flow.task(isolation="process")(handlers.mirrored)

    async with flow.test() as t:
        job = await mirrored.submit(handlers.Point(x=1, y=2))
        await t.run_until_idle()

        assert await job.result(0) == handlers.Point(x=2, y=1)


async def test_a_handler_knows_its_job_and_runs_in_the_main_thread_of_another_process() -> None:
    flow = make_flow()
    task = flow.task(isolation="process", timeout=40, lane=lambda: "tenant")(handlers.where_am_i)
    pid = flow.task(isolation="process")(handlers.pid)

    async with flow.test() as t:
        with bind_correlation_id("request-1"):
            job = await task.submit()
        pid_job = await pid.submit()
        await t.run_until_idle()

        assert await job.result(0) == {
            "id": job.id,
            "task": "where_am_i",
            "attempt": 1,
            "lane": "tenant",
            "token": True,
            "left": True,
            "cid": ["request-1", "request-1"],
            "main": True,
            "checkpoint": None,
        }
        assert await pid_job.result(0) != os.getpid()


async def test_progress_and_checkpoints_reach_the_broker_and_the_next_attempt() -> None:
    flow = make_flow()
    task = flow.task(isolation="process", retry=Retry(jitter="none", base=5))(handlers.note)

    async with flow.test() as t:
        job = await task.submit()
        await t.run_until_idle()
        progress = (await info(t, job.id)).progress
        await t.advance(5)
        await t.run_until_idle()

        assert progress == b'{"done":1}'
        assert await job.result(0) == {"offset": 42}


async def test_jobs_follow_each_other_in_one_warm_process() -> None:
    flow = make_flow()
    pid = flow.task(isolation="process")(handlers.pid)

    async with flow.test() as t:
        found = set()
        for _ in range(5):
            job = await pid.submit()
            await t.run_until_idle()
            found.add(await job.result(0))

    assert len(found) == 1


async def test_the_process_has_the_path_and_the_arguments_of_the_worker() -> None:
    flow = make_flow()
    task = flow.task(isolation="process")(handlers.arguments)

    async with flow.test() as t:
        job = await task.submit()
        await t.run_until_idle()

        assert await job.result(0) == [*sys.argv, *map(os.path.abspath, sys.path)]


async def test_a_process_that_is_told_to_stop_leaves_that_to_its_worker() -> None:
    flow = make_flow()
    task = flow.task(isolation="process")(handlers.be_told_to_stop)

    async with flow.test() as t:
        job = await task.submit()
        await t.run_until_idle()

        assert await job.result(0) == "still here"


# --- how it ends ------------------------------------------------------------


async def test_an_error_is_kept_with_its_own_stack_and_spends_an_attempt() -> None:
    job, after = await after_one_attempt(handlers.fail, "ValueError", "7 is odd")

    assert (job.state, job.attempts) == ("scheduled", 1)
    (error,) = job.errors
    assert (error.type, error.message, error.kind) == ("ValueError", "7 is odd", "bad_data")
    assert "in fail" in error.stack
    assert "taskflow/runtime" not in error.stack
    assert after == 42


@pytest.mark.parametrize(
    ("name", "retry", "is_retried"),
    [
        ("Jam", Retry(on=(handlers.OutOfPaper,)), True),
        ("jams", Retry(on=(ExceptionGroup,)), False),
        ("KeyboardInterrupt", Retry(), True),
        ("SystemExit", Retry(never=(handlers.OutOfPaper,)), True),
    ],
)
async def test_the_tasks_retry_decides_about_errors_of_the_process(name: str, retry: Retry, is_retried: bool) -> None:
    job, after = await after_one_attempt(handlers.fail, name, retry=retry)

    assert (job.state, job.attempts) == ("scheduled" if is_retried else "dead", 1)
    assert after == 42


async def test_the_words_of_a_handler_mean_the_same_in_a_process() -> None:
    later, _ = await after_one_attempt(handlers.fail, "RetryLater", retry=Retry(jitter="none"))
    gave_up, _ = await after_one_attempt(handlers.fail, "GiveUp")
    full, _ = await after_one_attempt(handlers.fail, "BulkheadFull")

    assert (later.state, later.attempts, later.due_at - later.submitted_at) == ("scheduled", 1, 30)
    assert (gave_up.state, gave_up.errors[0].kind, "in fail" in gave_up.errors[0].stack) == ("dead", "given_up", True)
    assert (full.state, full.attempts, full.reason, full.due_at - full.submitted_at) == (
        "scheduled",
        0,
        "bulkhead_full",
        7,
    )


@pytest.mark.parametrize(("never", "state"), [((), "scheduled"), ((ErrorClass.THROTTLED,), "dead")])
async def test_a_retry_after_in_a_process_holds_the_dependency_for_all(never: Any, state: str) -> None:
    flow = make_flow()
    policies: Any = {"breaker": CircuitBreaker("printer"), "retry": Retry(never=never)}
    task = flow.task(isolation="process", **policies)(handlers.throttle)

    async with flow.test() as t:
        job = await task.submit("30")
        await t.run_until_idle()
        found = await info(t, job.id)
        gates = {gate.name: gate.held_until for gate in await t.broker.gates()}

        assert (found.state, found.snoozes, found.errors[0].kind) == (state, state == "scheduled", "throttled")
        assert gates["printer"] == (t.clock.wall() + 30 if state == "scheduled" else 0)


async def test_a_snooze_in_a_process_holds_the_dependency_for_all() -> None:
    flow = make_flow()
    task = flow.task(isolation="process", breaker=CircuitBreaker("printer"))(handlers.fail)

    async with flow.test() as t:
        job = await task.submit("Snooze", "no paper")
        await t.run_until_idle()
        found = await info(t, job.id)
        (gate,) = await t.broker.gates()

        assert (found.state, found.attempts, found.snoozes) == ("scheduled", 0, 1)
        assert gate.name == "printer"
        assert gate.held_until == t.clock.wall() + 60


async def test_a_result_that_cannot_be_kept_is_an_error_of_the_job() -> None:
    flow = make_flow(retention={"result_max_bytes": 1_000})
    wrong, _ = await after_one_attempt(handlers.no_json)
    large, after = await after_one_attempt(handlers.large, 2_000, flow=flow)

    assert (wrong.state, wrong.errors[0].kind) == ("dead", "bad_result")
    assert (large.state, large.errors[0].kind) == ("dead", "bad_result")
    assert "at most 1,000 are kept" in large.errors[0].message
    assert after == 42


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("exit", "the process died with exit code 7"),
        ("kill", "the process died with signal SIGKILL: the system may be out of memory"),
        ("segfault", "the process died with signal SIGSEGV"),
    ],
)
async def test_a_process_that_dies_spends_an_attempt_and_the_worker_goes_on(how: str, message: str) -> None:
    flow = make_flow()
    died = heard(flow, events.ProcessDied)

    job, after = await after_one_attempt(handlers.die, how, flow=flow, retry=Retry(attempts=2))

    assert (job.state, job.attempts, job.lost) == ("scheduled", 1, 0)
    assert (job.errors[0].type, job.errors[0].message, job.errors[0].kind) == ("ProcessDied", message, "died")
    assert [event.how for event in died] == [message]
    assert after == 42


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (handlers.close_all_files, "the process died with exit code 1"),
        (handlers.babble, "the process sent the worker what is no frame"),
    ],
)
async def test_a_handler_that_breaks_the_pipe_loses_its_process_and_no_more(
    handler: Callable[..., Any], message: str
) -> None:
    job, after = await after_one_attempt(handler, retry=Retry(attempts=1))

    assert job.state == "dead"
    assert job.errors[0].message.startswith(message)
    assert after == 42


async def test_a_death_is_noticed_although_a_program_of_the_handler_holds_the_pipe(tmp_path: Path) -> None:
    job, after = await after_one_attempt(handlers.leave_a_program_and_die, str(tmp_path / "pid"))

    assert job.errors[0].message == "the process died with exit code 7"
    assert not is_alive(await written(tmp_path / "pid"))
    assert after == 42


# --- told to stop -------------------------------------------------------------


async def test_a_job_that_runs_out_of_time_is_killed_and_its_place_is_free(tmp_path: Path) -> None:
    flow = make_flow(worker={"children": 1})
    hang = flow.task(isolation="process", timeout=5, retry=Retry(attempts=1))(handlers.hang)
    double = flow.task(isolation="process")(handlers.double)

    async with flow.test() as t:
        job = await hang.submit(str(tmp_path / "pid"))
        pid = await written(tmp_path / "pid")
        await t.advance(5)
        state = await job.status()
        next_job = await double.submit(4)
        await _all_done(t, [next_job])
        found = await info(t, job.id)

        assert state == "dead"
        (error,) = found.errors
        assert (error.kind, error.message, error.stack) == ("timeout", "still running after its timeout of 5 s", "")
        assert await next_job.result(0) == 8
        assert not is_alive(pid)


async def test_what_a_handler_started_is_killed_with_it(tmp_path: Path) -> None:
    flow = make_flow()
    hang = flow.task(isolation="process", timeout=5)(handlers.hang_with_a_program)

    async with flow.test() as t:
        await hang.submit(str(tmp_path / "pid"))
        pid = await written(tmp_path / "pid")
        assert is_alive(pid)
        await t.advance(5)
        await until(lambda: not is_alive(pid))


@pytest.mark.parametrize("how", ["cancel", "shutdown", "lost"])
async def test_a_job_that_is_told_to_stop_is_killed(how: str, tmp_path: Path) -> None:
    def register(flow: TaskFlow) -> None:
        flow.task(name="task", isolation="process")(handlers.hang)

    fleet = Fleet(register, worker={"lease_s": 3})
    member = await fleet.start(concurrency=2, drain=0)
    payload = b'{"v":1,"args":{"file":"' + str(tmp_path / "pid").encode() + b'"}}'
    await put(fleet.broker, "a", payload=payload)
    pid = await written(tmp_path / "pid")

    if how == "cancel":
        await fleet.broker.cancel(["a"])
        await fleet.clock.advance(1.5)
    elif how == "shutdown":
        await member.stop()
    else:
        member.faults.cut("beat")
        await fleet.clock.advance(3)
    await until(lambda: not is_alive(pid))

    job = await info(fleet, "a")
    assert job.state != "dead"
    assert (job.attempts, job.errors) == (0, ())
    await fleet.stop()


# --- none is left behind --------------------------------------------------------


async def test_a_child_whose_worker_died_meanwhile_ends_with_a_line_of_the_log() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = await asyncio.create_subprocess_exec(
            *_command(theirs.fileno()), pass_fds=(theirs.fileno(),), stderr=asyncio.subprocess.PIPE
        )
        of_another = {"worker": child.pid, "argv": [], "memory_bytes": None, "cpu_s": None, "log": ("INFO", "json")}
        ours.sendall(Frame(of_another).dump())

        _, err = await child.communicate()

    assert child.returncode == 1
    (line,) = [json.loads(line) for line in err.splitlines()]
    assert (line["event"], line["worker_pid"]) == ("worker.gone", child.pid)


async def test_a_worker_that_has_stopped_leaves_no_process() -> None:
    flow = make_flow(worker={"children": 2})
    pid = flow.task(isolation="process")(handlers.pid)

    async with flow.worker(concurrency=4):
        jobs = await pid.submit_many([pid.call() for _ in range(20)])
        pids = {await job.result(LIMIT_S) for job in jobs}

    assert 1 <= len(pids) <= 2
    assert not any(map(is_there, pids))


WORKER = """
import asyncio, sys
from pathlib import Path
from taskflow import Settings, TaskFlow
from taskflow.settings import BrokerSettings
from tests.runtime import handlers, unimportable

flow = TaskFlow(settings=Settings(broker=BrokerSettings(url="memory://"), worker={"children": 3}))
hang = flow.task(isolation="process")(handlers.hang)
hang_hard = flow.task(isolation="process")(handlers.hang_hard)
pid = flow.task(isolation="process")(handlers.pid)

async def main(folder):
    async with flow.worker():
        await hang.submit(f"{folder}/hangs")
        await hang_hard.submit(f"{folder}/hangs-hard")
        job = await pid.submit()
        Path(folder, "idle").write_text(str(await job.result(30)))
        await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
"""


async def test_no_process_outlives_a_worker_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    worker = await asyncio.create_subprocess_exec(sys.executable, script, tmp_path, env=environment)
    try:
        pids = {await written(tmp_path / name) for name in ("idle", "hangs", "hangs-hard")}
        assert all(map(is_alive, pids))
    finally:
        worker.kill()
        await worker.wait()

    await until(lambda: not any(map(is_alive, pids)))


async def test_a_process_that_was_idle_for_a_minute_ends() -> None:
    flow = make_flow()
    pid = flow.task(isolation="process")(handlers.pid)

    async with flow.test() as t:
        job = await pid.submit()
        await t.run_until_idle()
        first = await job.result(0)
        await t.advance(59)
        assert is_alive(first)
        await t.advance(1)
        await until(lambda: not is_alive(first))


async def test_a_process_is_replaced_after_so_many_jobs() -> None:
    flow = make_flow(worker={"child_jobs": 2, "children": 1})
    pid = flow.task(isolation="process")(handlers.pid)

    async with flow.test() as t:
        pids = []
        for _ in range(4):
            job = await pid.submit()
            await _all_done(t, [job])
            pids.append(await job.result(0))

    assert pids[0] == pids[1] != pids[2] == pids[3]


# --- scripts, logs --------------------------------------------------------------

SCRIPT = """
import asyncio, sys
from loguru import logger
from taskflow import Retry, Settings, TaskFlow
from taskflow.settings import BrokerSettings
from taskflow.telemetry.context import bind_correlation_id

flow = TaskFlow(settings=Settings(broker=BrokerSettings(url="memory://"), log={"format": "json"}))

class Jam(Exception):
    pass

@flow.task(isolation="process", retry=Retry(attempts=2, on=(Jam,), base=0))
def work(name: str) -> str:
    from taskflow import current_job
    print("printed", name, __name__)
    logger.info("logged")
    if current_job().attempt == 1:
        raise Jam("once")
    return name

async def main():
    flow.configure_logs()
    async with flow.worker():
        with bind_correlation_id("request-1"):
            job = await work.submit("ada")
        print("result", await job.result(30))
"""
GUARDED = (
    SCRIPT
    + """
if __name__ == "__main__":
    asyncio.run(main())
"""
)
UNGUARDED = (
    SCRIPT
    + """
asyncio.run(main())
"""
)


async def run_script(text: str, folder: Path, *, as_module: bool = False) -> tuple[str, str]:
    """What it writes to stdout and stderr."""
    (folder / "some_script.py").write_text(text)
    arguments = ["-m", "some_script"] if as_module else ["some_script.py"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", *arguments),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return out.decode(), err.decode()


@pytest.mark.parametrize("as_module", [False, True])
async def test_functions_and_errors_of_a_script_are_found(as_module: bool, tmp_path: Path) -> None:
    out, err = await run_script(GUARDED, tmp_path, as_module=as_module)

    name = "some_script" if as_module else "__mp_main__"
    assert sorted(out.splitlines()) == [f"printed ada {name}", f"printed ada {name}", "result ada"]
    logged = [line for line in map(json.loads, err.splitlines()) if line["message"] == "logged"]
    assert {(line["correlation_id"], line["task"], line["queue"]) for line in logged} == {
        ("request-1", "work", "default")
    }
    assert [line["attempt"] for line in logged] == [1, 2]


async def test_a_script_that_runs_as_soon_as_it_is_imported_is_told_so(tmp_path: Path) -> None:
    out, err = await run_script(UNGUARDED, tmp_path)

    assert "printed" not in out
    assert 'put what it runs under `if __name__ == "__main__":`' in err


# --- bounds -----------------------------------------------------------------


async def test_memory_beyond_the_limit_is_an_error_of_the_job() -> None:
    flow = make_flow(worker={"child_memory_bytes": 2**30})

    job, after = await after_one_attempt(handlers.allocate, 2**31, flow=flow)

    assert (job.state, job.errors[0].type) == ("scheduled", "MemoryError")
    assert "in allocate" in job.errors[0].stack
    assert after == 42


async def test_cpu_time_is_limited_for_each_job_and_not_for_the_process() -> None:
    flow = make_flow(worker={"child_cpu_s": 1, "children": 1})
    spin = flow.task(isolation="process", retry=Retry(attempts=1))(handlers.spin)

    async with flow.worker():
        used = [await (await spin.submit(0.7)).result(LIMIT_S) for _ in range(3)]
        with pytest.raises(JobFailed, match="SIGXCPU: it used up TASKFLOW_WORKER__CHILD_CPU_S"):
            await (await spin.submit(600)).result(LIMIT_S)

    assert used[-1] > 2


async def test_jobs_that_find_all_processes_busy_wait_and_spend_no_attempt(tmp_path: Path) -> None:
    flow = make_flow(worker={"children": 1})
    hang = flow.task(isolation="process", timeout=30, retry=Retry(attempts=1))(handlers.hang)
    double = flow.task(isolation="process", retry=Retry(attempts=1))(handlers.double)

    async with flow.test() as t:
        await hang.submit(str(tmp_path / "pid"))
        await written(tmp_path / "pid")
        jobs = await double.submit_many([double.call(number) for number in range(3)])
        await t.advance(10.1)
        found = [await info(t, job.id) for job in jobs]
        await t.advance(20)
        await _all_done(t, jobs)

        assert {(job.attempts, job.lost) for job in found} == {(0, 0)}
        assert {job.reason for job in found if job.state == "scheduled"} == {"processes_busy"}
        assert [await job.result(0) for job in jobs] == [0, 2, 4]


async def test_a_system_without_processes_spends_no_attempts_and_is_not_asked_in_a_spin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flow = make_flow()
    double = flow.task(isolation="process", retry=Retry(attempts=1))(handlers.double)
    settled = heard(flow, events.JobSettled)

    async with flow.test() as t:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", "/no/such/python")
            jobs = await double.submit_many([double.call(number) for number in range(3)])
            await t.advance(60)
        assert 3 <= len(settled) <= 3 * 60 / 5
        await _all_done(t, jobs)

        assert [await job.result(0) for job in jobs] == [0, 2, 4]
        assert t.running.worker._processes.places.taken == 0


async def test_a_module_that_cannot_be_imported_is_an_error_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIMPORTABLE", "raises")

    job, after = await after_one_attempt(unimportable.work)

    assert (job.state, job.attempts) == ("scheduled", 1)
    assert (job.errors[0].type, job.errors[0].message) == ("RuntimeError", "no licence on this machine")
    assert "unimportable.py" in job.errors[0].stack
    assert after == 42


async def test_a_module_that_is_never_imported_to_its_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIMPORTABLE", "hangs")
    flow = make_flow()
    work = flow.task(isolation="process", timeout=1, retry=Retry(attempts=1))(unimportable.work)

    async with flow.test() as t:
        job = await work.submit()
        end = time.monotonic() + LIMIT_S
        while await job.status() != "dead":
            assert time.monotonic() < end
            await t.advance(1)
            await asyncio.sleep(0.01)
        (error,) = (await info(t, job.id)).errors

    assert error.message == "the process did not import tests.runtime.unimportable within 60 s, and was killed"
    assert t.clock.now() >= 60


async def test_a_start_that_takes_long_counts_against_no_timeout() -> None:
    flow = make_flow()
    double = flow.task(isolation="process", timeout=2, retry=Retry(attempts=1))(handlers.double)

    async with flow.test() as t:
        job = await double.submit(21)
        await t.advance(30)
        await _all_done(t, [job])

        assert await job.result(0) == 42


async def _all_done(t: TestFlow, jobs: list[Any]) -> None:
    """Processes keep their own time: turn by turn until all have succeeded."""
    end = time.monotonic() + LIMIT_S
    while {await job.status() for job in jobs} != {"succeeded"}:
        assert time.monotonic() < end
        await t.run_until_idle()
        await t.advance(1)


# --- registering ----------------------------------------------------------------


def local_function() -> Callable[..., Any]:
    def local() -> None:
        pass

    return local


async def coroutine() -> None:
    pass


@pytest.mark.parametrize(
    ("fn", "isolation", "message"),
    [
        (lambda: None, "process", "is a lambda, or defined within a function"),
        (local_function(), "process", "is a lambda, or defined within a function"),
        (coroutine, "process", "isolation='process' is for plain functions"),
        (coroutine, "thread", "isolation='thread' is for plain functions"),
        (handlers.double, "fork", "isolation= takes 'thread' or 'process', got 'fork'"),
    ],
)
async def test_a_function_that_cannot_run_in_a_process_is_refused_when_it_is_registered(
    fn: Callable[..., Any], isolation: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_flow().task(name="task", isolation=isolation)(fn)


async def test_a_worker_does_not_start_when_a_process_would_find_another_function() -> None:
    flow = make_flow()
    flow.task(isolation="process")(handlers.registered_impostor)

    with pytest.raises(ConfigError, match=r"impostor in module tests.runtime.handlers is not the function"):
        async with flow.worker():
            pass
