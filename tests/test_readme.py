"""The README says what the code does."""

from __future__ import annotations

import ast
import inspect
import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from taskflow import Settings, TaskFlow, current_job
from taskflow.settings import BrokerSettings
from taskflow.testing import virtual_policies
from tests.readme import README, generated

if TYPE_CHECKING:
    from pathlib import Path


def test_the_state_diagram_and_the_settings_table_are_those_of_the_code() -> None:
    text = README.read_text()

    assert generated(text) == text, "run: python -m tests.readme"


def test_start_has_exactly_two_fenced_commands() -> None:
    (start,) = re.findall(r"^## Start\n(.*?)^## ", README.read_text(), re.MULTILINE | re.DOTALL)

    commands = re.findall(r"^```sh\n(.+?)^```$", start, re.MULTILINE | re.DOTALL)

    assert start.count("```") == 4
    assert [command.count("\n") for command in commands] == [1, 1]


@pytest.mark.anyio
async def test_the_example_of_policies_runs_as_it_stands() -> None:
    (section,) = re.findall(r"^## Policies for any awaitable\n(.*?)^## ", README.read_text(), re.MULTILINE | re.DOTALL)
    (example,) = re.findall(r"^```python\n(.+?)^```$", section, re.MULTILINE | re.DOTALL)
    runs: list[str] = []

    async def fetch(url: str) -> list[str]:
        runs.append(url)
        return [url]

    names = {"fetch": fetch, "url": "https://example.org"}
    code = compile(example, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with virtual_policies():
        running = eval(code, names)
        assert inspect.iscoroutine(running)
        await running

        assert names["data"] == ["https://example.org"]
        assert len(runs) == 3
        assert names["github"].breaker.snapshot().mode == "isolated"


@pytest.mark.anyio
async def test_the_example_of_transactions_runs_as_it_stands(tmp_path: Path) -> None:
    text = README.read_text()
    (section,) = re.findall(r"^### In your own transaction\n(.*?)^### ", text, re.MULTILINE | re.DOTALL)
    (example,) = re.findall(r"^```python\n(.+?)^```$", section, re.MULTILINE | re.DOTALL)
    path = tmp_path / "taskflow.db"
    flow = TaskFlow(settings=Settings(broker=BrokerSettings(url=f"sqlite:///{path}")))  # type: ignore[arg-type]
    sent: list[tuple[str, str]] = []

    @flow.task
    async def send_mail(to: str, body: str) -> None:
        sent.append((to, body))

    async def charge(number: int, *, key: str) -> str:
        return f"receipt of {number} for {key}"

    async with flow:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE orders (number INTEGER, receipt TEXT)")
            names: dict[str, Any] = {"flow": flow, "send_mail": send_mail, "charge": charge, "current_job": current_job}
            names |= {"connection": connection, "number": 7}
            code = compile(example, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            running = eval(code, names)
            assert inspect.iscoroutine(running)
            await running
            async with flow.worker():
                paid = await names["pay"].submit(7)
                receipt = await paid.result(10)
            rows = connection.execute("SELECT * FROM orders").fetchall()

    assert sent == [("ada@example.org", "thanks")]
    assert receipt == f"receipt of 7 for {paid.id}"
    assert rows == [(7, receipt)]
