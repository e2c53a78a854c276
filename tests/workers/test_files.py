from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from taskflow import GiveUp, JobFailed
from workers.files import flow, hash_file

CONTENT = b"taskflow" * 200_000  # larger than one chunk


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "some file"
    path.write_bytes(CONTENT)
    return str(path)


@pytest.mark.parametrize("algorithm", ["sha256", "blake2b", "sha3_512"])
def test_digest_is_that_of_the_content(file: str, algorithm: str):
    assert hash_file(file, algorithm) == hashlib.new(algorithm, CONTENT).hexdigest()


@pytest.mark.parametrize("algorithm", ["", "rot13", "shake_128", "../sha256"])
def test_unknown_algorithm_is_given_up(file: str, algorithm: str):
    with pytest.raises(GiveUp, match="unknown algorithm"):
        hash_file(file, algorithm)


def test_what_has_no_end_is_given_up(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")

    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(GiveUp, match="only regular files"):
            hash_file(str(path))


@pytest.mark.anyio
async def test_job_runs_in_a_thread_and_returns_the_digest(file: str):
    async with flow.test() as t:
        job = await hash_file.submit(file)
        await t.run_until_idle()

        assert await job.result(timeout=1) == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.anyio
async def test_missing_file_is_dead_at_once(tmp_path: Path):
    async with flow.test() as t:
        job = await hash_file.submit(str(tmp_path / "none"))
        await t.run_until_idle()

        with pytest.raises(JobFailed, match="dead after attempt 1: FileNotFoundError"):
            await job.result(timeout=1)
