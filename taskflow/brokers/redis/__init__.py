"""The broker on Redis and Valkey: jobs shared by any number of machines. As durable as the server's AOF."""

from taskflow.brokers.redis.broker import RedisBroker

__all__ = ["RedisBroker"]
