"""What the public modules export, the reference documents, and nothing else."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import projgrad as pg

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
NEEDS = {
    "projgrad": (),
    "projgrad.keras": ("keras",),
    "projgrad.lightning": ("torch", "lightning"),
    "projgrad.morphology": (),
    "projgrad.optax": ("jax", "optax"),
    "projgrad.presets": (),
    "projgrad.tensorflow": ("tensorflow",),
    "projgrad.torch": ("torch",),
}


def load(module: str) -> ModuleType:
    for needed in NEEDS[module]:
        pytest.importorskip(needed)
    return pg.morphology if module == "projgrad.morphology" else importlib.import_module(module)


def exported(module: str) -> set[str]:
    names = load(module).__all__
    assert len(names) == len(set(names))
    elsewhere = set(pg.__all__) if module == "projgrad.morphology" else set()  # its classes are among the sets
    return {name for name in names if not name.startswith("__")} - elsewhere


def documented(module: str) -> list[str]:
    pages = "".join(page.read_text() for page in sorted(REFERENCE.glob("*.md")))
    return re.findall(rf"^::: {re.escape(module)}\.(\w+)$", pages, re.MULTILINE)


@pytest.mark.parametrize("module", NEEDS)
def test_what_is_exported_is_documented_once(module: str) -> None:
    assert sorted(documented(module)) == sorted(exported(module))


@pytest.mark.parametrize("module", NEEDS)
def test_what_is_exported_says_what_it_is(module: str) -> None:
    found = load(module)
    for name in exported(module):
        assert inspect.getdoc(getattr(found, name)), name


def test_every_public_module_is_in_the_table() -> None:
    rows = re.findall(r"^\| (`projgrad.*?) \|", (REFERENCE / "index.md").read_text(), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(.*?)`", row)} == set(NEEDS)
