"""What the webhook worker takes from its environment: `WEBHOOK_*`, checked at start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from taskflow import RateLimit
from taskflow.errors import ConfigError
from workers.webhook.signature import parse_secrets

if TYPE_CHECKING:
    from collections.abc import Mapping

_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """`keys` sign, the first is the newest. Durations are seconds."""

    keys: tuple[bytes, ...] = field(repr=False)
    allow_private: bool = False
    connect_timeout_s: float = 5.0  # a host that is up answers within two lost SYN packets (1 s + 2 s)
    timeout_s: float = 30.0  # the upper end of what Standard Webhooks recommends; redirects and all


def read_settings(environ: Mapping[str, str]) -> WebhookSettings:
    """The settings in `environ`. Raises `ConfigError` that names the variable, never a secret."""
    return WebhookSettings(
        keys=parse_secrets(environ.get("WEBHOOK_SECRET", ""), variable="WEBHOOK_SECRET"),
        allow_private=_flag(environ, "WEBHOOK_ALLOW_PRIVATE"),
        connect_timeout_s=_seconds(environ, "WEBHOOK_CONNECT_TIMEOUT_S", 5.0),
        timeout_s=_seconds(environ, "WEBHOOK_TIMEOUT_S", 30.0),
    )


def read_rate(environ: Mapping[str, str]) -> RateLimit | None:
    """The rate for each host, `WEBHOOK_RATE`, as in "100/m"; None if it is not set."""
    rate = environ.get("WEBHOOK_RATE", "")
    try:
        return RateLimit("http", rate, per_lane=True) if rate else None
    except ConfigError as error:
        raise ConfigError(f"WEBHOOK_RATE: {error}") from None


def _flag(environ: Mapping[str, str], variable: str) -> bool:
    value = environ.get(variable, "").strip().lower()
    if value not in _YES + _NO:
        raise ConfigError(f"{variable} must be 1 or 0, got {value!r}")
    return value in _YES


def _seconds(environ: Mapping[str, str], variable: str, default: float) -> float:
    text = environ.get(variable, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    # 300 s: the default timeout of a job, which would end the attempt first.
    if not 0 < value <= 300:
        raise ConfigError(f"{variable} must be a number of seconds, more than 0 and at most 300, got {text!r}")
    return value
