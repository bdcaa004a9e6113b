"""Variables and tensors of Keras from NumPy and back, on whatever backend it runs."""

from __future__ import annotations

import os

import numpy as np
import pytest

keras = pytest.importorskip("keras")

BACKEND = keras.backend.backend()
SHORT = BACKEND == "torch" and "PROJGRAD_NESTED" in os.environ  # torch takes minutes for what others compile
NO_SCALE = "a LossScaleOptimizer on JAX is for stateless_apply"


def variable(values, name="w", dtype="float32"):
    return keras.Variable(np.asarray(values), dtype=dtype, name=name)


def array(x):
    return np.asarray(keras.ops.convert_to_numpy(x), dtype=np.float64)


def tensor(x):
    return keras.ops.convert_to_tensor(np.asarray(x), dtype="float32")
