"""The code of the documentation runs as it stands, and prints what the pages say."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pages import FRAMEWORKS, blocks_of, installed, run

DOCS = Path(__file__).parent.parent / "docs"
PICTURED = {"torch": ("torch",), "keras": ("keras",), "jax": ("jax", "equinox", "flax")}
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_code_run_one_after_the_other(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": __name__}
    ran, skipped = run(DOCS / page, installed(), names)
    if not ran and skipped:
        pytest.skip("no block runs without the frameworks that are missing")


@pytest.mark.parametrize("page", PAGES)
def test_no_block_of_python_is_overlooked(page: str) -> None:
    text = (DOCS / page).read_text()
    assert len(list(blocks_of(text))) == len(re.findall(r"^ *```python", text, re.MULTILINE))
    assert not re.search(r"^ *```(py|python3|pycon)\b(?!thon)", text, re.MULTILINE)


def test_without_frameworks_their_blocks_are_left_out_and_what_needs_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nimport torch\nw = torch.ones(2)\n```\n\n"
        '=== "A tab"\n\n    ```python\n    print(w)\n    ```\n\n'
        "```python\nw = 2\nprint(w)\n```\n\n```text\n2\n```\n"
    )
    assert run(page, set(), {}) == (1, 2)
    page.write_text("```python\nprint(1)\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match="line 2 prints\n1"):
        run(page, set(), {})


def test_frameworks_are_found_in_doors_too() -> None:
    (block,) = blocks_of(
        "```python\nimport projgrad.torch\nfrom projgrad.optax import project\nfrom jax import numpy\n```\n"
    )
    assert block.needs == {"torch", "optax", "jax"}
    assert block.needs <= FRAMEWORKS


@pytest.mark.parametrize("framework", PICTURED)
def test_the_pictures_show_the_axes_that_are_looked_up(framework: str) -> None:
    for needed in ("matplotlib", *PICTURED[framework]):
        pytest.importorskip(needed)
    spec = importlib.util.spec_from_file_location("axes_pictures", DOCS / "axes_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["axes_pictures"] = pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    page = (DOCS / "axes.md").read_text()
    for weight in pictures.WEIGHTS[framework]():
        drawn = weight.file(framework)
        words = re.findall(r"<text[^>]*>([^<]*)</text>", drawn.read_text())
        assert set(weight.head) <= set(words), f"{drawn.name}: run docs/axes_pictures.py again"
        assert f"(pictures/{drawn.name})" in page


def test_the_sets_to_choose_from_can_be_made_as_they_are_written() -> None:
    import projgrad as pg

    rows = re.findall(r"^\|[^|]*\|([^|]*)\|", (DOCS / "which.md").read_text(), re.MULTILINE)
    written = [name for row in rows for name in re.findall(r"`((?:[A-Z]|presets)[^`]*)`", row)]
    numbers = {"A": [[1.0, 2.0]], "b": 1.0, "k": 2, "r": 1.0, "u": 0.5, "w0": 0.0, "lower": -1.0, "upper": 1.0}
    arrays = {"mask": [True, False], "value": 0.0, "grid": 0.1, "model": {"0/kernel": np.ones((3, 3))}}
    assert len(written) > 30
    for text in written:
        assert eval(text, {**vars(pg), **numbers, **arrays}) is not None, text
