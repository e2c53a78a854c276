"""The HTTP server of a worker: /metrics, /livez, /readyz. Whatever happens in here, jobs go on."""

from __future__ import annotations

import asyncio
import gzip
import hmac
import json
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web

from taskflow.errors import ConfigError
from taskflow.http.problems import problem
from taskflow.settings.sections import is_loopback
from taskflow.telemetry.logs import announce

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from taskflow.telemetry.health import Health
    from taskflow.telemetry.metrics import Metrics

_STOP_S = 1.0  # for requests that are being answered when the worker stops; a scrape takes milliseconds
_MOST_SCRAPES = 8  # that wait for the one thread; more come back later
_MAX_BODY = 65_536  # bytes of a request; nothing here reads one


class HealthServer:
    """Serves between `start` and `stop`. Raises `ConfigError` for an address that needs a token and has none."""

    def __init__(
        self, metrics: Metrics, health: Health, host: str = "127.0.0.1", port: int = 0, token: str | None = None
    ) -> None:
        if not token and not is_loopback(host):
            raise ConfigError(
                f"TASKFLOW_HTTP__TOKEN must be set, because TASKFLOW_HTTP__HOST {host!r} can be reached from other "
                "machines (or set the host to 127.0.0.1)"
            )
        self._metrics = metrics
        self._health = health
        self._host = host
        self._port = port
        self._token = token or None
        self._runner: web.AppRunner | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._scrapes = 0

    async def start(self) -> int | None:
        """Listen, and return the port. None, and a line in the log, if that cannot be: the worker goes on."""
        app = web.Application(middlewares=[_problems], client_max_size=_MAX_BODY)
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/livez", self._get_livez)
        app.router.add_get("/readyz", self._get_readyz)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_STOP_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host.strip("[]"), self._port).start()
        except OSError as error:
            await runner.cleanup()
            reason = error.strerror or str(error)
            announce("http.unavailable", host=self._host, port=self._port, reason=reason)
            return None
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="taskflow-scrape")
        port: int = runner.addresses[0][1]
        announce("http.started", host=self._host, port=port)
        return port

    async def stop(self) -> None:
        """Stop listening. May be called at any time, and again."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(wait=False, cancel_futures=True)

    # --- what is served ----------------------------------------------

    async def _get_livez(self, _request: web.Request) -> web.Response:
        live = self._health.live()
        return _state(live.ok, "live", "not live", [] if live.ok else [live.detail])

    async def _get_readyz(self, _request: web.Request) -> web.Response:
        ready = self._health.ready()
        return _state(ready.ok, "ready", "not ready", list(ready.reasons))

    async def _get_metrics(self, request: web.Request) -> web.Response:
        if not self._may(request):
            return problem(
                HTTPStatus.UNAUTHORIZED,
                "this needs the header 'Authorization: Bearer' with the token of TASKFLOW_HTTP__TOKEN",
                headers={"WWW-Authenticate": 'Bearer realm="taskflow"'},
            )
        if self._scrapes >= _MOST_SCRAPES or self._thread is None:
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, "too many scrapes at once", retry_after_s=1)
        accept = request.headers.get("Accept", "")
        is_zipped = "gzip" in request.headers.get("Accept-Encoding", "").lower()
        self._scrapes += 1
        try:
            # In a thread: thousands of lines would hold up every job of this loop.
            body, content_type = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._render, accept, is_zipped
            )
        finally:
            self._scrapes -= 1
        headers = {"Content-Type": content_type, "Cache-Control": "no-store", "Vary": "Accept, Accept-Encoding"}
        if is_zipped:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers=headers)

    def _render(self, accept: str, is_zipped: bool) -> tuple[bytes, str]:
        body, content_type = self._metrics.render(accept)
        return (gzip.compress(body, compresslevel=1) if is_zipped else body), content_type

    def _may(self, request: web.Request) -> bool:
        if self._token is None:
            return True
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        # In the time of a constant: how long a comparison takes must not tell how much of a guess was right.
        is_right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token.encode())
        return is_right and scheme.lower() == "bearer"


def _state(ok: bool, good: str, bad: str, reasons: list[str]) -> web.Response:
    body = json.dumps({"status": good if ok else bad, "reasons": reasons}).encode()
    status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
    headers = {"Cache-Control": "no-store"}
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


@web.middleware
async def _problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Whatever goes wrong is a problem document, and a line in the log if it is our fault."""
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as refused:
        allowed = ", ".join(sorted(refused.allowed_methods))
        return problem(refused.status, f"this takes {allowed}", headers={"Allow": allowed})
    except web.HTTPNotFound as refused:
        return problem(refused.status, "nothing is here; there are /metrics, /livez and /readyz")
    except web.HTTPException as refused:
        return problem(refused.status, refused.reason)
    except Exception as error:  # noqa: BLE001 - an answer, and a line: never the worker's problem
        announce("http.failed", path=request.path, error=error)
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "this is our fault; the worker's log has the details")
