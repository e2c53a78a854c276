"""Standard Webhooks signatures: `v1`, HMAC-SHA256 over id, timestamp and body (standardwebhooks.com, version 1.0.0)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from taskflow.errors import ConfigError

_PREFIX = "whsec_"
_MIN_BYTES, _MAX_BYTES = 24, 64  # 192 and 512 bits, as the specification wants


def parse_secrets(text: str, *, variable: str) -> tuple[bytes, ...]:
    """The keys in `text`: one secret, or several between spaces while they are rotated, the newest first.

    Raises `ConfigError` that names `variable`, and never shows any part of a secret.
    """
    secrets = text.split()
    if not secrets:
        raise ConfigError(f"{variable} is not set: it signs every webhook. {_how_to_make(variable)}")
    return tuple(_key(secret, f"{variable}: secret {n} of {len(secrets)}") for n, secret in enumerate(secrets, 1))


def signature_headers(keys: tuple[bytes, ...], *, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a webhook. With several keys there is one signature of each: receivers need only one."""
    content = f"{webhook_id}.{timestamp}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode() for key in keys)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def _key(secret: str, what: str) -> bytes:
    problem = ""
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key, problem = b"", "is not base64 after its prefix"
    if not secret.startswith(_PREFIX):
        problem = f"does not start with {_PREFIX!r}"
    elif not problem and not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        problem = f"has {len(key)} bytes, not {_MIN_BYTES} to {_MAX_BYTES}"
    if problem:
        raise ConfigError(f"{what} {problem}. {_how_to_make(what.partition(':')[0])}")
    return key


def _how_to_make(variable: str) -> str:
    return f'Make one: export {variable}="{_PREFIX}$(openssl rand -base64 32)"'
