"""The rules of the house that a reader of the sources can check. Each says what it found, where, and why not."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import taskflow

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
OURS = sorted([*ROOT.glob("taskflow/**/*.py"), *ROOT.glob("workers/**/*.py")])
BROKERS = sorted(ROOT.glob("taskflow/brokers/**/*.py"))

# The only readers of the environment: the settings, and whoever starts a process and hands its own environment on.
READERS = {"taskflow/settings/__init__.py", "taskflow/cli/supervise.py"}
# What a user may import. The ready-made workers live on nothing else: they show what users can do.
PUBLIC = {"taskflow", "taskflow.errors", "taskflow.testing"}


def tree_of(source: Path) -> ast.Module:
    return ast.parse(source.read_text(), filename=str(source))


def place(source: Path, node: ast.stmt | ast.expr | ast.excepthandler) -> str:
    return f"{source.relative_to(ROOT)}:{node.lineno}"


def imported(source: Path) -> Iterator[tuple[ast.stmt, str]]:
    """The modules, or members of modules, that a file imports: absolute, whatever the file wrote."""
    package = source.relative_to(ROOT).parent.parts
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node, f"{module}.{alias.name}") for alias in node.names)


def uses(source: Path, *dotted: str) -> list[str]:
    """Where a file names one of `dotted`, as `import`, as `from … import` or as an attribute."""
    found = [
        place(source, node) for node, name in imported(source) if f"{name}.".startswith(tuple(f"{d}." for d in dotted))
    ]
    attributes = (node for node in ast.walk(tree_of(source)) if isinstance(node, ast.Attribute))
    return found + [place(source, node) for node in attributes if ast.unparse(node) in dotted]


def test_the_sources_are_where_these_tests_look() -> None:
    assert len(OURS) > 20
    assert len(BROKERS) >= 2


def test_imports_go_downhill_and_the_core_is_pure() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    if not program.exists():
        pytest.skip("import-linter is not installed")

    checked = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_nobody_waits_by_wait_for() -> None:
    """On 3.11 `asyncio.wait_for` swallows a cancellation that meets the result (cpython 86296)."""
    assert [where for source in OURS for where in uses(source, "asyncio.wait_for")] == []


def test_nothing_is_ever_unpickled() -> None:
    picklers = ("pickle", "marshal", "shelve", "dill", "cloudpickle")

    assert [where for source in OURS for where in uses(source, *picklers)] == []


def test_only_the_settings_read_the_environment() -> None:
    sources = [source for source in OURS if source.relative_to(ROOT).parts[0] == "taskflow"]
    readers = {
        str(source.relative_to(ROOT)) for source in sources if uses(source, "os.environ", "os.getenv", "os.environb")
    }

    assert readers <= READERS


def test_no_error_is_swallowed_unseen() -> None:
    """A bare `except`, or a broad one that does nothing, hides the one error that matters at 3 a.m."""
    found = []
    for source in OURS:
        for node in ast.walk(tree_of(source)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = {"BaseException"} if node.type is None else {ast.unparse(kind) for kind in _each(node.type)}
            is_silent = all(isinstance(step, ast.Pass | ast.Continue) for step in node.body)
            if node.type is None or (is_silent and caught & {"Exception", "BaseException"}):
                found.append(place(source, node))

    assert found == []


def _each(kind: ast.expr) -> list[ast.expr]:
    return kind.elts if isinstance(kind, ast.Tuple) else [kind]


def test_brokers_are_siblings_that_never_import_each_other() -> None:
    found = []
    siblings = {folder.parent.name for folder in ROOT.glob("taskflow/brokers/*/__init__.py")}
    assert {"memory", "sqlite", "redis", "postgres"} <= siblings
    for source in BROKERS:
        me = source.relative_to(ROOT / "taskflow/brokers").parts[0]
        for node, name in imported(source):
            parts = name.split(".")
            if parts[:2] == ["taskflow", "brokers"] and len(parts) > 2 and parts[2] in siblings - {me}:
                found.append(f"{place(source, node)}: {name}")

    assert found == []


def test_workers_live_on_the_public_names_alone() -> None:
    found = []
    for source in sorted(ROOT.glob("workers/**/*.py")):
        for node, name in imported(source):
            module, _, member = name.rpartition(".")
            is_public = module in PUBLIC or name in PUBLIC or (module == "taskflow" and member in taskflow.__all__)
            if name.partition(".")[0] == "taskflow" and not is_public:
                found.append(f"{place(source, node)}: {name}")

    assert found == []


def test_no_file_imports_stars() -> None:
    assert [place(source, node) for source in OURS for node, name in imported(source) if name.endswith(".*")] == []


def test_the_public_names_are_sorted_and_all_there() -> None:
    names = list(taskflow.__all__)

    assert sorted(set(names)) == sorted(names)
    assert [name for name in names if not hasattr(taskflow, name)] == []


def test_every_file_says_in_its_first_line_what_it_is_for() -> None:
    silent = [str(source.relative_to(ROOT)) for source in OURS if not ast.get_docstring(tree_of(source))]

    assert [name for name in silent if not name.endswith("__init__.py") and not name.endswith("__main__.py")] == []
