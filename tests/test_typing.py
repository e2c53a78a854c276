"""The public API is typed: right code passes mypy --strict, wrong arguments do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_public_api_is_typed_from_the_arguments_to_the_result() -> None:
    pytest.importorskip("mypy")
    checked = Path(__file__).with_name("typing_api.py")

    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(checked)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )

    assert done.stdout == ""
    assert done.returncode == 0
