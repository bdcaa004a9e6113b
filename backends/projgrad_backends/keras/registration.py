"""Makes Keras know the constraints of projgrad, so that it can load a layer that has one."""

from __future__ import annotations

from typing import Any

import keras

from projgrad.constraint import Constraint
from projgrad.registry import on_register


def _announce(name: str, thing: Any) -> None:
    """Register a constraint class with Keras under the name it has in projgrad; functions need no more than that."""
    if isinstance(thing, type) and issubclass(thing, Constraint):
        keras.saving.register_keras_serializable("projgrad", name=name)(thing)


on_register(_announce)
