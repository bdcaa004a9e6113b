"""Fixtures: `framework` runs a test once per framework, `dtype` once per dtype that it has."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
from hypothesis import HealthCheck, settings

from tests.frameworks import FRAMEWORKS, Framework

settings.register_profile(
    "projgrad",
    deadline=None,
    max_examples=20,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("projgrad")


@pytest.fixture(params=FRAMEWORKS, ids=repr)
def framework(request: pytest.FixtureRequest) -> Iterator[Framework]:
    chosen: Framework = request.param
    if chosen.missing:
        pytest.skip(f"{chosen.needs} is not installed")
    with chosen.scope():
        yield chosen


@pytest.fixture(params=("float16", "bfloat16", "float32", "float64"))
def dtype(request: pytest.FixtureRequest, framework: Framework) -> str:
    if request.param not in framework.dtypes:
        pytest.skip(f"{framework} has no {request.param}")
    return request.param


@pytest.fixture
def double() -> Iterator[None]:
    """Double precision in JAX, where a test's module has imported it."""
    if "jax" not in sys.modules:
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread of PyTorch, in which many small steps are quicker."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
