"""One log record as one line: flat JSON for machines, or words for people. No value can break out of its line."""

from __future__ import annotations

import json
import traceback
from datetime import UTC
from typing import TYPE_CHECKING, Any

from taskflow.telemetry.context import (
    correlation_id,
    current_correlation_id,
    current_traceparent,
    job_context,
    trace_id,
)
from taskflow.telemetry.redaction import clean, scrub, scrub_stack, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loguru import Record

OURS = "taskflow"  # the `logger` of event lines: they say themselves what they are about

CONTEXT = ("correlation_id", "trace_id", "job_id", "task", "queue", "lane", "gate", "attempt", "duration_s")
_HEAD = ("timestamp", "level", "message", "logger")  # nobody else may set these
_ELSEWHERE = frozenset({*_HEAD, "event", "error", *CONTEXT})
_MAX_EXTRAS = 50

_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), check_circular=False, allow_nan=False).encode


def fields(record: Record) -> dict[str, Any]:
    """What the line says, in its order. Empty fields are left out."""
    extra = record["extra"]
    said: dict[str, Any] = {
        "timestamp": record["time"].astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z",
        "level": record["level"].name,
        "event": scrub(text_of(extra.get("event", "log")), 100),
        "message": scrub(record["message"]),
        "logger": record["name"] or "",
    }
    around = {} if record["name"] == OURS else _surroundings()
    for name in CONTEXT:
        value = extra.get(name)
        if value is None:
            value = around.get(name)
        if value is not None and value != "":
            said[name] = clean(name, value)
    for name, value in list(extra.items())[:_MAX_EXTRAS]:
        if name not in _ELSEWHERE:
            said[name[:100]] = clean(name, value)
        elif name in _HEAD:
            said[f"extra_{name}"] = clean(name, value)
    error = _error(record, extra.get("error"))
    if error is not None:
        said["error"] = error
    return said


def json_line(record: Record) -> str:
    """The line as one flat JSON object, in ASCII: nothing in it can end the line or move a cursor."""
    return _encode(fields(record)) + "\n"


_COLOURS = {
    "WARNING": "\x1b[33m",
    "ERROR": "\x1b[31m",
    "CRITICAL": "\x1b[31;1m",
    "DEBUG": "\x1b[2m",
    "TRACE": "\x1b[2m",
}
_PLAIN = "\x1b[0m"


def console_line(record: Record, *, is_coloured: bool = False) -> str:
    """The line for people: time, level, message, what else is known; a traceback below it, indented."""
    said = fields(record)
    error = said.pop("error", None)
    level, message = said["level"], visible(said["message"])
    if is_coloured:
        colour = _COLOURS.get(level, "")
        head = f"{colour}{level:<8}{_PLAIN if colour else ''} {message}"
    else:
        head = f"{level:<8} {message}"
    words = [f"{record['time']:%H:%M:%S.%f}"[:12], head]
    for name, value in said.items():
        if name not in _HEAD and not (name == "event" and value == "log"):
            words.append(f"{visible(name)}={_word(value)}")
    if error is None:
        return " ".join(words) + "\n"
    kind = f" ({visible(error['kind'])})" if error.get("kind") else ""
    words.append(f"error={visible(text_of(error.get('type', '')))}: {visible(text_of(error.get('message', '')))}{kind}")
    stack = "".join(f"    | {visible(line)}\n" for line in text_of(error.get("stack", "")).splitlines())
    return " ".join(words) + "\n" + stack


def visible(text: str) -> str:
    """`text` with its control characters, line ends and direction marks written out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and (not text or any(c in text for c in ' "=')):
        text = json.dumps(text, ensure_ascii=False)
    return visible(text)


def _surroundings() -> Mapping[str, Any]:
    """The job in whose handler this is written, in its thread too; else the request."""
    job = job_context.get()
    if job is None:
        if correlation_id.get() is None:
            return {}
        return {"correlation_id": current_correlation_id(), "trace_id": trace_id(current_traceparent())}
    parent = current_traceparent()
    return {
        "correlation_id": current_correlation_id(),
        "trace_id": None if parent is None else trace_id(parent),
        "job_id": job.job_id,
        "task": job.task,
        "queue": job.queue,
        "lane": job.lane,
        "gate": ",".join(job.gates),
        "attempt": job.attempt,
    }


def _error(record: Record, bound: Any) -> dict[str, Any] | None:
    """The error of a line: the exception that was logged, or what was bound under that name."""
    caught = record["exception"]
    if caught is not None and caught.value is not None:
        bound = caught.value
    if bound is None:
        return None
    if isinstance(bound, BaseException):
        stack = "".join(traceback.format_exception(bound))
        return {"type": type(bound).__qualname__, "message": scrub(text_of(bound)), "stack": scrub_stack(stack)}
    if not isinstance(bound, dict):
        return {"message": clean("error", bound)}
    error = {text_of(name)[:100]: clean(text_of(name), value) for name, value in bound.items()}
    for name, cut in (("message", scrub), ("stack", scrub_stack)):
        if isinstance(bound.get(name), str):
            error[name] = cut(bound[name])
    return error
