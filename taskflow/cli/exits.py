"""The exit codes of every command, and the error that each stands for."""

from __future__ import annotations

from enum import IntEnum

from taskflow.errors import (
    BrokerError,
    BrokerUnavailable,
    ConfigError,
    JobNotFound,
    PayloadError,
    QueueFull,
    TaskflowError,
    UnknownTask,
)


class Exit(IntEnum):
    """What a command's exit code says."""

    DONE = 0
    FAILED = 1  # unexpected, or the awaited job failed
    USAGE = 2  # usage, configuration, import
    BROKER = 3  # broker unreachable at start
    HANDED_BACK = 4  # the drain deadline passed, jobs were handed back
    NOT_FOUND = 5  # not found, a conflict, or a queue that is full: nothing is broken, and later it may be otherwise
    UNHEALTHY = 6
    INTERRUPTED = 130  # second Ctrl-C, or one before the start


# What the context of a command has as its object where the process ends with the command.
OWN_PROCESS = object()

HELP = (
    "Exit codes: 0 done · 1 unexpected, or the awaited job failed · 2 usage, configuration, import · 3 broker "
    "unreachable at start · 4 drain deadline passed, jobs handed back · 5 not found, conflict, or the queue is full · "
    "6 unhealthy · 130 second Ctrl-C, or one before the start."
)


def code_of(error: TaskflowError) -> Exit:
    """The exit code that an error ends a command with."""
    match error:
        case ConfigError() | UnknownTask() | PayloadError():
            return Exit.USAGE
        case BrokerUnavailable() | BrokerError():
            return Exit.BROKER
        case JobNotFound() | QueueFull():
            return Exit.NOT_FOUND
        case _:
            return Exit.FAILED
