"""Where optimizers of PyTorch end on convex problems: at the constrained minimum in their own metric only."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from benchmarks.convergence import run
from tests.minima import least, pairs, problem, steps

OPTIMIZERS = ["Adam", "amsgrad", "AdamW, no decay", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad"]
QUICK = {("quadratic, simplex", "Adam"), ("quadratic, max-norm per row", "RMSprop")}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gap(name: str, optimizer: str, metric: str) -> float:
    (found,) = run(problem(name), optimizer, metric, steps(name), least(name), [steps(name)])
    return found


@pytest.mark.parametrize(("name", "optimizer"), pairs(OPTIMIZERS, QUICK))
def test_the_minimum_is_reached_in_the_metric(name: str, optimizer: str) -> None:
    assert abs(gap(name, optimizer, "optimizer")) < 1e-6
    if (name, optimizer) in QUICK:
        assert gap(name, optimizer, "euclidean") > 1e-2
