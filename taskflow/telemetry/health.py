"""Is this worker alive, and can it take jobs? Both answers come from memory: a probe never asks the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from taskflow.core import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.clock import Clock
    from taskflow.telemetry.bus import Bus

BEAT_S = 0.5  # between two looks at the event loop
STALL_S = 1.0  # a loop that is this late is announced: every timeout and beat of this process was late too
DEAD_S = 5.0  # a loop that stands still this long fails the liveness probe: half a default lease
# A probe that came during the stall is answered after it. It must hear of it, and so must the next one, which
# Kubernetes sends after 10 s unless told otherwise.
REMEMBER_S = 10.0


class Live(NamedTuple):
    """Whether the event loop runs; `detail` says it in words."""

    ok: bool
    detail: str


class Ready(NamedTuple):
    """Whether jobs are taken here; `reasons` say why not."""

    ok: bool
    reasons: tuple[str, ...]


class Health:
    """Keeps what the events say, and watches the event loop while `run` runs.

    `observe_lag` is told every delay, `is_paused` is asked whether claiming was stopped by hand; both may be set later.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        observe_lag: Callable[[float], None] | None = None,
        is_paused: Callable[[], bool] | None = None,
    ) -> None:
        self.observe_lag = observe_lag
        self.is_paused = is_paused
        self._clock = clock
        self._bus: Bus | None = None
        self._workers: dict[str, bool] = {}  # worker → is draining
        self._has_worked = False
        self._failing: dict[str, str] = {}  # operation → kind of failure
        self._beat_at: float | None = None
        self._stalled_s = 0.0
        self._stall_ended_at = float("-inf")

    def subscribe(self, bus: Bus) -> None:
        """Follow what `bus` tells, and tell it of stalls."""
        self._bus = bus
        bus.subscribe(self._on_started, events.WorkerStarted)
        bus.subscribe(self._on_draining, events.WorkerDraining)
        bus.subscribe(self._on_stopped, events.WorkerStopped)
        bus.subscribe(self._on_failed, events.BrokerFailed)
        bus.subscribe(self._on_recovered, events.BrokerRecovered)
        bus.subscribe(self._on_answered, events.BrokerAnswered)

    # --- the event loop ----------------------------------------------

    async def run(self) -> None:
        """Measure for ever how late the event loop is. Cancel it to stop."""
        clock = self._clock
        self._beat_at = clock.now()
        try:
            while True:
                due_at = self._beat_at + BEAT_S
                await clock.sleep(BEAT_S)
                now = clock.now()
                self._beat(now, max(0.0, now - due_at))
        finally:
            self._beat_at = None  # nobody looks any more: silence is no stall

    def _beat(self, now: float, lag_s: float) -> None:
        if lag_s + BEAT_S > DEAD_S:
            self._stalled_s, self._stall_ended_at = lag_s + BEAT_S, now
        self._beat_at = now
        if self.observe_lag is not None:
            self.observe_lag(lag_s)
        if lag_s > STALL_S and self._bus is not None:
            self._bus.emit(events.LoopStalled(lag_s))

    def live(self) -> Live:
        """False when the event loop has stood still for long, or has just done so."""
        now = self._clock.now()
        if self._beat_at is not None and now - self._beat_at > DEAD_S:
            return Live(ok=False, detail=f"the event loop has stood still for {now - self._beat_at:.1f} s")
        if now - self._stall_ended_at <= REMEMBER_S:
            ago_s = now - self._stall_ended_at
            return Live(ok=False, detail=f"the event loop stood still for {self._stalled_s:.1f} s, {ago_s:.1f} s ago")
        return Live(ok=True, detail="the event loop runs")

    # --- the worker --------------------------------------------------

    def ready(self) -> Ready:
        """Whether a worker of this process claims jobs, from a broker that answers."""
        reasons: list[str] = []
        if not self._workers:
            reasons.append("the worker has stopped" if self._has_worked else "the worker has not started yet")
        elif all(self._workers.values()):
            reasons.append("the worker is draining: it takes no more jobs")
        if self._failing:
            what = ", ".join(f"{operation}: {kind}" for operation, kind in sorted(self._failing.items()))
            reasons.append(f"the broker does not answer ({what})")
        if self.is_paused is not None and self.is_paused():
            reasons.append("claiming is paused")
        return Ready(ok=not reasons, reasons=tuple(reasons))

    def _on_started(self, event: events.WorkerStarted) -> None:
        self._workers[event.worker] = False
        self._has_worked = True

    def _on_draining(self, event: events.WorkerDraining) -> None:
        self._workers[event.worker] = True

    def _on_stopped(self, event: events.WorkerStopped) -> None:
        self._workers.pop(event.worker, None)

    def _on_failed(self, event: events.BrokerFailed) -> None:
        if event.kind != "refused":  # to refuse one thing is an answer
            self._failing[event.operation] = event.kind

    def _on_recovered(self, event: events.BrokerRecovered) -> None:
        self._failing.pop(event.operation, None)

    def _on_answered(self, event: events.BrokerAnswered) -> None:
        if not self._failing:
            return
        # A full disk still answers reads: only the same operation shows that it works again. A claim shows it for
        # all, as it writes; else an operation that is never repeated would be held against the broker for ever.
        if event.operation == "claim":
            self._failing.clear()
        else:
            self._failing.pop(event.operation, None)
