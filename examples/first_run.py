"""The first thing to run: real files, a receiver that fails on purpose, and nothing lost.

    python -m examples.first_run

Some 300 files of this machine's own Python are hashed, and each digest is delivered to `examples.receiver`, which
answers almost a third of all requests badly: errors, silence, cut connections, `Retry-After`. At the end the
receiver's ledger must hold each digest, once and right. Jobs wait in one SQLite file in the temporary folder: kill
the program in the middle, start it again, and it goes on.
"""

from __future__ import annotations

import asyncio
import base64
import getpass
import json
import os
import secrets
import shutil
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from examples.receiver import Mood, Receiver
from taskflow import Bulkhead, JobFailed, Retry, TaskFlow, events
from workers.files import hash_file
from workers.http import deliver, sending

FILES = 300
MOOD = Mood(bad=0.3, seed=7)

flow = TaskFlow()
flow.lifespan(sending)  # the HTTP session of `deliver`, for the worker's life
decisions: Counter[str] = Counter()  # what became of the attempts: Complete, Retry, Snooze, Bury


# The bulkhead makes the gate `http`, which a `Retry-After` holds. No breaker: this receiver is bad, but never down.
@flow.task(retry=Retry(attempts=8, on=(OSError,), base=0.2, max_delay=2), bulkhead=Bulkhead("http", 10))
async def hash_and_deliver(path: str, url: str) -> None:
    """Deliver the digest of one file."""
    digest = await asyncio.to_thread(hash_file, path)
    await deliver(url, {"path": path, "sha256": digest})


async def run(folder: Path) -> bool:
    """Submit (unless an earlier run did), work, and compare. True if everything arrived as it should."""
    began = time.monotonic()
    notes = folder / "run.json"  # written when all jobs are in the queue; from then on a run can be gone on with
    port = json.loads(notes.read_text())["port"] if notes.exists() else 0
    async with Receiver(
        MOOD, secrets=os.environ["WEBHOOK_SECRET"], ledger=folder / "ledger.jsonl", port=port
    ) as receiver:
        async with flow:
            if port:
                print(f"Going on where the last run was stopped: {len(receiver.ledger.accepted)} had arrived.")
            else:
                calls = [hash_and_deliver.call(str(path), receiver.url) for path in some_files()]
                jobs = await hash_and_deliver.submit_many(calls)
                notes.write_text(json.dumps({"port": receiver.port, "jobs": [job.id for job in jobs]}))
            ids = json.loads(notes.read_text())["jobs"]
            print(f"{len(ids)} files to hash and deliver to {receiver.url}, which fails on purpose.")
            async with flow.worker(concurrency=20), asyncio.TaskGroup() as group:
                progress = group.create_task(show_progress(receiver, len(ids)))
                for job_id in ids:
                    with suppress(JobFailed):
                        await flow.job(job_id).result()
                progress.cancel()
        return report(receiver, len(ids), time.monotonic() - began)


def report(receiver: Receiver, files: int, elapsed_s: float) -> bool:
    """Print what happened, and say whether it is what should have happened."""
    ledger, summary = receiver.ledger, receiver.ledger.summary()
    replies: dict[str, int] = summary["replies"]
    arrived = Counter((str(payload["path"]), str(payload["sha256"])) for payload in ledger.accepted.values())
    wanted = Counter((str(path), hash_file(str(path))) for path in some_files())
    rows = {
        "files": files,
        "deliveries": f"{len(ledger.accepted)}, and {ledger.duplicates} came again and were known by their webhook-id",
        "requests": summary["requests"],
        "bad answers": f"{summary['bad']}: "
        + ", ".join(f"{n}x {name}" for name, n in replies.items() if name != "200"),
        "retries": f"{decisions['Retry']} in this run",
        "snoozes": f"{decisions['Snooze']} in this run: an answer said when to come back, and no attempt was spent",
        "violations": f"{ledger.violations} requests came before that time",
        "dead letters": decisions["Bury"],
        "elapsed": f"{elapsed_s:.1f} s",
    }
    print("\n".join(f"  {name:13} {value}" for name, value in rows.items()))
    right = arrived == wanted
    print("Every digest arrived, and each is right." if right else "NOT what was sent: look at the ledger.")
    return right


def some_files() -> list[Path]:
    """The same files each time: the first of the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    files = (path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts)
    return [path for path, _ in zip(files, range(FILES), strict=False)]


async def show_progress(receiver: Receiver, files: int) -> None:
    """A line a second, for whoever watches."""
    while True:
        await asyncio.sleep(1)
        print(f"  {len(receiver.ledger.accepted)} of {files} arrived", flush=True)


def main() -> int:
    """Run it in its own folder, which goes when all is done."""
    folder = Path(tempfile.gettempdir()) / f"taskflow-first-run-{getpass.getuser()}"
    if not (folder / "run.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    os.environ["WEBHOOK_SECRET"] = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    os.environ["WEBHOOK_ALLOW_PRIVATE"] = "1"  # the receiver is on loopback
    os.environ["WEBHOOK_TIMEOUT_S"] = "1"
    os.environ["TASKFLOW_BROKER__URL"] = f"sqlite:///{folder / 'jobs.db'}"
    flow.listen(lambda event: decisions.update([type(event.decision).__name__]), events.JobSettled)
    try:
        right = asyncio.run(run(folder))
    except KeyboardInterrupt:
        print("Stopped. Start it again: it goes on.")
        return 130
    if not right:
        print(f"Everything is kept in {folder}")
        return 1
    shutil.rmtree(folder)
    print("Try next: kill it in the middle, and start it again. It goes on, and nothing is lost:")
    again = f"{os.path.relpath(sys.executable)} -m examples.first_run"
    print(f"  {again} & sleep 3; kill -9 $!; {again}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
