"""What a handler may raise to say what should become of its job. Not errors: words."""

from __future__ import annotations


class ControlFlow(Exception):
    """The root of `RetryLater`, `Snooze` and `GiveUp`."""


class RetryLater(ControlFlow):
    """This attempt failed; run again in `seconds`. An attempt is spent, and the last one still ends the job."""

    def __init__(self, seconds: float, reason: str = "retry later") -> None:
        super().__init__(f"{reason} (in {seconds:g} s)")
        self.seconds = max(0.0, float(seconds))
        self.reason = str(reason)


class Snooze(ControlFlow):
    """Not now; come back in `seconds`. No attempt is spent.

    `hold` names one of the task's policies: its gate is closed for as long, so that all jobs that need the same
    dependency wait too, in every worker.
    """

    def __init__(self, seconds: float, reason: str = "snoozed", *, hold: str | None = None) -> None:
        super().__init__(f"{reason} (for {seconds:g} s)")
        self.seconds = max(0.0, float(seconds))
        self.reason = str(reason)
        self.hold = hold


class GiveUp(ControlFlow):
    """No other attempt will help: to the dead letters."""

    def __init__(self, reason: str = "given up") -> None:
        super().__init__(reason)
        self.reason = str(reason)
