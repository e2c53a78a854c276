"""What all tests share."""

from __future__ import annotations

import signal

import pytest

# Whoever started us may ignore them (`nohup`, a shell's `&`), and every process that a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
