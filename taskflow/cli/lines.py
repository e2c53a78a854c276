"""Jobs from a JSONL file: an object of keyword arguments, or an array of positional ones, a line."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from taskflow.errors import ConfigError, PayloadError
from taskflow.runtime.ids import derived_job_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from taskflow.core.job import Job
    from taskflow.options import Options
    from taskflow.tasks import AnyTask

_SHOWN_BROKEN = 5  # lines of a file that one message names


class JobFile:
    """A file of jobs. Its digest names the batch, so that the same file, submitted again, meets its own jobs."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self.name = name
        digest, self.lines = hashlib.sha256(), 0
        for line in file:
            digest.update(line)
            self.lines += bool(line.strip())
        self.digest = digest.hexdigest()

    def job_id(self, task: str, number: int) -> str:
        """The id of the job of line `number` (the first is 1): the same for the same file, for ever."""
        return derived_job_id("line", self.digest, task, str(number))

    def check(self, task: AnyTask, options: Options) -> None:
        """Raises `PayloadError` that names the lines that are no jobs: before any other is sent."""
        broken: list[str] = []
        for number, line in self._numbered():
            try:
                self._job(number, line, task, options)
            except PayloadError as error:
                broken.append(str(error))
        if len(broken) > _SHOWN_BROKEN:
            more = len(broken) - _SHOWN_BROKEN
            broken[_SHOWN_BROKEN:] = [f"… and {more:,} more of its {self.lines:,} lines are no jobs"]
        if broken:
            raise PayloadError("\n".join(broken))

    def jobs(self, task: AnyTask, options: Options) -> Iterator[tuple[int, Job]]:
        """The jobs of all lines, in order, each with its line's number. Raises `PayloadError` that names the line."""
        for number, line in self._numbered():
            yield number, self._job(number, line, task, options)

    def _numbered(self) -> Iterator[tuple[int, bytes]]:
        """The lines that are not empty."""
        self._file.seek(0)
        return ((number, line) for number, line in enumerate(self._file, start=1) if line.strip())

    def _job(self, number: int, line: bytes, task: AnyTask, options: Options) -> Job:
        args, kwargs = arguments(line, f"{self.name}, line {number}")
        try:
            bound = task.definition.codec.bind(args, kwargs)
            return task.prepare(bound, replace(options, job_id=self.job_id(task.name, number)))
        except PayloadError as error:
            raise PayloadError(f"{self.name}, line {number}: {error}") from None


def arguments(text: bytes | str, where: str) -> tuple[tuple[object, ...], dict[str, object]]:
    """Arguments from JSON: an object gives them by name, an array by position. Raises `PayloadError`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"{where}: no JSON: {error}") from None
    match value:
        case dict():
            return (), value
        case list():
            return tuple(value), {}
        case _:
            raise PayloadError(
                f"{where}: arguments are a JSON object (by name) or array (by position), got {_kind(value)}"
            )


def _kind(value: object) -> str:
    """What JSON calls it."""
    return {str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")


@contextmanager
def open_job_file(path: str) -> Iterator[JobFile]:
    """The job file at `path`; "-" is stdin. What can be read only once is kept in a temporary file meanwhile.

    Raises `ConfigError`.
    """
    if path == "-":
        with _kept(sys.stdin.buffer) as spool:
            yield JobFile(spool, "stdin")
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below, in the same breath
    except OSError as error:
        raise ConfigError(f"--jsonl {path}: cannot be read: {error.strerror}") from None
    with file:
        if file.seekable():
            yield JobFile(file, path)
            return
        with _kept(file) as spool:  # a pipe, as in --jsonl <(…)
            yield JobFile(spool, path)


@contextmanager
def _kept(pipe: IO[bytes]) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as spool:
        shutil.copyfileobj(pipe, spool)
        spool.seek(0)
        yield spool
