"""What the brokers on servers believe of the server's clock."""

from __future__ import annotations

import pytest

from taskflow.brokers.server_clock import ServerClock

LEASE_S = 10.0
SERVER = 1_000_000.0  # ahead of the machine


class Bench:
    """A server that is asked, each answer on its way for some time."""

    def __init__(self) -> None:
        self.at = 0.0
        self.server = SERVER
        self.clock = ServerClock(lambda: self.at)
        self.clock.leased(LEASE_S)

    def ask(self, *, there_s: float = 0.0, back_s: float = 0.0) -> float:
        """Returns how far the server would have gone beyond the time that it may judge by; below 0 it is not held up."""
        sent_at = self.at
        judged_at = self.clock.judged_at(sent_at)
        self.at += there_s
        now = self.at + self.server
        self.at += back_s
        self.clock.heard(now, sent_at)
        return now - judged_at


def test_who_has_heard_nothing_judges_nobody() -> None:
    assert ServerClock().judged_at(1e12) == float("-inf")


def test_the_answers_of_a_slow_server_are_no_steps() -> None:
    bench = Bench()
    bench.ask(there_s=3)
    for there_s, back_s in ((0, 5), (5, 0), (0, 0), (2, 2), (9, 9)):
        assert bench.ask(there_s=there_s, back_s=back_s) <= there_s
    bench.ask()

    assert bench.ask() < 0


def test_a_server_that_is_slow_now_and_then_is_believed_a_lease_after_a_step() -> None:
    bench = Bench()
    bench.ask()

    bench.server += 15
    for _ in range(10):
        assert bench.ask() > 14
        bench.ask(there_s=LEASE_S / 20, back_s=LEASE_S / 20)
    bench.ask()

    assert bench.ask() < 0


def test_a_step_that_is_taken_back_leaves_the_time_before_it() -> None:
    bench = Bench()
    for by_s in (0, 15, -3_600):
        bench.server += by_s
        bench.ask()

    bench.server += 3_585

    assert bench.ask() > 3_584  # leases that were written meanwhile stand in the old time


def test_what_takes_long_to_say_hides_no_step() -> None:
    bench = Bench()
    bench.ask()

    bench.server += 15
    bench.ask(back_s=20)  # might as well have been asked late

    for _ in range(10):
        assert bench.ask() > 14
        bench.at += LEASE_S / 10 - 0.01
    bench.at += LEASE_S
    bench.ask()
    assert bench.ask() < 0


def test_clocks_that_drift_apart_are_followed() -> None:
    bench = Bench()
    bench.ask()
    for _ in range(1_000):
        bench.at += 1
        bench.server += 0.01
        assert bench.ask() < 0


@pytest.mark.parametrize("idle_s", [60.0, 86_400.0])
def test_a_machine_that_was_suspended_judges_nobody_for_a_lease(idle_s: float) -> None:
    bench = Bench()
    bench.ask()

    bench.server += idle_s  # its own steady clock stood still
    over = [bench.ask()]
    for _ in range(9):
        bench.at += LEASE_S / 10
        over.append(bench.ask())

    assert min(over) > idle_s - 1
    bench.at += LEASE_S / 10
    bench.ask()
    assert bench.ask() < 0
