"""Parameters that are spread over processes: FSDP2, tensor parallelism, data parallelism; FSDP1 is refused."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch has no gloo", allow_module_level=True)

from tests.integrations import processes, sharded_cases


@pytest.fixture(scope="module")
def results(tmp_path_factory: Any) -> dict[str, str]:
    names = [case.__name__ for case in sharded_cases.SLOW]
    return processes.run(sharded_cases.__name__, names, tmp_path_factory.mktemp("sharded"), patience=400)


def test_sharded_parameters_are_projected_as_in_one_process(tmp_path: Any) -> None:
    for case in sharded_cases.QUICK:
        name = case.__name__
        (tmp_path / name).mkdir()
        problem = processes.run(sharded_cases.__name__, [name], tmp_path / name, patience=100)[name]
        assert not problem, problem


@pytest.mark.slow
@pytest.mark.parametrize("name", [case.__name__ for case in sharded_cases.SLOW])
def test_of_two_processes(name: str, results: dict[str, str]) -> None:
    assert not results[name], results[name]


@pytest.mark.slow
def test_a_mesh_of_two_dimensions(tmp_path: Any) -> None:
    problem = processes.run(sharded_cases.__name__, ["meshes"], tmp_path, count=4)["meshes"]
    assert not problem, problem
