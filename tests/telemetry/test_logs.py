"""Log lines: one JSON object each, with the job they belong to, whatever is logged and from wherever."""

from __future__ import annotations

import asyncio
import contextvars
import io
import json
import logging
import sys
import timeit
import warnings
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from loguru import logger

from taskflow.telemetry import logs
from taskflow.telemetry.context import bind_correlation_id, job_context
from tests.telemetry.made import Job, Log

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_JOB = {
    "correlation_id": "req-1",
    "trace_id": "a" * 32,
    "job_id": "0192",
    "task": "send",
    "queue": "mail",
    "lane": "example.org",
    "gate": "smtp",
    "attempt": 2,
}


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job()
    token = job_context.set(job)
    yield job
    job_context.reset(token)


def context_of(line: dict[str, Any]) -> dict[str, Any]:
    return {name: line.get(name) for name in IN_JOB}


def test_a_line_is_one_flat_object_with_its_fields_in_order(log: Log, job: Job) -> None:
    logger.bind(event="mail.sent", duration_s=0.25, size=12).info("mail sent")

    (line,) = log.records()
    assert list(line) == ["timestamp", "level", "event", "message", "logger", *IN_JOB, "duration_s", "size"]
    assert line["level"] == "INFO"
    assert line["event"] == "mail.sent"
    assert line["message"] == "mail sent"
    assert line["logger"] == __name__
    assert line["duration_s"] == 0.25
    assert context_of(line) == IN_JOB


def test_the_timestamp_is_utc_and_says_so(log: Log) -> None:
    logger.info("x")

    stamp = log.last()["timestamp"]
    assert stamp.endswith("Z")
    assert len(stamp) == len("2026-11-22T19:17:59.328996Z")
    assert abs(datetime.fromisoformat(stamp) - datetime.now(UTC)) < timedelta(minutes=1)


def test_the_job_reaches_the_lines_of_threads_and_of_logging(log: Log, job: Job) -> None:
    async def handler() -> None:
        logger.info("loguru")
        logging.getLogger("app.mail").info("stdlib %s", "too")
        await asyncio.create_task(asyncio.to_thread(logger.info, "loguru in a thread"))
        await asyncio.to_thread(logging.getLogger("app").info, "stdlib in a thread")
        run = contextvars.copy_context().run
        await asyncio.get_running_loop().run_in_executor(None, run, logger.info, "as the runtime runs threads")

    asyncio.run(handler())

    assert len(log.records()) == 5
    for line in log.records():
        assert context_of(line) == IN_JOB
    assert [line["message"] for line in log.records()][1] == "stdlib too"
    assert [line["logger"] for line in log.records()][1] == "app.mail"


def test_two_jobs_at_once_do_not_mix(log: Log) -> None:
    async def handler(name: str, turn: asyncio.Barrier) -> None:
        job_context.set(Job(job_id=name, correlation_id=f"req-{name}"))
        for _ in range(3):
            await turn.wait()
            logger.bind(mine=name).info("working")

    async def main() -> None:
        turn = asyncio.Barrier(2)
        await asyncio.gather(*(asyncio.create_task(handler(name, turn)) for name in "ab"))

    asyncio.run(main())

    assert len(log.records()) == 6
    assert all(
        line["job_id"] == line["mine"] and line["correlation_id"] == f"req-{line['mine']}" for line in log.records()
    )


def test_a_request_is_named_in_lines_outside_jobs(log: Log) -> None:
    with bind_correlation_id("req-7", parent=f"00-{'c' * 32}-{'d' * 16}-01"):
        logger.info("accepted")
    logger.info("idle")

    first, second = log.records()
    assert (first["correlation_id"], first["trace_id"]) == ("req-7", "c" * 32)
    assert "correlation_id" not in second


