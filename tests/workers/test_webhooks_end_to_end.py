"""219 real webhooks of GitHub, through `taskflow run`, to a receiver that answers almost a third of them badly.

The payloads are not part of the repository: TASKFLOW_TEST_WEBHOOKS names the file (gzipped JSON lines of
`{"event": ..., "payload": ...}`), or it lies in `../shared/data`.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from examples.receiver import Mood, Receiver

ROOT = Path(__file__).parents[2]
WEBHOOKS = Path(os.environ.get("TASKFLOW_TEST_WEBHOOKS", ROOT.parent / "shared" / "data" / "github_webhooks.jsonl.gz"))
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(150),
    pytest.mark.skipif(not WEBHOOKS.exists(), reason="no real webhooks here: TASKFLOW_TEST_WEBHOOKS names the file"),
]


def write_jobs(path: Path, url: str) -> list[Any]:
    """One job a line; returns the payloads."""
    with gzip.open(WEBHOOKS, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    with path.open("w") as jobs:
        for row in rows:
            jobs.write(json.dumps({"url": url, "payload": row["payload"], "event": row["event"]}) + "\n")
    return [row["payload"] for row in rows]


async def taskflow_run(jobs: Path, folder: Path) -> tuple[int, dict[str, Any]]:
    """Exit code and summary of `taskflow run`."""
    environment = {
        "TASKFLOW_BROKER__URL": f"sqlite:///{folder / 'jobs.db'}",
        "WEBHOOK_SECRET": SECRET,
        "WEBHOOK_ALLOW_PRIVATE": "1",
        "WEBHOOK_TIMEOUT_S": "1",
        "TASKFLOW_TASKS__DELIVER__RETRY__MAX_DELAY_S": "2",  # the test should not take long
    }
    command = ["-m", "taskflow", "run", "workers.http:flow", "deliver", "--jsonl", str(jobs), "--json"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=ROOT, env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(120):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, json.loads(out)


async def test_every_webhook_arrives_but_for_those_that_are_refused_for_good(tmp_path: Path):
    mood = Mood(bad=0.3, refuse=0.05, seed=7)
    jobs = tmp_path / "jobs.jsonl"

    async with Receiver(mood, secrets=SECRET) as receiver:
        payloads = write_jobs(jobs, receiver.url)
        code, summary = await taskflow_run(jobs, tmp_path)
    ledger = receiver.ledger
    seen = ledger.summary()
    print(f"{mood}: {seen}")

    wanted = Counter(text for text in map(compact, payloads) if not receiver.refuses(text.encode()))
    assert Counter(map(compact, ledger.accepted.values())) == wanted
    assert {failed["id"] for failed in summary["failed"]} == ledger.refused
    assert all("answered 422" in failed["error"] for failed in summary["failed"])
    assert summary["outcomes"] == {"succeeded": wanted.total(), "dead": len(payloads) - wanted.total()}
    assert (len(payloads), code) == (219, 1)  # 1: some are dead

    assert seen["violations"] == 0  # no request in a time for which the receiver asked for a pause
    assert seen["pauses"] > 0
    assert seen["bad"] >= 0.2 * seen["requests"]
    assert seen["replies"].get("401", 0) == 0  # every signature was right
    assert not ledger.refused & ledger.accepted.keys()


def compact(payload: Any) -> str:
    """The body as it travels."""
    return json.dumps(payload, separators=(",", ":"))
