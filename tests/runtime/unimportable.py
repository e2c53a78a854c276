"""A module that cannot be imported where UNIMPORTABLE says so, as a child process may find it."""

from __future__ import annotations

import os
import time

match os.environ.get("UNIMPORTABLE"):
    case "raises":
        raise RuntimeError("no licence on this machine")
    case "hangs":
        time.sleep(600)


def work() -> str:
    return "done"
