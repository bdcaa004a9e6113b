"""Every process has all of the weights: DistributedDataParallel, alone and by accelerate, ZeroRedundancyOptimizer."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch has no gloo", allow_module_level=True)

from tests.integrations import processes, replicated_cases

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: Any) -> dict[str, str]:
    names = [case.__name__ for case in replicated_cases.CASES]
    return processes.run(replicated_cases.__name__, names, tmp_path_factory.mktemp("replicated"), patience=200)


@pytest.mark.parametrize("name", [case.__name__ for case in replicated_cases.CASES])
def test_of_two_processes(name: str, results: dict[str, str]) -> None:
    assert not results[name], results[name]
