"""An address that sentinels know: before each connection they are asked who the primary is."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis.asyncio
from redis.exceptions import RedisError
from redis.sentinel import MasterNotFoundError

from taskflow.brokers.redis.failures import is_set_up_wrongly

if TYPE_CHECKING:
    from collections.abc import Iterator

_URL = re.compile(
    r"(?P<scheme>rediss?)\+sentinel://(?P<user>[^@/?#]*@)?(?P<hosts>[^@/?#]+)/(?P<service>[\w.-]+)(?:\?(?P<options>[^#]*))?"
)
_PORT = 26_379  # of a sentinel, unless the URL says otherwise
_ANSWER_S = 1.0  # then the next sentinel is asked
_OF_THE_PRIMARY = {"host", "port", "db", "username", "password", "socket_timeout", "socket_connect_timeout"}


class Sentinels:
    """`asked` are the options of the URL for the sentinels alone: their user and password."""

    def __init__(self, hosts: list[tuple[str, int]], service: str, asked: dict[str, Any]) -> None:
        self.service = service
        self._hosts, self._asked = hosts, asked
        self._first = itertools.count()

    def lead(self, pool: Any) -> None:
        """Each connection of this pool goes to whoever is the primary when it is made."""
        plain: Any = pool.connection_class
        options = {name: value for name, value in pool.connection_kwargs.items() if name not in _OF_THE_PRIMARY}
        options |= {"socket_timeout": _ANSWER_S, "socket_connect_timeout": _ANSWER_S, **self._asked}
        sentinels = self

        class AsyncToPrimary(plain):  # type: ignore[misc] # the driver's own types are incomplete
            async def _connect(self) -> None:
                self.host, self.port = await sentinels._primary(plain, options)
                await super()._connect()

        class ToPrimary(plain):  # type: ignore[misc] # as above
            def _connect(self) -> Any:
                self.host, self.port = sentinels._primary_sync(plain, options)
                return super()._connect()

        pool.connection_class = AsyncToPrimary if issubclass(plain, redis.asyncio.Connection) else ToPrimary

    async def _primary(self, plain: Any, options: dict[str, Any]) -> tuple[str, int]:
        failed: Exception | None = None
        for host, port in self._in_turn():
            connection = plain(host=host, port=port, **options)
            try:
                await connection.connect()
                await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
                found = await connection.read_response()
            except (RedisError, OSError) as error:
                failed = _more_telling(failed, error)
            else:
                if found:
                    return found[0].decode(), int(found[1])
            finally:
                await connection.disconnect(nowait=True)
        raise self._unknown(failed)

    def _primary_sync(self, plain: Any, options: dict[str, Any]) -> tuple[str, int]:
        failed: Exception | None = None
        for host, port in self._in_turn():
            connection = plain(host=host, port=port, **options)
            try:
                connection.connect()
                connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
                found = connection.read_response()
            except (RedisError, OSError) as error:
                failed = _more_telling(failed, error)
            else:
                if found:
                    return found[0].decode(), int(found[1])
            finally:
                connection.disconnect()
        raise self._unknown(failed)

    def _in_turn(self) -> Iterator[tuple[str, int]]:
        """Each time another one first: one that is cut off from the others may know a primary of before."""
        first = next(self._first) % len(self._hosts)
        return iter(self._hosts[first:] + self._hosts[:first])

    def _unknown(self, failed: Exception | None) -> Exception:
        if failed is not None and is_set_up_wrongly(failed):
            return failed
        error = MasterNotFoundError(f"none of {len(self._hosts)} sentinels knows a primary of {self.service}")
        error.__cause__ = failed
        return error


def _more_telling(before: Exception | None, error: Exception) -> Exception:
    """Of what two sentinels met: what a person has to correct, rather than that one of them is down."""
    return before if before is not None and is_set_up_wrongly(before) else error


def split(url: str) -> tuple[str, Sentinels | None]:
    """The URL as the driver takes it, and the sentinels if it names some. Raises `ValueError` for no such address."""
    if "+sentinel://" not in url:
        return url, None
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError("no address")
    hosts = [urlsplit(f"//{host}") for host in found["hosts"].split(",")]
    if not all(host.hostname for host in hosts):
        raise ValueError("no address")
    options = dict(parse_qsl(found["options"] or "", strict_parsing=bool(found["options"])))
    asked = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    plain = f"{found['scheme']}://{found['user'] or ''}primary/?{urlencode(options)}"
    return plain, Sentinels([(host.hostname or "", host.port or _PORT) for host in hosts], found["service"], asked)
