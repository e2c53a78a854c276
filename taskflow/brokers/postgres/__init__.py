"""Jobs in a PostgreSQL database: durable, for many machines, and in the caller's transactions."""

from taskflow.brokers.postgres.broker import PostgresBroker

__all__ = ["PostgresBroker"]
