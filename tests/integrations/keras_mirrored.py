"""Runs of Keras on two logical devices, which must be made before TensorFlow starts: `python -m` this file."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import numpy as np

import projgrad as pg

RULES: dict[str, Any] = {
    "hidden/kernel": pg.MaxNorm(pg.Schedule({0: 1.0, 6: 0.3}), axis=0).every(3),
    "out/kernel": pg.Tag(pg.SumTo(1.0, axis=0), metric="optimizer"),
    "out/bias": pg.Tag(pg.Box(-0.1, 0.1), tangent="gradient"),
}
STEPS = 8  # of 16 rows, two an epoch


def main() -> None:
    """Print, for each case, how far two devices are from one, whether they agree, and what is violated."""
    import tensorflow as tf

    devices = tf.config.list_physical_devices("CPU")[:1]
    tf.config.set_logical_device_configuration(devices[0], [tf.config.LogicalDeviceConfiguration()] * 2)
    from keras import optimizers

    from projgrad.keras import ProjectedOptimizer, violations
    from tests.integrations.keras_runs import X, Y, network

    def trained(optimizer: Any, outside: bool, count: int) -> Any:
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]) if count == 2 else None
        with strategy.scope() if strategy else nullcontext():
            model = network()
            wrapped: Any = ProjectedOptimizer(optimizer(), RULES, model=model)
            wrapped = optimizers.LossScaleOptimizer(wrapped, initial_scale=8.0) if outside else wrapped
            model.compile(wrapped, "mse")
        model.fit(X, Y, epochs=STEPS // 2, batch_size=16, shuffle=False, verbose=0)
        return model

    def compared(optimizer: Any, outside: bool = False) -> dict[str, Any]:
        one, two = (trained(optimizer, outside, count) for count in (1, 2))
        held = [w.value.values for w in two.weights]
        assert all(len(copies) == 2 for copies in held)
        pairs = zip(one.get_weights(), two.get_weights(), strict=True)
        return {
            "apart": max(float(np.abs(a - b).max()) for a, b in pairs),
            "agree": all(np.array_equal(a.numpy(), b.numpy()) for a, b in held),
            "violated": max(violations(two, RULES, step=STEPS).values()),
        }

    cases: dict[str, Any] = {
        "Adam": lambda: compared(lambda: optimizers.Adam(0.05)),
        "averages": lambda: compared(lambda: optimizers.SGD(0.05, momentum=0.9, use_ema=True, ema_momentum=0.5)),
        "loss scale inside": lambda: compared(lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.05))),
        "loss scale outside": lambda: compared(lambda: optimizers.SGD(0.05), outside=True),
    }
    print(json.dumps({name: case() for name, case in cases.items()}))


if __name__ == "__main__":
    main()
