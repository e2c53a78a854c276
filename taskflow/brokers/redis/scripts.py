"""The scripts: one a verb, behind `allowed` and the prelude. They are called by hash, and sent when the server forgot.

A script that the server stops half way is not undone. So before it changes anything, each asks whether it may use the
commands that it can come to: an ACL may be narrowed at any time. Which ones these are, its text says.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

_COMMENT = re.compile(r"--.*")
_FUNCTION = re.compile(r"^local function (\w+).*?^end$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"\('([A-Z]+)'")
_BESIDES = {"EVAL", "EVALSHA", "PING", "SUBSCRIBE"}  # what is asked outside of scripts


class Script(NamedTuple):
    """What the server runs, and the name by which it knows it."""

    text: str
    sha: str


@cache
def script(verb: str) -> Script:
    """The script of this verb."""
    commands = _all_commands() if verb == "hello" else commands_of(verb)
    drains = str("even_when_full()" in _code(verb)).lower()
    # HSET first: a server of before 7 is asked by trying, and one that is full must refuse the first try.
    listed = ", ".join(f"'{command}'" for command in sorted(commands, key=lambda one: (one != "HSET", one)))
    check = f"do local denied = denied_of({{ {listed} }}, {drains}) if denied then return denied end end"
    text = "\n".join((_read("allowed"), check, _read("prelude"), _read(verb)))
    return Script(text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324 - the server's own way to name scripts


@cache
def commands_of(verb: str) -> frozenset[str]:
    """The server's commands that the script of this verb can come to."""
    functions = {found[1]: found[0] for found in _FUNCTION.finditer(_code("prelude"))}
    code = _FUNCTION.sub("", _code("prelude")) + _code(verb)
    while reached := {name for name in functions if re.search(rf"\b{name}\b", code)}:
        code += "".join(functions.pop(name) for name in reached)
    return frozenset(_COMMAND.findall(code))


def _all_commands() -> frozenset[str]:
    names = [each.name.removesuffix(".lua") for each in (files(__package__) / "scripts").iterdir()]
    verbs = {*names} - {"allowed", "prelude", "hello"}
    return frozenset(_BESIDES).union(*(commands_of(verb) for verb in verbs))


def _code(name: str) -> str:
    return _COMMENT.sub("", _read(name))


@cache
def _read(name: str) -> str:
    return (files(__package__) / "scripts" / f"{name}.lua").read_text("utf-8")
