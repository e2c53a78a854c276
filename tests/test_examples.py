"""Every example runs as its docstring says, and ends well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem != "__init__")
ARGUMENTS = {"receiver": ["--stop-after", "0.5"]}
LIMIT_S = {"first_run": 30, "killable": 30}  # it starts four processes; the others are tiny


def start(example: str, folder: Path) -> subprocess.Popen[str]:
    """The example, as a user starts it, with its files in `folder`."""
    ours = ("TASKFLOW_", "WEBHOOK_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    command = [sys.executable, "-u", "-W", "error", "-m", f"examples.{example}", *ARGUMENTS.get(example, [])]
    return subprocess.Popen(
        command, cwd=ROOT, env={**environment, "TMPDIR": str(folder)}, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_ends_well_and_leaves_nothing_behind(example: str, tmp_path: Path):
    before = set(ROOT.glob("*.db*"))

    with start(example, tmp_path) as process:
        try:
            out, _ = process.communicate(timeout=LIMIT_S.get(example, 15))
        finally:
            process.kill()
    print(out)

    assert process.returncode == 0
    assert out
    assert list(tmp_path.iterdir()) == []
    assert set(ROOT.glob("*.db*")) == before


@pytest.mark.timeout(120)
def test_first_run_that_was_killed_goes_on_and_loses_nothing(tmp_path: Path):
    with start("first_run", tmp_path) as process:
        assert process.stdout is not None
        while "arrived" not in process.stdout.readline():
            assert process.poll() is None
        process.kill()

    with start("first_run", tmp_path) as process:
        try:
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    print(out)

    assert "Going on where the last run was stopped" in out
    assert process.returncode == 0
    assert "Every digest arrived, and each is right." in out
