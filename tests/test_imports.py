"""projgrad imports no framework, and a door without its framework says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

FRAMEWORKS = ("torch", "jax", "optax", "keras", "tensorflow", "lightning")
DOORS = {"torch": ("torch",), "optax": ("jax", "optax"), "keras": ("keras",), "tensorflow": ("tensorflow",)}
EXTRAS = {"torch": "torch", "optax": "jax", "keras": "keras", "tensorflow": "tensorflow", "lightning": "lightning"}

BLOCK = """
import importlib.machinery
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name.partition(".")[0] in {absent!r} else find(name, path, target)
)
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_and_using_projgrad_loads_no_framework() -> None:
    loaded = python(
        "import sys, numpy as np, projgrad as pg\n"
        "assert pg.MaxNorm(1.0, axis=0)(np.ones((4, 1)))[0, 0] == 0.5\n"
        f"print([name for name in {FRAMEWORKS!r} if name in sys.modules])"
    )
    assert loaded.strip() == "[]"


@pytest.mark.parametrize("door", DOORS)
def test_each_door_opens_with_its_own_framework_only(door: str) -> None:
    for needed in DOORS[door]:
        pytest.importorskip(needed)
    # Keras needs a backend, and is TensorFlow's optimizer library
    present = {*DOORS[door], *({"tensorflow"} if door == "keras" else {"keras"} if door == "tensorflow" else ())}
    absent = set(FRAMEWORKS) - present
    closed = [*(other for other in DOORS if not set(DOORS[other]) <= present), "lightning"]
    assert closed
    checks = "".join(
        f"try:\n    import projgrad.{other}\n"
        f"except ImportError as e:\n    assert 'projgrad[{EXTRAS[other]}]' in str(e), e\n"
        f"else:\n    raise AssertionError('projgrad.{other} opened')\n"
        for other in closed
    )
    python(BLOCK.format(absent=absent) + f"import projgrad.{door}\n" + checks)


@pytest.mark.parametrize("door", DOORS)
def test_a_door_loads_no_other_framework(door: str) -> None:
    for needed in DOORS[door]:
        pytest.importorskip(needed)
    loaded = python(
        "import os; os.environ['KERAS_BACKEND'] = 'tensorflow'\n"
        f"import sys, {', '.join(DOORS[door])}\nbefore = set(sys.modules)\nimport projgrad.{door}\n"
        f"print([name for name in {FRAMEWORKS!r} if name in set(sys.modules) - before])"
    )
    assert loaded.strip() == "[]"
