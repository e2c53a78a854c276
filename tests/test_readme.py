"""The README says what the code does."""

from __future__ import annotations

import re

from tests.readme import README, generated


def test_the_state_diagram_and_the_settings_table_are_those_of_the_code() -> None:
    text = README.read_text()

    assert generated(text) == text, "run: python -m tests.readme"


def test_start_has_exactly_two_fenced_commands() -> None:
    (start,) = re.findall(r"^## Start\n(.*?)^## ", README.read_text(), re.MULTILINE | re.DOTALL)

    commands = re.findall(r"^```sh\n(.+?)^```$", start, re.MULTILINE | re.DOTALL)

    assert start.count("```") == 4
    assert [command.count("\n") for command in commands] == [1, 1]
