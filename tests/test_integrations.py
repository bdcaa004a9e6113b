"""The table of integrations speaks of the tests and versions that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TABLE = (HERE / "integrations" / "README.md").read_text()


def rows() -> list[list[str]]:
    lines = [line for line in TABLE.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if not set(row[0]) <= set("- ") and row[-1] != "test"]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_every_row_has_tests(row: list[str]) -> None:
    names = re.findall(r"`([^`]*)`", row[-1])
    assert len(row) == 3
    assert names
    path = ""
    for name in names:
        file, _, function = name.partition("::")
        assert function, name
        path = file or path
        source = (HERE.parent if path.startswith("tests/") else HERE / "integrations") / path
        assert re.search(rf"^def {function}\b", source.read_text(), re.MULTILINE), name


def test_every_file_has_a_row() -> None:
    for file in (HERE / "integrations").glob("test_*.py"):
        assert f"`{file.name}::" in TABLE, file.name


def test_the_versions_are_those_that_are_installed_for_the_tests() -> None:
    pinned = dict(line.split("==") for line in (HERE.parent / "constraints.txt").read_text().split() if "==" in line)
    named = re.findall(r"(?:^|\s)([a-z][\w-]+) (\d+\.\d+\.\d+)", TABLE)
    assert len(named) > 10
    assert {name: pinned[name] for name, _ in named} == dict(named)
