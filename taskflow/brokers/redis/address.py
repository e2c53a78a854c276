"""What the URL says, checked before anything is connected. Whatever may be part of a password is never told."""

from __future__ import annotations

import os
import re
import ssl
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis.asyncio
from redis.asyncio.connection import URL_QUERY_ARGUMENT_PARSERS
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from taskflow.brokers.redis.sentinel import split
from taskflow.errors import ConfigError
from taskflow.nearest import nearest

ANSWER_S = 5.0  # a script of a thousand jobs takes some 20 ms; the URL's socket_timeout says otherwise
_CONNECT_S = 5.0

# What every connection is made with. The driver repeats nothing: a claim would be lost.
OPTIONS: dict[str, Any] = {
    "protocol": 2,
    "socket_timeout": ANSWER_S,
    "socket_connect_timeout": _CONNECT_S,
    "retry": Retry(NoBackoff(), 0),
}
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TIMES = ("socket_timeout", "socket_connect_timeout", "socket_keepalive", "health_check_interval", "timeout")
_TLS = tuple(name for name in URL_QUERY_ARGUMENT_PARSERS if name.startswith("ssl_"))
_TLS_TEXTS = ("ssl_cert_reqs", "ssl_password", "ssl_ciphers", "ssl_check_hostname", *_TLS_FILES)
# What the URL has a say in. All else that the driver takes would change what it answers, or repeat a claim.
_KNOWN = (
    "db",
    "username",
    "password",
    "client_name",
    "max_connections",
    "socket_read_size",
    *_TIMES,
    *_TLS,
    *_TLS_TEXTS,
)
_OURS = (
    *("protocol", "legacy_responses", "decode_responses", "encoding", "encoding_errors", "parser_class"),
    *("retry", "retry_on_timeout", "retry_on_error", "single_connection_client"),
)
_WANTED: dict[Any, str] = {int: "a whole number", float: "a number"}
_ENCODE = "in user and password write %40 for @, %2F for /, %3A for :, %23 for #, %3F for ?, %25 for %"
_FORM = "redis://[USER:PASSWORD@]HOST[:PORT][/DB]"


def where(url: str) -> str:
    """The server's address as it may be shown: neither user nor password. Raises `ConfigError` for no address."""
    made = _read(url)
    _check_files(made)
    _, sentinels = split(url)
    if sentinels is not None:
        return f"Redis service {sentinels.service}, database {made.get('db', 0)},"
    place = made.get("path") or f"{made.get('host', 'localhost')}:{made.get('port', 6379)}"
    return f"Redis at {place}, database {made.get('db', 0)},"


def _read(url: str) -> dict[str, Any]:
    """What the driver makes of it. Its own words are not told: they may hold the password."""
    _, _, behind = url.partition("://")
    authority = re.split("[/?#]", behind, maxsplit=1)[0]
    if "@" in behind[len(authority) :]:  # a part of the password would count as the host
        raise _refused(f"an @ comes after its first /, ? or #: {_ENCODE}")
    try:
        plain, _ = split(url)
    except ValueError as error:
        raise _refused(str(error)) from None
    bare = plain.partition("?")[0]
    made = _made(bare)
    if made is None:
        raise _refused(f"it must be {_FORM} or rediss:// (TLS), PORT from 1 to 65535; {_ENCODE}")
    _check_place(bare, made)
    for name, value in parse_qsl(urlsplit(plain).query):
        is_known = name in _KNOWN or name.startswith("ssl_")
        if not is_known or _made(f"{bare}?{urlencode([(name, value)])}") is None:
            raise _refused(_about(name, is_tls=bare.startswith("rediss:")))
    made = _made(plain)
    if made is None:
        raise _refused("its ?options do not go together")
    return made


def _made(plain: str) -> dict[str, Any] | None:
    """What the driver makes connections with; None where it refuses to. It connects to nothing."""
    try:
        pool: Any = redis.asyncio.ConnectionPool.from_url(plain, **OPTIONS)
        pool.make_connection()  # refuses options that it does not know
    except (TypeError, ValueError, RedisError):
        return None
    return dict(pool.connection_kwargs)


def _check_place(bare: str, made: dict[str, Any]) -> None:
    """Refuse what the driver takes for something else: it would go to another database, or to another socket."""
    parts = urlsplit(bare)
    if parts.scheme != "unix":
        database = parts.path.strip("/")
        if database and not database.isdecimal():
            raise _refused(f"what follows its host, the database, must be a number: {_FORM}; {_ENCODE}")
    elif parts.hostname is not None:
        is_plain = re.fullmatch(r"unix://[\w./-]+", bare)
        meant = f"unix:///{bare[7:]}" if is_plain else "unix:///SOCKET"
        raise _refused(f"a socket's path begins with a third slash: write {meant}")
    elif "path" not in made:
        raise _refused("it must name a socket: unix:///SOCKET[?db=N]")


def _about(name: str, *, is_tls: bool) -> str:
    """What is wrong with an option. Only a name that the driver knows may be told."""
    if name in _KNOWN:
        if name.startswith("ssl_") and not is_tls:
            return f"its ?option {name} is for TLS: say rediss:// or rediss+sentinel://, or leave it out"
        return f"its ?option {name} must be {_WANTED.get(URL_QUERY_ARGUMENT_PARSERS.get(name), 'another value')}"
    if name in _OURS:
        return (
            f"its ?option {name} is not for the URL to say, taskflow speaks to the server in its own way: leave it out"
        )
    meant = nearest(name, _KNOWN)
    hint = f"did you mean {meant}?" if meant else f"options are db, socket_timeout and others of the driver; {_ENCODE}"
    return f"it has an ?option that is not known: {hint}"


def _check_files(made: dict[str, Any]) -> None:
    """Read them as the driver will: it would complain of the server."""
    for option in _TLS_FILES:
        if option in made and not os.access(made[option], os.R_OK):
            raise ConfigError(f"TASKFLOW_BROKER__URL: {option}={made[option]} is no file that can be read here")
    trusted, cert, key = (made.get(option) for option in _TLS_FILES)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if trusted is not None:
        try:
            context.load_verify_locations(trusted)
        except (ssl.SSLError, OSError):
            raise ConfigError(
                f"TASKFLOW_BROKER__URL: ssl_ca_certs={trusted} holds no certificate of a CA: it must be a PEM file"
            ) from None
    if key is not None and cert is None:
        raise ConfigError(
            "TASKFLOW_BROKER__URL: ssl_keyfile is there without ssl_certfile, the certificate of that key"
        )
    if cert is not None:
        try:
            context.load_cert_chain(
                cert, key, password=made.get("ssl_password") or ""
            )  # without one it asks a terminal
        except (ssl.SSLError, OSError, ValueError):
            raise ConfigError(
                f"TASKFLOW_BROKER__URL: ssl_certfile={cert} and ssl_keyfile={key or cert} must be PEM files, a "
                "certificate and the key that it was made for; of an encrypted key, ssl_password is the password"
            ) from None


def _refused(why: str) -> ConfigError:
    return ConfigError(f"TASKFLOW_BROKER__URL is no address of a Redis server: {why}")
