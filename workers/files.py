"""Hashes of files, in threads: the plain `def` example. hashlib frees the interpreter lock, so the threads really run.

Try `taskflow run workers.files:flow hash_file --jsonl FILE`, with lines like `{"path": "/var/log/syslog"}`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from taskflow import GiveUp, Retry, TaskFlow

__all__ = ["flow", "hash_file"]

flow = TaskFlow()


@flow.task(
    timeout=600,
    # A disk or a network share may recover; a file that is not there, or not ours to read, will not.
    retry=Retry(attempts=3, on=(OSError,), never=(FileNotFoundError, PermissionError)),
)
def hash_file(path: str, algorithm: str = "sha256") -> str:
    """The digest of the file at `path`, in hexadecimal. It is read in chunks, so its size does not matter."""
    if algorithm not in hashlib.algorithms_guaranteed or algorithm.startswith("shake"):
        raise GiveUp(f"unknown algorithm {algorithm!r}; sha256 and blake2b are good ones")
    file = Path(path)
    if file.exists() and not file.is_file():
        raise GiveUp("only regular files have an end: this is a folder, a device or a pipe")
    with file.open("rb", buffering=0) as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()
