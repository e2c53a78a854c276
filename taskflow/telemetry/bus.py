"""Hands each event to the listeners of its type. The runtime emits; nothing else logs or counts."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any, Protocol

from taskflow.core.events import BATCHES

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.core.events import Event


class Attachable(Protocol):
    """Something that subscribes by itself."""

    def subscribe(self, bus: Bus) -> None:
        """Call `bus.subscribe` for each type of event that it wants."""
        ...


class Bus:
    """Listeners are plain functions, called at once, in the order in which they subscribed."""

    __slots__ = ("_broken", "_listeners")

    def __init__(self) -> None:
        self._listeners: dict[type, list[Callable[[Any], None]]] = {}
        self._broken: set[Callable[[Any], None]] = set()

    def subscribe(self, listener: Callable[[Any], None], *types: type) -> None:
        """Call `listener` with each event of one of `types`, also one of those that come in batches."""
        for event_type in types:
            self._listeners.setdefault(event_type, []).append(listener)

    def attach(self, listener: Attachable) -> Callable[[], None]:
        """Let `listener` subscribe to whatever it wants; returns what takes all of that back."""
        before = {event_type: list(listeners) for event_type, listeners in self._listeners.items()}
        listener.subscribe(self)
        mine = [
            (event_type, added)
            for event_type, listeners in self._listeners.items()
            for added in listeners[len(before.get(event_type, ())) :]
        ]

        def detach() -> None:
            for event_type, added in mine:
                left = [one for one in self._listeners.get(event_type, ()) if one is not added]
                if left:
                    self._listeners[event_type] = left
                else:
                    self._listeners.pop(event_type, None)

        return detach

    def wants(self, event_type: type) -> bool:
        """Whether anyone listens to events of this type."""
        return event_type in self._listeners

    def emit(self, event: Event) -> None:
        """Tell all listeners. One that raises is reported once on stderr, and called again next time."""
        event_type = type(event)
        for listener in self._listeners.get(event_type, ()):
            self._call(listener, event)
        if event_type in BATCHES:
            single_type, take_out = BATCHES[event_type]
            if listeners := self._listeners.get(single_type):
                for single in take_out(event):
                    for listener in listeners:
                        self._call(listener, single)

    def _call(self, listener: Callable[[Any], None], event: Any) -> None:
        try:
            listener(event)
        except Exception:  # noqa: BLE001 - a broken listener must not hurt a job (promise 8)
            self._report(listener)

    def _report(self, listener: Callable[[Any], None]) -> None:
        if listener not in self._broken:  # not through the log: the log may be what is broken
            self._broken.add(listener)
            sys.stderr.write(f"taskflow: the listener {listener!r} raised; jobs go on\n{traceback.format_exc()}")
