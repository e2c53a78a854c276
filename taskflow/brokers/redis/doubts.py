"""How the server is set up: what it cannot do is refused, what it may lose is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskflow.brokers.redis.failures import is_forbidden
from taskflow.errors import BrokerError, BrokerUnavailable, ConfigError

if TYPE_CHECKING:
    from taskflow.brokers.redis.link import Link

_OLDEST = (6, 2)  # ZADD's LT and GT, many arguments of ZMSCORE and HSET


async def doubts_about(link: Link) -> tuple[str, ...]:
    """What may cost jobs. Asks INFO alone: CONFIG is often forbidden. Raises `ConfigError` for a server too old."""
    try:
        known: dict[str, Any] = await link.ask("INFO")
    except BrokerUnavailable:
        raise
    except (BrokerError, ConfigError) as error:
        if not is_forbidden(error.__cause__):
            raise
        return (f"{link.where} may not be asked how it is set up (INFO): make sure yourself that it keeps an AOF",)
    version = str(known.get("redis_version", "6.2"))
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        raise ConfigError(f"{link.where} is Redis {version}: taskflow needs Redis 6.2 or newer, or Valkey")
    found: list[str] = []
    policy = str(known.get("maxmemory_policy", "noeviction"))
    if policy.startswith("allkeys"):  # volatile-…: no key of a job has a time to live
        found.append(
            f"{link.where} evicts any key when its memory is full (maxmemory-policy {policy}), jobs too: set it to "
            "noeviction"
        )
    if not int(known.get("aof_enabled", 0)):
        found.append(
            f"{link.where} has appendonly off: a restart or crash loses the jobs since its last snapshot, or all of "
            "them. Set appendonly yes"
        )
    return tuple(found)
