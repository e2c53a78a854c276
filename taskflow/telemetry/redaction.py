"""Keeps secrets, endless values and strange objects out of log lines: by key name, and by shape.

What comes out is plain JSON data: strings, numbers, booleans, None, lists, and dictionaries with string keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Any

HIDDEN = "***"
MAX_VALUE = 512  # characters of one bound value
MAX_TEXT = 8_192  # of a message
MAX_STACK = 32_768  # of a traceback
_MAX_SCANNED = 131_072  # of anything: what is longer is cut before it is searched for secrets
_MAX_KEY, _MAX_ITEMS, _MAX_DEPTH = 100, 50, 4
_MAX_INT = 2**63  # beyond it JSON readers lose digits, and Python refuses to print some at all

# In a key, wherever they stand; without separators, so that api_key, api-key and apiKey are one.
_SECRET = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "authorization",
    "cookie",
    "apikey",
    "accesskey",
    "privatekey",
    "credential",
)
_SECRET_WORDS = {"dsn", "pwd", "pw", "pass", "auth", "jwt", "sid"}  # only as a whole word: `ads_name` has no DSN
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")

# "password=x", "'password': 'x'", "Authorization: Bearer x"; a bare "token: x" is mostly a parser's complaint.
_PAIR = re.compile(
    r"""(?ix)
    ( (?: password | passwd | passphrase | pwd | secret | token | api[_-]?key | access[_-]?key | private[_-]?key
        | authorization | cookie | credentials? | dsn )
      (?: [\w-]{0,20} ["']? \s{0,2} = \s{0,2} | [\w-]{0,20} ["'] \s{0,2} : \s{0,2} | (?<!token) \s{0,2} : \s{0,2} ) )
    ( "[^"]* (?: " | $ ) | '[^']* (?: ' | $ ) | [\[({] [^\])}]* [\])}]?
     | (?: (?: bearer | basic | digest | token ) \s{1,2} )? [^\s,;&)}\]]+ )
    """
)
_INPUT = re.compile(r"(input_value=).{0,300}?(, input_type=)", re.DOTALL)  # pydantic quotes the argument it refuses
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s{1,2}[\w.~+/=-]{6,}")
_AUTHORITY = re.compile(r"[^\s/?#]*")
_UNBROKEN = re.compile(r"\S*")
_HOST_AND_PORT = re.compile(r"[^:]*:\d*|\[[^\]]*\](:\d*)?")


@lru_cache(maxsize=2_048)
def is_secret(key: str) -> bool:
    """Whether the name says that the value is nobody's business."""
    squashed = re.sub(r"[^a-z]", "", key.lower())
    if any(word in squashed for word in _SECRET):
        return True
    return any(word.lower() in _SECRET_WORDS for word in _WORD.findall(key))


def scrub(text: str, most: int = MAX_TEXT) -> str:
    """`text` without the userinfo of URLs and what is said to be a secret, cut to `most` characters."""
    if len(text) > _MAX_SCANNED:
        text = text[:_MAX_SCANNED]
    if "://" in text:
        head, *rest = text.split("://")
        text = "://".join([head, *map(_without_userinfo, rest)])
    if "input_value=" in text:
        text = _INPUT.sub(rf"\1{HIDDEN}\2", text)
    if "=" in text or ":" in text:
        text = _PAIR.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    return text if len(text) <= most else f"{text[:most]}… [{len(text) - most} more]"


def scrub_stack(text: str) -> str:
    """A traceback as `scrub` leaves it; of a long one the end, which tells most."""
    if len(text) > MAX_STACK:
        text = "[…]\n" + text[-MAX_STACK:].partition("\n")[2]  # from a whole line: half a URL hides its password
    return scrub(text, MAX_STACK + 4)


def clean(key: str, value: Any, depth: int = 0) -> Any:
    """`value` as JSON data that may be shown: secrets hidden, long and deep things cut."""
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    if is_secret(key) and not (kind in (int, float) and key.lower().endswith("tokens")):  # a count of them is none
        return HIDDEN
    if kind is str:
        return value if len(value) <= 16 and value.isalnum() else scrub(value, MAX_VALUE)  # the fast way
    if kind is int:
        return value if -_MAX_INT <= value < _MAX_INT else f"{value:#x}"[:MAX_VALUE]
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping | list | tuple | AbstractSet) and depth < _MAX_DEPTH:
        return _clean_all(key, value, depth + 1)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    return scrub(text_of(value), MAX_VALUE)


def text_of(value: Any) -> str:
    """`str(value)`, whatever it does."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a log line must not fail for what it is about
        return f"<unprintable {type(value).__name__}>"


def _clean_all(key: str, value: Any, depth: int) -> Any:
    try:
        if isinstance(value, Mapping):
            pairs = [(text_of(k)[:_MAX_KEY], v) for k, v in list(value.items())[:_MAX_ITEMS]]
            return {k: clean(k, v, depth) for k, v in pairs}
        return [clean(key, item, depth) for item in list(value)[:_MAX_ITEMS]]
    except Exception:  # noqa: BLE001 - changed by another thread meanwhile, or not what it says it is
        return f"<unreadable {type(value).__name__}>"


def _without_userinfo(rest: str) -> str:
    """What follows a "://", without user and password."""
    authority = _AUTHORITY.match(rest)
    assert authority is not None  # it matches nothing, too
    at = authority.group().rfind("@")
    if at < 0 and ":" in authority.group() and not _HOST_AND_PORT.fullmatch(authority.group()):
        unbroken = _UNBROKEN.match(rest)  # a password with a bare "/": no URL, and a secret all the same
        assert unbroken is not None
        at = unbroken.group().rfind("@")
    return rest if at < 0 else HIDDEN + rest[at:]
