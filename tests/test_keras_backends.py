"""Every contract of the Keras door on the other backends of Keras, and what the door imports."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

keras = pytest.importorskip("keras")

FILES = (
    *("keras_optimizer", "keras_rules", "keras_layers", "keras_saving", "tags_keras"),
    *("keras_metric", "keras_metric_use", "keras_convergence", "keras_tangent", "keras_in_place", "report_keras"),
)
SAME = (
    "incoming",
    "feed_one_unit",
    "refuses",
    "before_the_layer",
    "is_no_rule",
    "are_saved",
)  # in no need of a backend
NESTED = "PROJGRAD_NESTED" in os.environ


OTHERS = sorted({"tensorflow", "jax", "torch"} - {keras.backend.backend()})


@pytest.fixture(scope="module")
def runs():
    """The tests on all other backends, side by side."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-k", f"not ({' or '.join(SAME)})"]
    command += [str(here / f"test_{name}.py") for name in FILES]
    settings = {**os.environ, "PROJGRAD_NESTED": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    started = {
        backend: subprocess.Popen(
            command,
            env={**settings, "KERAS_BACKEND": backend},
            cwd=here.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for backend in OTHERS
        if importlib.util.find_spec(backend)
    }
    yield started
    for process in started.values():
        process.kill()
        process.wait()


@pytest.mark.skipif(NESTED, reason="runs the others")
@pytest.mark.parametrize("backend", OTHERS)
def test_the_contracts_hold_on_every_backend(backend, runs):
    if backend not in runs:
        pytest.skip(f"{backend} is not installed")
    printed, _ = runs[backend].communicate(timeout=600)
    assert runs[backend].returncode == 0, printed[-5000:]


@pytest.mark.skipif(NESTED, reason="once is enough")
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_door_imports_no_framework_that_keras_does_not(backend):
    pytest.importorskip(backend)
    code = """
import sys, keras
frameworks = {"tensorflow", "jax", "torch"}
before = frameworks & set(sys.modules)
import projgrad.keras
print(frameworks & set(sys.modules) == before)
"""
    env = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.skipif(NESTED, reason="once is enough")
@pytest.mark.parametrize(("door", "missing"), [("keras", "keras"), ("tensorflow", "tensorflow")])
def test_without_the_framework_the_door_says_what_to_install(door, missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import projgrad; import projgrad.{door}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert f'pip install "projgrad[{door}]"' in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("ImportError")
