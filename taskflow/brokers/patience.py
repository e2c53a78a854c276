"""How long a beat waits for its answer before it gives its connection up: what the brokers that are servers share."""

from __future__ import annotations

# In leases. A beat over a connection that is dead without our knowing (a failover, a router that forgot it) leaves the
# time for another over a new one, before the worker stops trusting itself. Each that fails leaves the next more time,
# as the server may only be slow.
_FIRST, _MOST = 1 / 4, 1.0
# To connect takes several round trips, and there is nothing better to do meanwhile.
_CONNECT = 3 / 4


class Patience:
    """The patience of one worker's beats."""

    def __init__(self) -> None:
        self._leases = _FIRST

    def answer_s(self, lease_s: float) -> float:
        """Seconds to wait for the next answer."""
        return self._leases * lease_s

    @staticmethod
    def connect_s(lease_s: float) -> float:
        """Seconds that it may take to connect."""
        return _CONNECT * lease_s

    def failed(self) -> None:
        """There was no answer in time."""
        self._leases = min(_MOST, 2 * self._leases)

    def answered(self, took_s: float, lease_s: float) -> None:
        """There was: the server is as quick as it should be, or not yet."""
        if took_s < lease_s * _FIRST / 2:
            self._leases = _FIRST
