"""What a gate has to hear of an attempt: that it is to be held, or the word of a breaker."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from taskflow.core.gate import Trip, Word


class GateHold(NamedTuple):
    """Close a gate before the settlement that goes with it: its siblings must not slip through in between."""

    gate: str
    for_s: float
    reason: str


class GateWord(NamedTuple):
    """What a breaker has to tell its gate before the settlement that goes with it: as above."""

    gate: str
    change: Trip | Word
