"""The reference broker, all in this process: read `broker` first, then `lanes` and `claim`."""

from taskflow.brokers.memory.broker import MemoryBroker

__all__ = ["MemoryBroker"]
