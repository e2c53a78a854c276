"""Logging: silent until asked. `configure` is for programs (the CLI), `enable` for applications with own sinks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TextIO

from loguru import logger

from taskflow.telemetry.lines import console_line, json_line
from taskflow.telemetry.listener import LOG_EVENTS, LogEvent, LogListener, announce

if TYPE_CHECKING:
    from loguru import Message, Record

__all__ = ["LOG_EVENTS", "LogEvent", "LogListener", "announce", "configure", "enable"]

# They tell every connection and every request at INFO, or DEBUG: not what a worker's log is for.
NOISY = ("aiohttp", "asyncio", "urllib3", "httpx", "httpcore", "botocore", "boto3", "redis", "psycopg", "hpack")

_BROKEN = "a log line could not be written"


def enable() -> None:
    """Let taskflow write to the loguru sinks of this application. After `import taskflow`, which silences it."""
    logger.enable("taskflow")


def configure(
    level: str = "INFO",
    format: Literal["json", "console"] = "json",  # noqa: A002 - the name of the setting
    stream: TextIO | None = None,
    *,
    color: bool | None = None,
) -> Callable[[], None]:
    """Write all logs of this process, of loguru and `logging`, to `stream` (stderr), and return what undoes it.

    `color` for the console: by default, if `stream` is a terminal. Sinks that the application has added stay.
    """
    while _undos:
        _undos[-1]()
    out = sys.stderr if stream is None else stream
    is_coloured = _is_terminal(out) if color is None else color
    to_text = json_line if format == "json" else partial(console_line, is_coloured=is_coloured)
    with suppress(ValueError):  # the application has removed it
        logger.remove(0)  # loguru's own, which prints the values of variables
    sink = logger.add(
        _Sink(out, to_text, _broken_json if format == "json" else _broken_console),
        level=level,
        format=_no_format,
        colorize=False,
        backtrace=False,
        diagnose=False,
        catch=True,
        enqueue=False,  # measured: slower for the caller, and loses lines on SIGKILL
    )
    take_back = _take_over_logging(logger.level(level).no)
    enable()
    _in_force.append((level, format))

    def undo() -> None:
        if undo in _undos:
            _undos.remove(undo)
            _in_force.clear()
            logger.remove(sink)
            take_back()

    _undos.append(undo)
    return undo


_undos: list[Callable[[], None]] = []  # at most one: there is one log of a process
_in_force: list[tuple[str, str]] = []  # what it was configured with


def in_force() -> tuple[str, str] | None:
    """Level and format of what `configure` writes now; None where the application has its own sinks."""
    return _in_force[0] if _in_force else None


def _no_format(_record: Record) -> str:
    return ""  # the sink makes the line: a template would be parsed anew for each


def _broken_json(record: Record) -> str:
    return f'{{"level":"{record["level"].name}","event":"log.broken","message":"{_BROKEN}"}}\n'


def _broken_console(record: Record) -> str:
    return f"{record['level'].name} {_BROKEN}\n"


class _Sink:
    """Writes lines. Never raises: loguru would print the whole record, secrets and all."""

    def __init__(self, out: TextIO, to_text: Callable[[Record], str], broken: Callable[[Record], str]) -> None:
        self._out = out
        self._to_text = to_text
        self._broken = broken

    def __call__(self, message: Message) -> None:
        record = message.record
        try:
            text = self._to_text(record)
        except Exception:  # noqa: BLE001 - the job goes on, and the line is not lost without a word
            text = self._broken(record)
        with suppress(OSError, ValueError):  # whoever read our lines has gone: there is nobody to tell
            encoding = getattr(self._out, "encoding", None) or "utf-8"
            self._out.write(text if text.isascii() else text.encode(encoding, "backslashreplace").decode(encoding))
            self._out.flush()


def _is_terminal(out: TextIO) -> bool:
    try:
        return out.isatty()
    except (AttributeError, ValueError):
        return False


# --- logging ---------------------------------------------------------

_STANDARD = frozenset({*logging.LogRecord("", 0, "", 0, "", (), None).__dict__, "message", "asctime", "taskName"})


_LEVELS = (
    (logging.CRITICAL, "CRITICAL"),
    (logging.ERROR, "ERROR"),
    (logging.WARNING, "WARNING"),
    (logging.INFO, "INFO"),
    (logging.DEBUG, "DEBUG"),
)


class _Intercept(logging.Handler):
    """Hands what is logged with `logging` to loguru, with its `extra`."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - `logging` would print the arguments
            message = _BROKEN
        extra = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        exception = record.exc_info if record.exc_info and record.exc_info[1] is not None else None
        theirs = logger.opt(exception=exception).patch(partial(_as_theirs, record)).bind(**extra)
        theirs.log(_level(record), message)


def _as_theirs(stdlib: logging.LogRecord, record: Any) -> None:
    record["name"] = stdlib.name
    record["function"] = stdlib.funcName
    record["line"] = stdlib.lineno


def _level(record: logging.LogRecord) -> str:
    """The loguru level at or below: `logging` allows any number."""
    return next((name for least, name in _LEVELS if record.levelno >= least), "TRACE")


def _take_over_logging(level: int) -> Callable[[], None]:
    """Route the root logger of `logging`, and warnings, to loguru. Returns what undoes it."""
    root = logging.getLogger()
    handlers, root_level = root.handlers[:], root.level
    root.handlers[:] = [_Intercept()]
    root.setLevel(level)
    quiet = [noisy for noisy in map(logging.getLogger, NOISY) if noisy.level == logging.NOTSET]
    for noisy in quiet:
        noisy.setLevel(max(level, logging.WARNING))
    logging.captureWarnings(capture=True)

    def take_back() -> None:
        root.handlers[:] = handlers
        root.setLevel(root_level)
        for noisy in quiet:
            noisy.setLevel(logging.NOTSET)
        logging.captureWarnings(capture=False)

    return take_back
