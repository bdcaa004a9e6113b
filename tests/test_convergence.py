"""Where optimizers of PyTorch end on convex problems: at the constrained minimum in their own metric only."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from benchmarks.convergence import run
from tests.minima import check, least, pairs, problem, steps

OPTIMIZERS = ["Adam", "amsgrad", "AdamW, no decay", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad"]
QUICK = {("quadratic, simplex", "Adam"), ("quadratic, max-norm per row", "RMSprop")}


pytestmark = pytest.mark.usefixtures("one_thread")


def gap(name: str, optimizer: str, metric: str) -> float:
    (found,) = run(problem(name), optimizer, metric, steps(name), least(name), [steps(name)])
    return found


@pytest.mark.parametrize(("name", "optimizer"), pairs(OPTIMIZERS, QUICK))
def test_the_minimum_is_reached_in_the_metric(name: str, optimizer: str) -> None:
    check(lambda metric: gap(name, optimizer, metric), name, (name, optimizer) in QUICK)
