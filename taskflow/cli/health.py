"""`taskflow health`: ask a running worker whether it is live, or ready. For probes that run a command."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import click

from taskflow.cli.exits import Exit
from taskflow.cli.running import print_json
from taskflow.cli.shown import plain
from taskflow.errors import ConfigError
from taskflow.settings import DEFAULT_HTTP_PORT, Settings

if TYPE_CHECKING:
    from urllib.parse import SplitResult

_WAIT_S = 3.0  # a probe is quicker, or the worker is not well; Kubernetes gives 1 s unless told otherwise
_MOST_BYTES = 65_536
_ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}  # noqa: S104 - what is replaced


class _Answer(NamedTuple):
    """What the worker said. `status` is None when it said nothing."""

    status: int | None
    reasons: list[str]


@click.command()
@click.option("--live", "probe", flag_value="livez", help="Is its event loop alive? It never asks the broker.")
@click.option("--ready", "probe", flag_value="readyz", default="readyz", help="Can it take jobs? The default.")
@click.option("--url", help="Of the worker's HTTP server. [TASKFLOW_HTTP__HOST, TASKFLOW_HTTP__PORT]")
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
@click.pass_context
def health(ctx: click.Context, probe: str, url: str | None, *, as_json: bool) -> None:
    """Exit 0 if a running worker is ready (or live), 6 if it is not, or does not answer; the reasons are printed."""
    target = _target(url, probe)
    answer = _get(target)
    is_healthy = answer.status == http.client.OK
    if as_json:
        shown = {"url": target.geturl(), "healthy": is_healthy, "status": answer.status, "reasons": answer.reasons}
        print_json(shown)
    else:
        good, bad = ("live", "not live") if probe == "livez" else ("ready", "not ready")
        click.echo(good if is_healthy else f"{bad}: {'; '.join(answer.reasons) or f'HTTP {answer.status}'}")
    ctx.exit(Exit.DONE if is_healthy else Exit.UNHEALTHY)


def _target(url: str | None, probe: str) -> SplitResult:
    if url is None:
        settings = Settings.from_env().http
        port = DEFAULT_HTTP_PORT if settings.port is None else settings.port
        if port == 0:
            raise ConfigError("TASKFLOW_HTTP__PORT: 0 is any free port; say which one the worker took, with --url")
        host = _ANY.get(settings.host, settings.host).strip("[]")
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    target = urlsplit(url)
    try:
        port_is_valid = target.port is None or target.port > 0
    except ValueError:
        port_is_valid = False
    if target.scheme not in ("http", "https") or not target.hostname or not port_is_valid:
        raise click.UsageError(f"--url {url!r}: must be http://HOST:PORT")
    return target._replace(path=f"/{probe}", fragment="") if target.path in ("", "/") else target


def _get(target: SplitResult) -> _Answer:
    """One GET: no proxy, no redirect, no token (the probes need none)."""
    kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
    assert target.hostname is not None
    connection = kind(target.hostname, target.port, timeout=_WAIT_S)
    try:
        connection.request("GET", f"{target.path}?{target.query}" if target.query else target.path)
        response = connection.getresponse()
        return _Answer(response.status, _reasons(response.read(_MOST_BYTES)))
    except (OSError, http.client.HTTPException) as error:
        said = str(error) or type(error).__name__
        return _Answer(None, [f"no worker answers at {target.scheme}://{target.netloc}: {said}"])
    finally:
        connection.close()


def _reasons(body: bytes) -> list[str]:
    """Why not, in the words of the worker: `reasons`, or the `detail` of a problem document, or plain text."""
    text = body.decode(errors="replace")
    try:
        said: Any = json.loads(text)
    except ValueError:
        return [plain(line).strip() for line in text.splitlines()[:10] if line.strip()]
    if not isinstance(said, dict):
        return []
    reasons = said.get("reasons")
    if isinstance(reasons, dict):
        reasons = [f"{name}: {why}" for name, why in reasons.items()]
    if not isinstance(reasons, list):
        reasons = [said[key] for key in ("detail", "title") if said.get(key)][:1]
    return [plain(str(reason)) for reason in reasons]
