"""`taskflow check`: would a worker start here, and do what is meant? Looks at everything, changes nothing."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

import click

from taskflow.app import make_broker
from taskflow.brokers.base import Doubtful, Versioned
from taskflow.cli.exits import Exit
from taskflow.cli.loading import load_app
from taskflow.cli.operating import missing_file, sqlite_file
from taskflow.cli.review import Review, review, unfed
from taskflow.cli.running import open_broker, print_json, run_async
from taskflow.cli.shown import count_of
from taskflow.clock import LoopClock
from taskflow.errors import BrokerError, ConfigError
from taskflow.running import queue_weights
from taskflow.settings import Settings, unknown_variables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from taskflow.app import TaskFlow
    from taskflow.runtime.task import TaskDef

_SPARE_FILES = 100  # for the interpreter, logs, the broker and HTTP, beside those of the jobs


class Verdict(StrEnum):
    """How one check went. A warning does not change the exit code."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


class Finding(NamedTuple):
    """One line. `code` is what a failure ends the command with."""

    check: str
    verdict: Verdict
    message: str
    code: Exit = Exit.DONE


@click.command()
@click.argument("app", required=False)
@click.option("--json", "as_json", is_flag=True, help="A JSON array of the checks.")
@click.pass_context
def check(ctx: click.Context, app: str | None, *, as_json: bool) -> None:
    """Check the settings, the app, its tasks and the broker, and change nothing.

    APP is module:attribute; without it TASKFLOW_APP, if set. Exit 0 if a worker can start, 2 if something is wrong
    with the configuration or the app, 3 if only the broker is.
    """
    findings = list(_findings(app))
    if as_json:
        print_json([{"check": found.check, "verdict": found.verdict, "message": found.message} for found in findings])
    else:
        for found in findings:
            click.echo(f"{found.verdict:<8} {found.check:<9} {found.message}")
    ctx.exit(min((found.code for found in findings if found.code), default=Exit.DONE))


def _findings(app: str | None) -> Iterator[Finding]:
    try:
        settings = Settings.from_env()
    except ConfigError as error:
        yield from _failed("settings", error)
        misspelt = (str(word) for word in unknown_variables())
        yield from (_warning("variables", word) for word in misspelt if word not in str(error))
        yield Finding("app", Verdict.SKIPPED, "until the settings are right")
        yield Finding("broker", Verdict.SKIPPED, "until the settings are right")
        return
    yield _ok("settings", "valid")
    yield from (_warning("variables", word) for word in settings.warnings)
    if not settings.warnings:
        yield _ok("variables", "none is misspelt")
    flow: TaskFlow | None = None
    if app or settings.app:
        try:
            flow = load_app(app, settings)
            settings = flow.settings  # an app may bring its own
        except ConfigError as error:
            yield from _failed("app", error)
    else:
        yield Finding("app", Verdict.SKIPPED, "none is named: say module:attribute, or set TASKFLOW_APP")
    if flow is not None:
        yield from _app(flow, app or settings.app or "")
    yield _broker(settings)


# --- the app ---------------------------------------------------------


def _app(flow: TaskFlow, name: str) -> Iterator[Finding]:
    tasks = ", ".join(sorted(flow.tasks)[:10]) + (", …" if len(flow.tasks) > 10 else "")
    found = review(flow)
    if flow.tasks:
        yield _ok("app", f"{name} has {count_of(len(flow.tasks), 'task')}: {tasks}")
    else:
        yield from (_warning("app", text) for text in unfed(flow, found, ()))
    yield from (Finding("tasks", Verdict.FAILED, text, Exit.USAGE) for text in found.problems)
    yield from (_warning("tasks", text) for text in found.misspelt)
    if not found.problems and not found.misspelt:
        yield _ok("tasks", "all policies are valid, no override is of an unknown task")
    yield from (_warning("gates", text) for text in found.gates)
    if len(found.policies) == len(flow.tasks):
        yield from _queues(flow, found)
    yield from _sizes(flow)


def _queues(flow: TaskFlow, found: Review) -> Iterator[Finding]:
    worked = queue_weights(flow, None)
    fed: dict[str, list[str]] = {}
    for name, policy in sorted(found.policies.items()):
        fed.setdefault(policy.queue, []).append(name)
    for queue in sorted(fed.keys() - worked.keys()):
        yield _warning(
            "queues", f"jobs of {', '.join(fed[queue])} go to queue {queue!r}, which TASKFLOW_WORKER__QUEUES leaves out"
        )
    if flow.tasks:
        yield from (_warning("queues", text) for text in unfed(flow, found, worked))
    if fed.keys() <= worked.keys():
        yield _ok("queues", f"a worker works {', '.join(worked)}")


