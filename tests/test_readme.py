"""The README says what the code does."""

from __future__ import annotations

import ast
import inspect
import re

import pytest

from taskflow.testing import virtual_policies
from tests.readme import README, generated


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
