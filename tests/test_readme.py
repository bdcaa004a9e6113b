"""The README's code runs as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.pages import installed, run

README = Path(__file__).parent.parent / "README.md"


def test_the_blocks_of_code_run_one_after_the_other() -> None:
    for framework in ("torch", "optax", "keras"):
        pytest.importorskip(framework)
    names: dict[str, Any] = {"__name__": __name__}
    ran, skipped = run(README, installed(), names)
    assert ran >= 5
    assert skipped == 0
    assert names["optimizer"].plan[0].name == "0.weight"


def test_every_set_has_a_row_in_the_table() -> None:
    import projgrad as pg

    table = README.read_text()
    sets = [name for name, thing in vars(pg).items() if isinstance(thing, type) and issubclass(thing, pg.Constraint)]
    missing = [name for name in sets if name != "Constraint" and f"| `{name}(" not in table]
    assert not missing
