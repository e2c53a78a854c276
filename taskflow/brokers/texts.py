"""Texts as the databases keep them."""

from __future__ import annotations

import json
from functools import lru_cache


@lru_cache(4096)
def gates_text(gates: tuple[str, ...]) -> str:
    """A job's gates. Empty for none."""
    return json.dumps(gates, ensure_ascii=False) if gates else ""


@lru_cache(4096)
def gates_from(text: str) -> tuple[str, ...]:
    """The gates that `gates_text` wrote."""
    return tuple(json.loads(text)) if text else ()


def storable(text: str) -> str:
    """Text that UTF-8 can hold: a message may carry half a surrogate pair, from a file name or a broken decoder."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
