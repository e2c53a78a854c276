"""The cyclic garbage collector, and the work that it only holds up."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def no_collection() -> Iterator[None]:
    """Without the collector: a batch is many objects that all stay, and each look at them is in vain.

    A tenth of what `submit_many` costs in process, and what ages the heap towards a look at all of it. Nothing may be
    awaited meanwhile.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
