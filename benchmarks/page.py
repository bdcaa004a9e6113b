"""The results of all benchmarks as a page: what was to be reached, then a table and a picture of each."""

from __future__ import annotations

from collections.abc import Iterable
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
    if reached := goals(result for _, results in found.values() for result in results):
        lines += [
            "",
            "## Goals",
            "",
            "projgrad's time as a multiple of another's, and the most that it should be.",
            "",
            reached,
        ]
    for name, (about, results) in found.items():
        where = f"{_machine(about)}; medians of {results[0].rounds}"
        lines += ["", f"## {name}", "", f"{where}. Times as multiples of the first."]
        lines += ["", overview(results), "", f"![{name}]({name}.png)"]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def _machine(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if name != "projgrad")
    return f"{about['date']}, {about['processor']}, {about['cores']} cores, Python {about['python']}, {versions}"
