"""What the other files of this folder show of Keras, on its other backends."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

keras = pytest.importorskip("keras")

FILES = ("steps", "training", "models", "resume")
OTHERS = sorted({"tensorflow", "jax", "torch"} - {keras.backend.backend()})


@pytest.mark.slow
@pytest.mark.parametrize("backend", OTHERS)
def test_it_holds_on_every_backend(backend: str) -> None:
    if not importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    here = Path(__file__).parent
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=short",
        *(str(here / f"test_keras_{name}.py") for name in FILES),
    ]
    settings = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=settings, cwd=here.parents[1], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-5000:]
