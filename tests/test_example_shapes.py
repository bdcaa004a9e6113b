"""The example of monotone and convex networks runs, and its guarantees hold where the free networks break them."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

for _needed in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(_needed)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("shapes")


def _fit(framework: str):
    for name in {"torch": ("torch",), "jax": ("jax", "optax")}[framework]:
        pytest.importorskip(name)
    return importlib.import_module(f"shapes_{framework}").fit


def test_it_runs(example, capsys, tmp_path):
    _fit("torch")
    picture = tmp_path / "shapes.png"
    example.main(["--quick", "--out", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * (2 + 4)


@pytest.mark.parametrize(
    ("framework", "index"),
    [*(("torch", i) for i in range(4)), *(pytest.param("jax", i, marks=pytest.mark.slow) for i in (0, 2))],
)
def test_guarantees(example, framework, index):
    fit, task = _fit(framework), example.TASKS[index]
    steps = 500 if task.name == "stairs" else 150  # until a free network breaks what it is not held to
    found = example.experiment(task, task.sizes[0], 3, fit, steps=steps, tick=lambda _: None)
    # per network, in multiples of what rounding may do
    broken = {
        model: [each.broken.max() / (example.ROUNDING * np.ptp(each.sample.y)) for each in fits]
        for model, fits in found.items()
    }
    assert max(broken["free"]) > 100
    assert max(broken["constrained"]) <= 1
    assert max(broken["constrained, decay"]) <= 1
    if task.reference in ("isotonic", "convex"):
        assert max(broken[task.reference]) <= 1


def test_isotonic_regression_is_a_projection(example):
    from sklearn.isotonic import IsotonicRegression

    task = example.TASKS[0]
    sample = task.draw(np.random.default_rng(0), 30)
    expected = IsotonicRegression().fit(sample.x[:, 0], sample.y).predict(sample.test_x[:, 0])
    np.testing.assert_allclose(task.refer(sample)(sample.test_x), expected, atol=1e-7)


def test_the_truths_have_the_shapes(example):
    for task in example.TASKS:
        if task.name != "diabetes":
            truth = {"stairs": lambda x: example.stairs(x[:, 0]), "valley": lambda x: example.valley(x[:, 0])}
            predict = truth.get(task.name, example.cone)
            assert task.check(predict, example.LINE).max() < 1e-12
