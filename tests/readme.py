"""The generated parts of the README. `python -m tests.readme` writes them; a test compares."""

from __future__ import annotations

import re
from pathlib import Path

from taskflow.cli.config import markdown_table
from taskflow.core.job import mermaid
from taskflow.settings import reference

README = Path(__file__).parents[1] / "README.md"


def generated(text: str) -> str:
    """The README with its generated parts made anew."""
    parts = {"state diagram": f"```mermaid\n{mermaid().strip()}\n```", "settings": markdown_table(reference()).strip()}
    for name, part in parts.items():
        pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda found, part=part: f"{found[1]}{part}\n{found[2]}", text, flags=re.DOTALL)
        assert count == 1, name
    return text


if __name__ == "__main__":
    README.write_text(generated(README.read_text()))
