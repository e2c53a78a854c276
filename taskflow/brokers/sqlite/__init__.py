"""The default broker: jobs in one SQLite file, shared by all processes of one machine, no server."""

from taskflow.brokers.sqlite.broker import SqliteBroker

__all__ = ["SqliteBroker"]
