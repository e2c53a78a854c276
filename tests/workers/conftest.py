"""What the tests of the workers share: servers on loopback that answer as they are told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture
def serve() -> Serve:
    """`async with serve(handler) as url:` answers every request with `handler`."""

    @asynccontextmanager
    async def serving(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[str]:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await handler(request)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, 0).start()
            yield f"http://{host}:{runner.addresses[0][1]}/hook"
        finally:
            await runner.cleanup()

    return serving
