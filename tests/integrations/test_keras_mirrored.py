"""Copies of a model on two devices under tf.distribute.MirroredStrategy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras")
pytest.importorskip("tensorflow")


@pytest.mark.slow
def test_two_mirrored_devices_are_one() -> None:
    command = [sys.executable, "-m", "tests.integrations.keras_mirrored"]
    settings = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 4
    for case, figures in found.items():
        assert figures["agree"], case
        assert figures["apart"] < 1e-5, case
        assert figures["violated"] < 1e-6, case
