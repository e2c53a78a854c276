"""What a misspelt word was most likely meant to be."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that is most like `word`, or None if none is."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)
