"""The reference broker, all in this process: read `broker` first, then `lanes`."""

from taskflow.brokers.memory.broker import MemoryBroker

__all__ = ["MemoryBroker"]
