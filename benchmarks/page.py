"""The results of all benchmarks as a page: what was to be reached, then a table and a picture of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import goals, load, overview

__all__ = ["write"]


def write(folder: Path, names: Iterable[str]) -> None:
    """Write `README.md` into a folder from the JSON files of benchmarks that are there, in the order of `names`."""
    found = {name: load(path) for name in names if (path := folder / f"{name}.json").exists()}
    lines = [
        "# Results",
        "",
        "Written by `python -m benchmarks`; what is measured, and how, is in [benchmarks](../README.md).",
    ]
    every = [result for _, results in found.values() for result in results]
    number = sum(len(result.goals) for result in every)
    missed = [replace(r, goals=tuple(goal for goal in r.goals if not goal[2] <= goal[1])) for r in every]
    left = sum(len(result.goals) for result in missed)
    if number:
        lines += ["", "## Goals", "", "projgrad's time as a multiple of another's, and the most that it should be."]
        lines += [f"{number - left} of {number} are reached; all stand with their benchmarks."]
    if left:
        lines += ["", "Not reached are", "", goals(missed)]
    for name, (about, results) in found.items():
        rounds = " or ".join(map(str, sorted({result.rounds for result in results})))
        where = f"{_machine(about)}; medians of {rounds}"
        lines += ["", f"## {name}", "", f"{where}. Times as multiples of the first."]
        lines += ["", overview(results), "", f"![{name}]({name}.png)"]
        if table := goals(results):
            lines += ["", "Goals:", "", table]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def _machine(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if name != "projgrad")
    return f"{about['date']}, {about['processor']}, {about['cores']} cores, Python {about['python']}, {versions}"
