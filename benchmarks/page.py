"""The results of all benchmarks as a page: what was to be reached, then a table and a picture of each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.harness import goals, loaded, overview

__all__ = ["write"]


def write(folder: Path, names: Iterable[str]) -> None:
    """Write `README.md` into a folder from the JSON files of benchmarks that are there, in the order of `names`."""
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in names if _is_in(folder, name)}
    results = {name: [loaded(entry) for entry in saved["results"]] for name, saved in found.items()}
    lines = [
        "# Results",
        "",
        "Written by `python -m benchmarks`; what is measured, and how, is in [benchmarks](../README.md).",
    ]
    if reached := goals(result for of_one in results.values() for result in of_one):
        lines += [
            "",
            "## Goals",
            "",
            "projgrad's time as a multiple of another's, and the most that it should be.",
            "",
            reached,
        ]
    for name, of_one in results.items():
        about, rounds = found[name]["environment"], of_one[0].rounds
        lines += ["", f"## {name}", "", f"{_machine(about)}; medians of {rounds}. Times as multiples of the first."]
        lines += ["", overview(of_one), "", f"![{name}]({name}.png)"]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def _is_in(folder: Path, name: str) -> bool:
    return (folder / f"{name}.json").exists()


def _machine(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if name != "projgrad")
    return f"{about['date']}, {about['processor']}, {about['cores']} cores, Python {about['python']}, {versions}"
