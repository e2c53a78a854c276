"""The scripts: one a verb, each begins with the prelude. They are called by hash, and sent when the server forgot."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Script(NamedTuple):
    """What the server runs, and the name by which it knows it."""

    text: str
    sha: str


@cache
def script(verb: str) -> Script:
    """The script of this verb."""
    text = f"{_read('prelude')}\n{_read(verb)}"
    return Script(text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324 - the server's own way to name scripts


@cache
def _read(name: str) -> str:
    return (files(__package__) / "scripts" / f"{name}.lua").read_text("utf-8")
