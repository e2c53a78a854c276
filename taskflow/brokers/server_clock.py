"""A server's clock that is stepped forward makes nobody dead: what the brokers that are servers share.

Leases end by the server's clock. It may leap: time that is corrected, a machine that was suspended, a failover to one
whose clock is ahead. Then all leases seem to be over, and nobody is dead. So each `reclaim` says up to which instant it
may take a lease for ended: what the server's clock would show now had it only run on, by this machine's own clock that
is never set. After a step that goes by the old time for one more lease: by then all that live have beaten, and their
leases stand in the new time. Who is dead is noticed as ever, as its lease was written in one of the two.

Only leases are spared. Due times, deadlines, rates and holds are promises about the wall clock, and go where it goes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# A step so small costs no lease. Less than what two clocks drift apart in an idle day is harmless, too: what is taken
# for a step then leaves both times next to each other.
_TOLERANCE_S = 0.1


class ServerClock:
    """The server's clock as one broker object knows it, by how far it is ahead of `steady`. Used in one loop."""

    def __init__(self, steady: Callable[[], float] = time.monotonic) -> None:
        self.steady = steady
        self._ahead_s: float | None = None  # as it was last
        self._trusted_s = float("-inf")  # as leases go by
        self._stepped_at = float("-inf")
        self._lease_s = 0.0

    def leased(self, lease_s: float) -> None:
        """A worker of this process has a lease of so many seconds."""
        self._lease_s = max(self._lease_s, lease_s)

    def judged_at(self, sent_at: float) -> float:
        """The latest instant at which a lease has surely ended, for a call that is sent at `sent_at` of `steady`."""
        return sent_at + self._trusted_s + _TOLERANCE_S

    def heard(self, now: float, sent_at: float, longest_s: float = 0.0) -> None:
        """In the answer to a call that was sent at `sent_at`, the server says that it was `now`.

        `longest_s` is the longest lease that it knows of: after a step this one has to pass, or our own if that is
        longer.
        """
        answered_at = self.steady()
        least_s, most_s = now - answered_at, now - sent_at
        if self._ahead_s is None:
            self._ahead_s = self._trusted_s = most_s
            return
        if least_s > self._ahead_s + _TOLERANCE_S:
            self._stepped_at, self._ahead_s = answered_at, most_s
        elif most_s <= self._ahead_s + _TOLERANCE_S:
            self._ahead_s = most_s
        # Else the answer took too long to tell: the time that was known goes on.
        if self._ahead_s <= self._trusted_s or answered_at - self._stepped_at >= max(self._lease_s, longest_s):
            self._trusted_s = self._ahead_s
