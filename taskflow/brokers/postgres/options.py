"""The options of a PostgreSQL URL: libpq's, as far as the driver keeps what they promise."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from taskflow.errors import ConfigError
from taskflow.nearest import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

_ADDRESS = frozenset({"host", "port", "dbname", "user", "password", "passfile", "target_session_attrs"})
_TLS = frozenset(
    {"sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword"}
    | {"ssl_min_protocol_version", "ssl_max_protocol_version"}
)
_KERBEROS = frozenset({"krbsrvname", "gsslib"})
_SETTINGS = frozenset({"application_name", "options"})  # the server's, which the driver hands on
_TAKEN = _ADDRESS | _TLS | _KERBEROS | _SETTINGS
# Nothing is promised that we do not keep: each call has a limit of its own, which finds a dead connection sooner.
_NEEDLESS = frozenset(
    {"keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"}
    | {"fallback_application_name", "sslcompression", "sslsni"}
)
_ONLY = {  # what the driver does anyway; with another value something would be promised that it cannot keep
    "gssencmode": ("disable", "prefer"),
    "channel_binding": ("disable", "prefer"),
    "client_encoding": ("auto", "utf8", "utf-8"),
}
_SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_FILES = ("sslcert", "sslkey", "sslrootcert", "sslcrl", "passfile")
_OURS = frozenset({"listen", "connect_timeout"})  # not the driver's to know
_KNOWN = _TAKEN | _NEEDLESS | _OURS | frozenset(_ONLY)


def for_driver(options: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those that the driver must know. Raises `ConfigError` for one that nobody can honour, never with a secret."""
    found: list[tuple[str, str]] = []
    for name, value in options:
        if name in _ONLY:
            if value.lower() not in _ONLY[name]:
                raise _refused(f"{name} can be {' or '.join(_ONLY[name])} here: the driver has no more to offer")
        elif name in _TAKEN:
            if name in _FILES:
                _check_file(name, value)
            found.append((name, value))
        elif name not in _KNOWN:
            # Its name is not told: it may be a part of a password that was not encoded.
            meant = nearest(name, sorted(_KNOWN))
            hint = f": did you mean {meant}?" if meant else "."
            raise _refused(
                f"it has an ?option that libpq does not know, or the driver{hint} A setting of the server goes as "
                "?options=-c%20NAME%3DVALUE; in values write %26 for &"
            )
    _check_tls(dict(found))
    return found


def connect_s(options: Iterable[tuple[str, str]], default: float) -> float:
    """Libpq's `connect_timeout` in seconds, 0 being the default. Raises `ConfigError`."""
    said = dict(options).get("connect_timeout")
    if said is None:
        return default
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 3_600:
        raise _refused(f"connect_timeout must be seconds from 0 to 3600, got {said!r}")
    return seconds or default


def _check_tls(options: dict[str, str]) -> None:
    mode = options.get("sslmode", "prefer")
    if mode not in _SSLMODES:
        raise _refused(f"sslmode must be one of {', '.join(_SSLMODES)}, got {mode!r}")


def _check_file(name: str, value: str) -> None:
    if not os.access(value, os.R_OK) or not Path(value).is_file():
        raise _refused(f"{name}={value} is no file that can be read here")


def _refused(why: str) -> ConfigError:
    return ConfigError(f"TASKFLOW_BROKER__URL: {why}")
