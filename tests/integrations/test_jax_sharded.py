"""Parameters that are sharded over eight CPU devices are projected as on one, and stay sharded as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax
import optax

import projgrad as pg
import projgrad.optax as po

MODULE = "tests.integrations.jax_sharded_cases"
FLAGS = (  # machines with fewer cores than devices are slow
    "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_warn_stuck_timeout_seconds=120 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600"
)
QUICK = ("first; data, model; explicit",)
SLOW = (
    *(
        f"few; {spec}; {kind}"
        for kind in ("automatic", "explicit")
        for spec in ("data", "model", "data, model", "both")
    ),
    *(f"more; {spec}; {kind}" for spec, kind in (("data, model", "explicit"), ("both", "automatic"))),
    "few; data, model; explicit; eager",
    *(
        f"{what}; {kind}"
        for what in ("joint", "training", "models", "shard_mapped")
        for kind in ("automatic", "explicit")
    ),
)


def run(*cases: str, patience: float) -> dict[str, str]:
    environment = os.environ | {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", MODULE, *cases]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=patience)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_explicitly_sharded_parameters_are_projected_as_on_one_device() -> None:
    for case, problem in run(*QUICK, patience=300).items():
        assert not problem, f"{case}\n{problem}"


def test_a_group_that_shard_map_cuts_is_refused_whatever_else_the_transformation_has_seen() -> None:
    if not hasattr(jax, "shard_map"):
        pytest.skip("this version of JAX has no jax.shard_map")
    tx, w = po.project({"*": pg.Simplex(axis=0)}), jax.ShapeDtypeStruct((16, 8), "float32")
    for name in ("first", "second"):
        jax.eval_shape(tx.init, {name: w})
    rows = jax.sharding.PartitionSpec("rows")
    mesh = jax.sharding.AbstractMesh((8,), ("rows",))
    for name in ("first", "second"):

        def update(x: jax.Array, name: str = name) -> jax.Array:
            return tx.update({name: x}, optax.EmptyState(), {name: x})[0][name]

        with pytest.raises(ValueError, match=f"^{name}: Simplex.* shows only 2 of 16"):
            jax.eval_shape(jax.shard_map(update, mesh=mesh, in_specs=rows, out_specs=rows), w)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_on_eight_devices(case: str) -> None:
    problem = run(case, patience=1200)[case]
    assert not problem, problem
