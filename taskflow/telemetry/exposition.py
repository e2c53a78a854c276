"""Shows the series to Prometheus: only when someone scrapes do they become the families of `prometheus_client`.

That may happen in another thread than the counting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from taskflow.telemetry.catalogue import CATALOGUE, Family

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client import Metric

    from taskflow.telemetry.series import Histogram, Labels, Series

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def _none() -> float:
    return 0


@dataclass(slots=True)
class Asked:
    """What is asked at each scrape, maybe in another thread. One that raises shows as NaN.

    `turned_away` says how many calls limiters turned away, by limiter and reason.
    """

    in_flight: Callable[[], float] = _none
    concurrency_limit: Callable[[], float] = _none
    longest_running_s: Callable[[], float] = _none
    draining: Callable[[], float] = _none
    abandoned_threads: Callable[[], float] = _none
    turned_away: Callable[[], Mapping[tuple[str, str], int]] = dict


class Exposition(Collector):
    """The one collector of a registry of its own."""

    def __init__(self, series: Series, asked: Asked, now: Callable[[], float]) -> None:
        self._series = series
        self._asked = asked
        self._now = now
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics for an `accept` that asks for it, else text.

        Takes milliseconds for each thousand lines: an event loop calls it in a thread.
        """
        if "application/openmetrics-text" in accept:
            shown: bytes = generate_openmetrics(self.registry)  # type: ignore[no-untyped-call,unused-ignore]
            return shown, OPENMETRICS
        return generate_latest(self.registry), TEXT

    def collect(self) -> Iterator[Metric]:
        """Every family of `CATALOGUE`, in its order, with the samples of now."""
        self._measure()
        for name, family in CATALOGUE.items():
            if family.kind == "histogram":
                yield _histogram_family(name, family, self._series.histograms[name].copy())
            else:
                made = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
                shown = made(name, family.meaning, labels=family.labels)
                for labels, value in self._series.numbers[name].copy().items():
                    shown.add_metric(labels, value)
                yield shown

    def _measure(self) -> None:
        """Bring the families up to date that are kept elsewhere: pairs, and gauges that nobody tells us of."""
        numbers, asked = self._series.numbers, self._asked
        for labels, pair in self._series.pairs.copy().items():
            numbers["taskflow_attempts_started_total"][labels] = pair.started
            numbers["taskflow_jobs_submitted_total"][labels] = pair.submitted
            numbers["taskflow_jobs_deduplicated_total"][labels] = pair.deduplicated
            numbers["taskflow_jobs_retried_total"][labels] = pair.retried
            for outcome, count in pair.outcomes.items():
                numbers["taskflow_attempts_total"][*labels, outcome] = count
            for state, count in pair.states.items():
                numbers["taskflow_jobs_finished_total"][*labels, state] = count
        for name, ask in (
            ("taskflow_worker_in_flight", asked.in_flight),
            ("taskflow_worker_concurrency_limit", asked.concurrency_limit),
            ("taskflow_worker_longest_running_seconds", asked.longest_running_s),
            ("taskflow_worker_draining", asked.draining),
            ("taskflow_abandoned_threads", asked.abandoned_threads),
        ):
            numbers[name][()] = _ask(ask)
        for limiter, count in asked.turned_away().items():
            numbers["taskflow_limiter_rejections_total"][limiter] = count
        now, oldest = self._now(), self._series.oldest
        ages = numbers["taskflow_queue_oldest_ready_age_seconds"]
        for (queue,) in ages.copy():
            age_s, at = oldest.get(queue, (0.0, now))
            ages[queue,] = age_s + max(0.0, now - at)
        numbers["taskflow_gates_held"][()] = sum(until > now for until in self._series.held.copy().values())


def _histogram_family(name: str, family: Family, series: Mapping[Labels, Histogram]) -> HistogramMetricFamily:
    shown = HistogramMetricFamily(name, family.meaning, labels=family.labels)
    bounds = [*map(floatToGoString, family.buckets), "+Inf"]
    for labels, histogram in series.items():
        buckets: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip(bounds, histogram.counts.copy(), strict=True):
            below += count
            buckets.append((bound, below))
        shown.add_metric(labels, buckets, histogram.total)
    return shown


def _ask(ask: Callable[[], float]) -> float:
    """What a gauge says now. The loop may change what it looks at meanwhile: then it is asked again."""
    for _ in range(3):
        try:
            return float(ask())
        except RuntimeError:  # "dictionary changed size during iteration"
            continue
        except Exception:  # noqa: BLE001 - one broken gauge must not break the scrape (promise 8)
            break
    return math.nan