def test_an_exception_is_told_whole_without_local_variables(log: Log) -> None:
    def charge(card: str) -> None:
        password = "hunter2" + card
        raise ConnectionError("no answer from redis://app:hunter2@cache:6379/0") from ValueError(len(password))

    try:
        charge("4111-1111")
    except ConnectionError:
        logger.exception("payment failed")

    error = log.last()["error"]
    assert error["type"] == "ConnectionError"
    assert error["message"] == "no answer from redis://***@cache:6379/0"
    assert "in charge" in error["stack"]
    assert "ValueError: 16" in error["stack"]
    assert "4111" not in log.getvalue().replace('charge(\\"4111-1111\\")', "")  # the source line is not a value


def test_an_exception_of_logging_is_told_too(log: Log) -> None:
    try:
        {}["order"]
    except KeyError:
        logging.getLogger("app").exception("lookup failed")

    assert log.last()["error"]["type"] == "KeyError"
    assert log.last()["level"] == "ERROR"


def test_the_extra_of_logging_becomes_fields(log: Log) -> None:
    logging.getLogger("app").warning("paid", extra={"order": 5, "api_key": "hunter2"})

    assert log.last()["order"] == 5
    assert log.last()["api_key"] == "***"


def test_a_record_of_logging_that_cannot_be_formatted_shows_no_arguments(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = logging.Logger("app")  # noqa: LOG001 - not below the root, where pytest has a handler that raises
    theirs.addHandler(logging.getLogger().handlers[0])
    theirs.info("%d items", "hunter2")

    assert log.last()["message"] == "a log line could not be written"
    assert "hunter2" not in log.getvalue() + capsys.readouterr().err


def test_levels_of_logging_keep_their_rank(log: Log) -> None:
    for level in (10, 15, 20, 25, 30, 40, 50, 60):
        logging.getLogger("app").log(level, "x")

    ranks = ["DEBUG", "DEBUG", "INFO", "INFO", "WARNING", "ERROR", "CRITICAL", "CRITICAL"]
    assert [line["level"] for line in log.records()] == ranks


def test_warnings_are_lines(log: Log) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("deprecated", stacklevel=1)

    assert log.last()["logger"] == "py.warnings"


def test_noisy_libraries_are_heard_from_warning_on(log: Log) -> None:
    logging.getLogger("aiohttp.access").info("GET /metrics")
    logging.getLogger("asyncio").debug("using selector")
    logging.getLogger("aiohttp.server").warning("something is wrong")

    assert [line["message"] for line in log.records()] == ["something is wrong"]


def test_nobody_can_forge_the_head_of_a_line(log: Log) -> None:
    logger.bind(level="CRITICAL", message="all is well", timestamp="never", logger="root").info("the truth")

    line = log.last()
    assert (line["level"], line["message"], line["logger"]) == ("INFO", "the truth", __name__)
    assert line["extra_level"] == "CRITICAL"


def test_the_user_may_name_an_event_and_bind_what_we_name_too(log: Log, job: Job) -> None:
    logger.bind(task="subtask", lane=None).info("x")
    logger.info("y")

    first, second = log.records()
    assert (first["task"], first["lane"], first["event"]) == ("subtask", "example.org", "log")
    assert second["task"] == "send"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=st.text(), extras=st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())))
def test_any_message_and_extra_is_one_line_that_parses(log: Log, message: str, extras: dict[str, Any]) -> None:
    log.seek(0)
    log.truncate()

    logger.bind(**extras).info(message.replace("{", "(").replace("}", ")"))

    (line,) = log.getvalue().splitlines()
    assert log.getvalue().isascii()
    assert json.loads(line)["level"] == "INFO"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters()), key=st.text(min_size=1))
def test_no_text_breaks_out_of_its_line_on_the_console(console: Log, text: str, key: str) -> None:
    console.seek(0)
    console.truncate()

    logger.bind(**{key: text}).info(text)

    written = console.getvalue()
    assert written.endswith("\n")
    assert written[:-1].isprintable()


