"""What is recorded of sharded parameters, and a NaN that only one of the processes has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch has no gloo", allow_module_level=True)

from torch import distributed
from torch.distributed.tensor.debug import CommDebugMode

import projgrad as pg
from projgrad.torch import ProjectedOptimizer, report
from tests.integrations import processes
from tests.integrations.sharded_cases import RULES, adam, network, sharded, train, whole


def reports() -> None:
    """Called in two processes."""
    model, reference = sharded(network()), network()
    for rules in RULES.values():
        assert report(model, rules).scalars() == pytest.approx(report(reference, rules).scalars(), rel=1e-4, abs=1e-6)
    rules = {"0.weight": pg.MaxNorm(0.5, axis=1), "0.bias": pg.NonNeg()}  # of which no group is cut
    optimizer = ProjectedOptimizer(adam(model.parameters()), rules, model=model, record=True, nonfinite="raise")
    train(model, optimizer, 0, 1)
    far = whole(model[0].weight)
    with CommDebugMode() as sent:
        optimizer.project()
    assert sent.get_total_counts() == 0, sent.get_comm_counts()
    assert optimizer.report().to_dict()["0.weight"]["moved"] == 0
    with torch.no_grad():
        model[0].weight.mul_(2)
    optimizer.project()
    row = optimizer.report().to_dict()["0.weight"]
    norms = 2 * far.norm(dim=1).double().numpy()
    assert row["before"] == pytest.approx(np.max(norms - 0.5), rel=1e-5)
    assert row["moved"] == pytest.approx(np.linalg.norm(np.maximum(norms - 0.5, 0)), rel=1e-5)
    if distributed.get_rank() == 1:
        model[0].weight.to_local().data[0, 0] = torch.nan
    with pytest.raises(RuntimeError, match=r"after a step: 0\.weight$"):
        optimizer.step()


@pytest.mark.slow
def test_of_two_processes_as_of_one(tmp_path: Any) -> None:
    problem = processes.run(__name__, ["reports"], tmp_path, patience=100)["reports"]
    assert not problem, problem
