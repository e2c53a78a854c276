"""A Valkey sentinel of the test's own: it watches one primary, and promotes its replica once that is gone."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import redis

from tests.servers.ports import free_port
from tests.servers.valkey import ValkeyServer, needed

if TYPE_CHECKING:
    from types import TracebackType

_START_S = 15.0
SERVICE = "jobs-main"


class Sentinel:
    """Alone, so that its own word is the majority. It finds the replica through the primary."""

    def __init__(self, primary: ValkeyServer, *, password: str | None = None) -> None:
        self.port = free_port()
        self._password = password
        self._folder = Path(tempfile.mkdtemp(prefix="tf-sentinel-"))
        self._file = self._folder / "conf"  # it writes there what it knows
        words = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self._folder}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 1",
            f"sentinel down-after-milliseconds {SERVICE} 500",
            f"sentinel failover-timeout {SERVICE} 3000",
            *([f"sentinel auth-pass {SERVICE} {primary.password}"] if primary.password else []),
            *([f"requirepass {password}"] if password else []),
        ]
        self._file.write_text("\n".join(words) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [needed(), self._file, "--sentinel"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        give_up_at = time.monotonic() + _START_S
        while not self._knows_a_replica():
            if time.monotonic() > give_up_at or self._process.poll() is not None:
                said = (self._folder / "log").read_text(errors="replace")[-2_000:]
                self.__exit__(None, None, None)
                raise RuntimeError(f"the sentinel knows no replica:\n{said}")
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _knows_a_replica(self) -> bool:
        try:
            with redis.Redis(port=self.port, password=self._password, socket_timeout=1.0) as client:
                found = client.execute_command("SENTINEL", "REPLICAS", SERVICE)
        except (redis.RedisError, OSError):
            return False
        return bool(found)