def _sizes(flow: TaskFlow) -> Iterator[Finding]:
    """Whether threads, files and concurrency fit together."""
    worker = flow.settings.worker
    found: list[str] = []
    kinds = Counter(_place(task.definition) for task in flow.tasks.values())
    threads_said = flow.settings.source(("worker", "threads")) != "default"
    if threads_said and worker.threads > worker.concurrency:
        found.append(
            f"TASKFLOW_WORKER__THREADS is {worker.threads}, but only {worker.concurrency} jobs run at once "
            "(TASKFLOW_WORKER__CONCURRENCY): the other threads are never used"
        )
    if kinds.keys() == {"thread"} and worker.concurrency > worker.threads:
        found.append(
            f"all tasks are plain functions, which run in threads: {worker.threads} of them at once "
            f"(TASKFLOW_WORKER__THREADS), never {worker.concurrency} (TASKFLOW_WORKER__CONCURRENCY)"
        )
    if kinds.keys() == {"process"} and worker.concurrency > worker.children:
        found.append(
            f"all tasks run in child processes: {worker.children} of them at once (TASKFLOW_WORKER__CHILDREN), never "
            f"{worker.concurrency} (TASKFLOW_WORKER__CONCURRENCY)"
        )
    files = _open_files()
    if files is not None and files < worker.concurrency + _SPARE_FILES:
        found.append(
            f"{worker.concurrency} jobs at once (TASKFLOW_WORKER__CONCURRENCY), but this process may open only {files} "
            "files and sockets (ulimit -n)"
        )
    yield from (_warning("sizes", text) for text in found)
    if not found:
        children = f", {worker.children} in child processes" if kinds["process"] else ""
        yield _ok(
            "sizes", f"{worker.concurrency} jobs at once in a process, {worker.threads} of them in threads{children}"
        )


def _place(task: TaskDef) -> str:
    """Where its handler runs."""
    return "loop" if task.is_async else "thread" if task.where is None else "process"


def _open_files() -> int | None:
    """How many files this process may have open; None where there is no such limit."""
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


# --- the broker ------------------------------------------------------


def _broker(settings: Settings) -> Finding:
    if settings.broker.scheme == "memory":
        return _warning("broker", "memory:// dies with its process: `taskflow worker` and `submit` refuse it")
    try:
        return run_async(_look_at(settings))
    except ConfigError as error:
        return next(iter(_failed("broker", error)))
    except BrokerError as error:
        return Finding("broker", Verdict.FAILED, f"{settings.broker.shown_url}: {error}", Exit.BROKER)


async def _look_at(settings: Settings) -> Finding:
    """What is there: opening it as a worker does would make it, or bring its schema up to date."""
    broker = make_broker(settings, LoopClock())
    file = sqlite_file(settings)
    what = settings.broker.shown_url if file is None else str(file.absolute())
    if not isinstance(broker, Versioned):
        return _found(f"{what} is reachable", await _reach(settings))
    version = await broker.version()
    if version == 0:
        there = (
            f"{what} does not exist yet" if missing_file(settings) else f"{what} is reachable, and has no schema yet"
        )
        there = f"{there}: the first worker or submit makes it"
    elif version < broker.newest_version:
        there = (
            f"{what} is reachable; the next command brings its schema from version {version} to {broker.newest_version}"
        )
    else:
        there = f"{what} is reachable, schema version {version}"
    return _found(there, broker.doubts if isinstance(broker, Doubtful) else ())


def _found(there: str, doubts: Sequence[str]) -> Finding:
    return _warning("broker", f"{there}, but {'; '.join(doubts)}") if doubts else _ok("broker", there)


async def _reach(settings: Settings) -> tuple[str, ...]:
    """What its server may cost, if it can be reached."""
    async with open_broker(settings) as broker:
        await broker.counts()
        return broker.doubts if isinstance(broker, Doubtful) else ()


# --- findings --------------------------------------------------------


def _ok(check: str, message: str) -> Finding:
    return Finding(check, Verdict.OK, message)


def _warning(check: str, message: str) -> Finding:
    return Finding(check, Verdict.WARNING, message)


def _failed(check: str, error: ConfigError) -> Sequence[Finding]:
    return [Finding(check, Verdict.FAILED, line, Exit.USAGE) for line in str(error).splitlines()]
