"""Turns what a handler did into an outcome: the one place that looks at exceptions."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskflow.core.outcome import ErrorRecord, Failed, Interrupted, Invalid, Outcome, Overdue, Rejected, Succeeded
from taskflow.core.specs import ErrorClass
from taskflow.errors import BrokerUnavailable, PayloadError, TaskflowError
from taskflow.errors import Rejected as RejectedError
from taskflow.policies.classes import classify, known_class
from taskflow.policies.hints import asked_wait_s
from taskflow.runtime.control import GiveUp, RetryLater, Snooze
from taskflow.runtime.slot import CANCELLED, TIMEOUT
from taskflow.telemetry.redaction import scrub, scrub_stack

if TYPE_CHECKING:
    from taskflow.runtime.task import TaskDef

Covers = Callable[[BaseException, Callable[[BaseException], ErrorClass]], bool]  # as `Retry.covers`

_LEAST_SNOOZE_S = 0.1
_MAX_MESSAGE = 2_000  # characters
_OURS = str(Path(__file__).parent)
THROTTLED = "throttled"  # why a job waits whose dependency said: not now
_THROTTLED_S = 5.0  # where a dependency that counts our calls does not say when to come back
_REJECTED_S = 1.0  # where whoever turned the call away does not say when to come back
_NOTHING = Succeeded(None)


def succeeded(task: TaskDef, result: Any, *, max_bytes: int) -> Outcome:
    """The outcome of a handler that returned `result`."""
    if result is None:
        return _NOTHING
    try:
        data = task.codec.dump_result(result, max_bytes=max_bytes)
    except PayloadError as error:
        return Failed(ErrorRecord(type(error).__name__, str(error), "bad_result"), retryable=False)
    return tuple.__new__(Succeeded, (data,))  # as its constructor, which is one more call


def stopped(why: str, *, timeout_s: float, covers: Covers, error: BaseException | None = None) -> Outcome:
    """The outcome of a handler that was told to stop, and did. `error` shows where it was."""
    if why != TIMEOUT:
        return Interrupted(cancelled=why == CANCELLED)
    timeout = TimeoutError(f"still running after its timeout of {timeout_s:g} s")
    return Failed(
        ErrorRecord("TimeoutError", str(timeout), "timeout", "" if error is None else _stack(error)),
        retryable=covers(timeout, classify),
    )


def failed(error: BaseException, *, covers: Covers, wall: float) -> Outcome:
    """The outcome of a handler that raised `error`. `wall` is the time of a date in `Retry-After`, since 1970."""
    match error:
        case Snooze():
            # A snooze of nothing would have the job claimed again at once, and again.
            return Rejected(kept(error.reason), max(_LEAST_SNOOZE_S, error.seconds))
        case RetryLater():
            return Failed(
                ErrorRecord("RetryLater", kept(error.reason), "transient"),
                retry_after_s=error.seconds,
            )
        case GiveUp():
            return Failed(record(error, kind="given_up"), retryable=False)
        case RejectedError() | BrokerUnavailable():
            # A policy or a full queue turned the call away, or our own broker is gone: nothing is spent.
            return Rejected(error.code, error.retry_after_s or _REJECTED_S, record(error, kind="throttled"))
        case _:
            retryable = covers(error, classify)
            if retryable and (wait_s := _throttled_s(error, wall)):
                return Rejected(THROTTLED, wait_s, record(error, kind="throttled"))
            return Failed(record(error, kind=kind_of(error)), retryable=retryable)


def _throttled_s(error: BaseException, wall: float) -> float | None:
    """How long a dependency that is well asks us to wait: by 429, or by `Retry-After` where it has no room."""
    match known_class(error):
        case ErrorClass.THROTTLED:
            return asked_wait_s(error, wall=wall) or _THROTTLED_S
        case ErrorClass.OVERLOADED:
            return asked_wait_s(error, wall=wall)
        case _:
            return None


def without_delay(outcome: Outcome, error: Exception) -> Outcome:
    """The outcome of a handler whose task has a `Retry(delay=)` that raised `error`: the usual backoff stands in."""
    if not isinstance(outcome, Failed):
        return outcome
    said = f"{outcome.error.message} (its Retry(delay=) raised {type(error).__name__}: the usual backoff counts)"
    return replace(outcome, error=replace(outcome.error, message=said))


def invalid(error: TaskflowError) -> Outcome:
    """The outcome of a job whose payload does not fit."""
    return Invalid(ErrorRecord(type(error).__name__, kept(_text(error)), "bad_payload"))


def overdue(reason: str) -> Outcome:
    """The outcome of a job that came too late."""
    return Overdue(reason)


def kind_of(error: BaseException) -> str:
    """Tells bad data (`bad_data`) from a dependency that is broken (`transient`) or counts our calls (`throttled`).

    `error` where it cannot tell.
    """
    if isinstance(error, BaseExceptionGroup):
        kinds = {kind_of(leaf) for leaf in error.exceptions}
        return kinds.pop() if len(kinds) == 1 else "error"
    match known_class(error):
        case None | ErrorClass.CANCELLED:
            return "error"
        case ErrorClass.PERMANENT:
            return "bad_data"
        case ErrorClass.THROTTLED:
            return "throttled"
        case _:
            return "transient"


def record(error: BaseException, *, kind: str) -> ErrorRecord:
    """The error as it is kept: type, message, the whole stack without local variables. Secrets that show are hidden."""
    return ErrorRecord(type(error).__qualname__, kept(_text(error)), kind, _stack(error))


def kept(message: str) -> str:
    """A message as it may be kept and shown: no secrets that show, not endless, text that every broker takes."""
    return _clean(scrub(message, _MAX_MESSAGE))


def _stack(error: BaseException) -> str:
    """The traceback, from the handler on: how the runtime got there helps nobody at night."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OURS):
        frames = frames.tb_next
    return _clean(scrub_stack("".join(traceback.format_exception(type(error), error, frames or error.__traceback__))))


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - whatever an exception's own __str__ raises
        return "(its text cannot be had: __str__ raised)"


def _clean(text: object) -> str:
    """Text that every broker can keep: no lone surrogates, no NUL."""
    return str(text).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def label(outcome: Outcome) -> str:
    """The outcome of an attempt, as metrics and logs name it."""
    match outcome:
        case Succeeded():
            return "succeeded"
        case Failed(error):
            return "timed_out" if error.kind == "timeout" else "failed"
        case Rejected():
            return "snoozed"
        case Interrupted(cancelled=True):
            return "cancelled"
        case _:
            return "interrupted"
