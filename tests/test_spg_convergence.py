"""The spectral projected gradient method in PyTorch gets to the constrained minimum, in the sets all the way."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch import nn

from benchmarks import line_search
from projgrad.torch import SPG
from tests import minima
from tests.boxes import BOXES, box, by_spg, factors, l_bfgs_b, relative, stationarity

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", BOXES)
def test_in_a_box_it_ends_where_scipys_l_bfgs_b_does(name: str) -> None:
    problem, least = box(name)
    end = by_spg(problem)
    assert abs(relative(problem, end, least)) < 1e-6
    assert line_search.projected_gradient(problem, end.x) <= line_search.TOLERANCE
    assert problem.constraint.violation(end.x).max() == 0
    assert end.evaluations < 500


@pytest.mark.parametrize("name", [name for name in line_search.METHODS if name.startswith("LBFGS")])
def test_l_bfgs_with_projections_does_not_get_there(name: str) -> None:
    problem, least = box("least squares")
    with np.errstate(over="ignore"):
        assert relative(problem, line_search.METHODS[name](problem, 1000), least) > 0.1


@pytest.mark.parametrize("name", sorted(minima.QUADRATICS))
def test_any_convex_set(name: str) -> None:
    problem = minima.problem(name)
    end = by_spg(problem)
    assert abs(minima.gap(name, end.x)) < 1e-6
    assert problem.constraint.contains(end.x)


@pytest.mark.parametrize("together", [True, False], ids=["both at once", "in turn"])
def test_a_non_negative_factorization_gets_as_stationary_as_scipys(together: bool) -> None:
    v, w0, h0 = factors()
    target, w, h = torch.tensor(v), nn.Parameter(torch.tensor(w0)), nn.Parameter(torch.tensor(h0))

    def closure() -> Any:
        w.grad = h.grad = None
        loss = 0.5 * (w @ h - target).square().sum()
        loss.backward()
        return loss

    named = {"w": w, "h": h}
    groups = [named] if together else [{"w": w}, {"h": h}]
    optimizers = [SPG(list(group.items()), {"*": pg.NonNeg()}, tolerance_grad=1e-9) for group in groups]
    for _ in range(400):
        for optimizer in optimizers:
            optimizer.step(closure)
    found = stationarity(v, w.detach().numpy(), h.detach().numpy())
    assert found <= min(l_bfgs_b(v, w0, h0), 1e-3)
    assert min(w.min().item(), h.min().item()) >= 0


def test_on_a_sphere_it_finds_an_eigenvector_and_never_leaves() -> None:
    rng = np.random.default_rng(0)
    half = rng.standard_normal((12, 12))
    matrix, w = torch.tensor(half + half.T), nn.Parameter(torch.tensor(rng.standard_normal(12)))
    optimizer = SPG([{"params": [w], "constraint": pg.UnitNorm(axis=0)}], max_iter=500, history_size=1)
    values = []

    def closure() -> Any:
        assert pg.UnitNorm(axis=0).contains(w.detach())
        optimizer.zero_grad()
        loss = w @ matrix @ w
        loss.backward()
        values.append(loss.item())
        return loss

    for _ in range(50):
        optimizer.step(closure)
    (least, *_), vectors = np.linalg.eigh(matrix.numpy())
    assert values[-1] == pytest.approx(least)
    assert abs(vectors[:, 0] @ w.detach().numpy()) == pytest.approx(1.0)


def test_the_benchmark_prints_a_row_per_problem(tmp_path: Any, capsys: Any) -> None:
    line_search.main(["--quick", "--problems", "non-negative least", "spectra", "--out", str(tmp_path)])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert all(row.count("|") == len(line_search.METHODS) + 2 for row in rows)
    saved = json.loads((tmp_path / "line_search.json").read_text())["ends"]
    assert saved["mixture of spectra, simplex"]["SPG, PyTorch"]["gap"] < 1e-6
    assert saved["mixture of spectra, simplex"]["L-BFGS-B, SciPy"] is None
