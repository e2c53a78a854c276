"""What the tests of telemetry talk about: claims, events, a job that runs, a log that can be read."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from taskflow.core import events
from taskflow.core.decision import Bury, Cancel, Complete, Expire, Release, Retry, Snooze
from taskflow.core.job import Claim, JobState
from taskflow.core.outcome import ErrorRecord

if TYPE_CHECKING:
    from taskflow.core.decision import Decision
    from taskflow.core.events import Event

BROKEN = ErrorRecord("ConnectionError", "no route to host", "transient", "Traceback (most recent call last):\n  ...\n")
STATES = {
    Complete: JobState.SUCCEEDED,
    Retry: JobState.SCHEDULED,
    Snooze: JobState.SCHEDULED,
    Release: JobState.READY,
    Bury: JobState.DEAD,
    Expire: JobState.EXPIRED,
    Cancel: JobState.CANCELLED,
}


class Job(NamedTuple):
    """A running job, as the runtime sets it in `job_context`."""

    job_id: str = "0192"
    task: str = "send"
    queue: str = "mail"
    lane: str = "example.org"
    gates: tuple[str, ...] = ("smtp",)
    attempt: int = 2
    correlation_id: str = "req-1"
    traceparent: str | None = f"00-{'a' * 32}-{'b' * 16}-01"

    def deadline_in_s(self) -> float:
        return 30.0


def claim(task: str = "send", queue: str = "mail", **changed: Any) -> Claim:
    made = Claim(
        "0192", 7, task, queue, b'{"v":1}', "example.org", ("smtp",), 4, 0, 0, 0, 0.02, 0.5, 3600.0, "max_wait", None
    )
    return made._replace(**changed)


def started(task: str = "send", queue: str = "mail", **changed: Any) -> Event:
    return events.AttemptsStarted([events.AttemptStarted(claim(task, queue, **changed), "req-1")])


def ended(outcome: str = "succeeded", error: ErrorRecord | None = None, run_s: float = 0.03, **changed: Any) -> Event:
    return events.AttemptsEnded([events.AttemptEnded(claim(**changed), "req-1", outcome, run_s, error)])


def settled(decision: Decision, state: JobState | None = None, total_s: float = 2.0, **changed: Any) -> Event:
    state = state or STATES[type(decision)]
    return events.JobsSettled([events.JobSettled(claim(**changed), "req-1", decision, state, total_s)])


# One of each kind that there is.
ALL_EVENTS: list[Event] = [
    started(),
    ended(),
    ended("failed", BROKEN),
    *(settled(decision) for decision in (Complete(), Retry(1.5, BROKEN), Snooze(5.0, "snoozed"), Release())),
    *(settled(decision) for decision in (Bury(BROKEN), Expire("deadline"), Cancel())),
    events.SettlementStale("0192", "send", "mail", 7),
    events.JobsSubmitted("mail", "send", 3),
    events.JobsDeduplicated("mail", "send", 2),
    events.JobsRejected("mail", "queue_full", 4),
    events.JobRedelivered("0192", "send", "mail", 1),
    events.JobBuried("0192", "send", "mail", 5),
    events.JobExpired("0192", "send", "mail", "max_wait"),
    events.TaskUnknown("0192", "gone", "mail", 5.0),
    events.BrokerAnswered("claim", 0.002),
    events.BatchClaimed("mail", 12),
    events.BrokerFailed("claim", "timeout", "redis://app:hunter2@db:6379 does not answer", 0.5),
    events.BrokerRecovered("claim", 3.0),
    events.BrokerDoubted("the server keeps no log: set appendonly yes"),
    events.WorkerStarted("w1", ("mail",), 100, ("send",)),
    events.WorkerDraining("w1", 3, 25.0),
    events.WorkerStopped("w1", 0),
    events.LeaseLost("w1", ("0192",), "no beat got through in time"),
    events.ThreadAbandoned("0192", "send", "mail"),
    events.ProcessDied("0192", "send", "mail", "the process died with signal SIGSEGV"),
    events.TimeoutIgnored("0192", "send", "mail", 4.2),
    events.JobCancelled("0192", "send", "mail"),
    events.LoopStalled(1.5),
    events.GateHeld("smtp", 10.0, "circuit_open"),
    events.BreakerMoved("smtp", "smtp", "open"),
]


class Log(io.StringIO):
    """A stream of log lines that can be read back."""

    def lines(self) -> list[str]:
        text = self.getvalue()
        assert not text or text.endswith("\n")
        return text.splitlines()

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]

    def last(self) -> dict[str, Any]:
        return self.records()[-1]