def test_a_forged_line_shows_as_what_it_is(console: Log) -> None:
    logger.info("login of ada\n12:00:00.000 ERROR    all is lost\x1b[2J")

    (line,) = console.lines()
    assert line.endswith("INFO     login of ada\\n12:00:00.000 ERROR    all is lost\\x1b[2J")


def test_the_console_shows_a_traceback_below_its_line(console: Log, job: Job) -> None:
    try:
        int("bad\nERROR fake", base=10)
    except ValueError:
        logger.exception("parsing failed")

    head, *stack = console.lines()
    assert "ERROR    parsing failed correlation_id=req-1" in head
    assert "error=ValueError: invalid literal" in head
    assert all(line.startswith("    | ") for line in stack)
    assert any("in test_the_console" in line for line in stack)


def test_the_console_has_colours_only_on_a_terminal() -> None:
    class Terminal(Log):
        def isatty(self) -> bool:
            return True

    written = []
    for stream in (Log(), Terminal()):
        undo = logs.configure("INFO", "console", stream)
        logger.warning("careful")
        undo()
        written.append("\x1b[" in stream.getvalue())

    assert written == [False, True]


def test_a_terminal_that_cannot_show_a_letter_still_shows_the_line() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    undo = logs.configure("INFO", "console", stream)
    logger.info("Grüße")
    undo()

    assert rb"Gr\xfc\xdfe" in stream.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_stream_that_is_gone_hurts_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    undo = logs.configure("INFO", "json", Gone())
    logger.bind(password="hunter2").info("x")
    undo()

    assert capsys.readouterr().err == ""


def test_a_line_that_cannot_be_made_is_replaced_and_leaks_nothing(
    log: Log, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        @property
        def job_id(self) -> str:
            raise ZeroDivisionError("hunter2")

    token = job_context.set(Broken())  # type: ignore[arg-type]
    logger.info("hunter2")
    job_context.reset(token)

    assert log.last() == {"level": "INFO", "event": "log.broken", "message": "a log line could not be written"}
    assert capsys.readouterr().err == ""


def test_the_level_decides_what_is_written() -> None:
    stream = Log()
    undo = logs.configure("WARNING", "json", stream)
    logger.info("quiet")
    logging.getLogger("app").info("quiet")
    logger.warning("loud")
    logging.getLogger("app").error("loud")
    undo()

    assert [line["message"] for line in stream.records()] == ["loud", "loud"]


def test_to_configure_again_replaces_the_last_one_and_undo_takes_it_back() -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    first, second = Log(), Log()
    logs.configure("INFO", "json", first)
    undo = logs.configure("INFO", "json", second)
    logger.info("x")
    undo()
    undo()
    logger.info("y")

    assert (len(first.lines()), len(second.lines())) == (0, 1)
    assert (root.handlers, root.level) == before


def test_the_sinks_of_the_application_stay() -> None:
    theirs: list[str] = []
    sink = logger.add(theirs.append, format="{message}")
    undo = logs.configure("INFO", "json", Log())
    logger.info("x")
    undo()
    logger.info("y")
    logger.remove(sink)

    assert theirs == ["x\n", "y\n"]


def test_embedded_it_is_silent_until_asked() -> None:
    script = """
import io, sys
from loguru import logger
out = io.StringIO()
logger.remove(); logger.add(out)
import taskflow
from taskflow.telemetry import logs
logs.announce("worker.started", worker="w1")
assert out.getvalue() == "", out.getvalue()
logs.enable()
logs.announce("worker.started", worker="w1")
assert "worker started" in out.getvalue()
"""
    import subprocess

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_line_costs_less_than_a_tenth_of_a_millisecond(job: Job) -> None:
    class Nowhere(io.StringIO):
        def write(self, text: str) -> int:
            return len(text)

    undo = logs.configure("INFO", "json", Nowhere())
    took_s = min(timeit.repeat(lambda: logger.info("working"), number=100, repeat=20)) / 100
    undo()

    assert took_s < 300e-6  # measured at 50 µs; the rest is for a loaded machine
