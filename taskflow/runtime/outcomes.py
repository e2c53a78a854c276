"""Turns what a handler did into an outcome: the one place that looks at exceptions."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from taskflow.core.outcome import ErrorRecord, Failed, Interrupted, Invalid, Outcome, Overdue, Rejected, Succeeded
from taskflow.errors import PayloadError, TaskflowError
from taskflow.errors import Rejected as RejectedError
from taskflow.runtime.control import GiveUp, RetryLater, Snooze
from taskflow.runtime.slot import CANCELLED, TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.runtime.task import TaskDef

_MAX_MESSAGE, _MAX_STACK = 2_000, 16_384
_BAD_DATA = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)
_NOTHING = Succeeded(None)


def succeeded(task: TaskDef, result: Any, *, max_bytes: int) -> Outcome:
    """The outcome of a handler that returned `result`."""
    if result is None:
        return _NOTHING
    try:
        return Succeeded(task.codec.dump_result(result, max_bytes=max_bytes))
    except PayloadError as error:
        return Failed(ErrorRecord(type(error).__name__, str(error), "bad_result"), retryable=False)


def stopped(why: str, *, timeout_s: float) -> Outcome:
    """The outcome of a handler that was told to stop, and did."""
    if why == TIMEOUT:
        return Failed(ErrorRecord("TimeoutError", f"still running after its timeout of {timeout_s:g} s", "timeout"))
    return Interrupted(cancelled=why == CANCELLED)


def failed(error: BaseException, *, covers: Callable[[BaseException], bool]) -> Outcome:
    """The outcome of a handler that raised `error`."""
    match error:
        case Snooze():
            return Rejected(error.reason, error.seconds)
        case RetryLater():
            return Failed(ErrorRecord("RetryLater", error.reason, "transient"), retry_after_s=error.seconds)
        case GiveUp():
            return Failed(record(error, kind="given_up"), retryable=False)
        case RejectedError():
            # A policy inside the handler turned the call away: the dependency was not reached, nothing is spent.
            return Rejected(error.code, error.retry_after_s or 1.0, record(error, kind="throttled"))
        case _:
            return Failed(record(error, kind=kind_of(error)), retryable=covers(error))


def invalid(error: TaskflowError) -> Outcome:
    """The outcome of a job whose payload does not fit."""
    return Invalid(ErrorRecord(type(error).__name__, str(error)[:_MAX_MESSAGE], "bad_payload"))


def overdue(reason: str) -> Outcome:
    """The outcome of a job that came too late."""
    return Overdue(reason)


def kind_of(error: BaseException) -> str:
    """Tells bad data (`bad_data`) from a broken dependency (`transient`); `error` where it cannot tell."""
    if isinstance(error, BaseExceptionGroup):
        kinds = {kind_of(leaf) for leaf in error.exceptions}
        return kinds.pop() if len(kinds) == 1 else "error"
    if isinstance(error, OSError | EOFError) or type(error).__module__.partition(".")[0] == "aiohttp":
        return "transient"  # TimeoutError and ConnectionError are OSErrors
    return "bad_data" if isinstance(error, _BAD_DATA) else "error"


def record(error: BaseException, *, kind: str) -> ErrorRecord:
    """The error as it is kept: type, message, whole stack without local variables; the newest part if it is long."""
    stack = "".join(traceback.format_exception(error))
    if len(stack) > _MAX_STACK:
        stack = f"[{len(stack) - _MAX_STACK} characters left out]\n{stack[-_MAX_STACK:]}"
    return ErrorRecord(type(error).__qualname__, str(error)[:_MAX_MESSAGE], kind, stack)


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
