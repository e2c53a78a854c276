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
_FORM = "redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT]/SERVICE[?db=N]"
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
        raise ValueError(_why_not(url))
    try:
        parts = [urlsplit(f"//{host}") for host in found["hosts"].split(",")]
        hosts = [(part.hostname or "", part.port or _PORT) for part in parts]
    except ValueError:  # its words hold the port, which may be a part of a password
        hosts = [("", 0)]
    if not all(host for host, _ in hosts):
        raise ValueError(f"its sentinels must be HOST[:PORT],HOST[:PORT]: {_FORM}")
    try:
        options = dict(parse_qsl(found["options"] or "", strict_parsing=bool(found["options"])))
    except ValueError:
        raise ValueError("its ?options must be name=value, with & between them") from None
    asked = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    plain = f"{found['scheme']}://{found['user'] or ''}primary/?{urlencode(options)}"
    return plain, Sentinels(hosts, found["service"], asked)


def _why_not(url: str) -> str:
    """What is wrong with such an address."""
    authority, _, path = url.partition("://")[2].partition("?")[0].partition("/")
    if authority.rpartition("@")[2] and not path.strip("/"):
        return f"after its hosts it must name the service that the sentinels watch: {_FORM}"
    if path.strip("/").count("/") == 1:
        return f"after its service only ?options follow, the database too, as ?db=N: {_FORM}"
    return f"it must be {_FORM} or rediss+sentinel:// (TLS), SERVICE of letters, digits, _, - and ."
