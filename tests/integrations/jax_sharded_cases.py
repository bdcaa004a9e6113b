"""What a process with eight CPU devices does: `python -m tests.integrations.jax_sharded_cases CASE ...`."""

from __future__ import annotations

import json
import sys
import traceback
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import projgrad as pg
import projgrad.optax as po

KINDS = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}
SPECS = {"data": P("data"), "model": P(None, "model"), "data, model": P("data", "model"), "both": P(("data", "model"))}
SHAPE = (16, 8)

# of several kinds: a reduction, by threshold, by sorting, by adding up, of singular values, by iteration, by a function
FEW: dict[str, Any] = {
    "norm": pg.UnitNorm(axis=0),
    "simplex": pg.Simplex(axis=0),
    "sparse": pg.SparseSimplex(3, axis=0),
    "monotone": pg.Monotone(axis=0),
    "spectral": pg.SpectralNorm(0.5),
    "counted": pg.Tag(pg.MaxNorm(pg.Schedule({0: 0.6, 4: 0.2}), axis=None), every=2),
    "metric": pg.Tag(pg.MaxNorm(0.3, axis=0), metric="optimizer"),
}
MORE: dict[str, Any] = {
    "ball": pg.MaxNorm(0.3, axis=1),
    "box": pg.Box(np.linspace(-0.2, -0.1, SHAPE[1]), 0.1),
    "shell": pg.MinMaxNorm(0.1, 0.2, axis=None),
    "rows": pg.Simplex(axis=1),
    "capped": pg.CappedSimplex(2.0, 0.0, 0.3, axis=0),
    "l1": pg.L1Ball(0.5, axis=0),
    "cardinality": pg.Cardinality(3, axis=0),
    "l0 groups": pg.L0Groups(3),
    "l1 groups": pg.GroupL1Ball(0.5),
    "l1, inf": pg.L1InfBall(0.5),
    "sum": pg.SumTo(0.5, axis=0),
    "halfspace": pg.Halfspace(np.arange(1.0, 17.0), -1.0, axis=0),
    "affine": pg.Affine(np.ones((1, 16)), 0.5, axis=0),
    "polyhedron": pg.Polyhedron(np.ones((1, 16)), -0.5, axis=0),
    "cone": pg.SecondOrderCone(axis=0),
    "unimodal": pg.Unimodal(axis=0),
    "convex": pg.Convex(axis=0),
    "variation": pg.TotalVariationBall(0.5, axis=0),
    "nuclear": pg.NuclearNorm(0.5),
    "rank": pg.Rank(2),
    "orthogonal": pg.Orthogonal(),
    "transport": pg.Transport((1 / 16,) * 16, (1 / 8,) * 8),
    "mask": pg.Mask(np.arange(8) % 2 == 0),
    "slices": pg.Slices([pg.MaxNorm(0.3, axis=0), None] * 4, along=1),
    "simplex, box": pg.Simplex(axis=0) & pg.Box(0.0, 0.3),
    "ball, signs": pg.MaxNorm(0.3, axis=0) & pg.NonNeg(),
    "balls": pg.MaxNorm(0.3, axis=0) & pg.MaxNorm(0.2, axis=1),
    "spectral, signs": pg.SpectralNorm(0.5) & pg.NonNeg(),
    "simplex in metric": pg.Tag(pg.Simplex(axis=0), metric="optimizer"),
    "tangent": pg.Tag(pg.UnitNorm(axis=0), tangent="gradient"),
    "tangent update": pg.Tag(pg.Simplex(axis=0), tangent="update"),
    "function": optax.projections.projection_simplex,
}


def values(names: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=SHAPE).astype("float32") for name in names}


def train(tx: Any, rules: Any, params: Any, grads: Any, *, compiled: bool, steps: int) -> Any:
    """The parameters after some steps, and how they are sharded before."""

    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.tree.map(lambda p, g: g + 0.1 * p, params, grads), state, params)
        return optax.apply_updates(params, updates), state

    start, step = (jax.jit(f) if compiled else f for f in (lambda p: po.project_params(p, rules, step=0), step))
    params = start(params)
    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def check(
    rules: dict[str, Any], specs: dict[str, Any], shapes: dict[str, Any], kind: str, *, compiled: bool, steps: int = 2
) -> None:
    """Steps with parameters on eight devices are those on one, and what was sharded is sharded as it was."""
    rng = np.random.default_rng(0)
    params, grads = ({k: rng.normal(size=s).astype("float32") for k, s in shapes.items()} for _ in range(2))
    tx = po.projected(optax.adam(0.1, eps=0.3), rules)  # with a small eps there are ties after the first step
    alone = train(tx, rules, params, grads, compiled=True, steps=steps)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(KINDS[kind],) * 2)
    with jax.set_mesh(mesh):
        placed = [{k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in t.items()} for t in (params, grads)]
        ours = train(tx, rules, *placed, compiled=compiled, steps=steps)
        away = jax.jit(lambda p: po.violations(p, rules, step=steps))(ours)
        if not compiled:
            po.audit(ours, rules, step=steps, tol=1e-4)
    for name, x in ours.items():
        if any(specs[name]):  # what is on every device may become sharded, where the compiler has the choice
            assert x.sharding.is_equivalent_to(placed[0][name].sharding, x.ndim), (name, x.sharding)
        np.testing.assert_allclose(x, alone[name], atol=2e-5, err_msg=f"{name} {specs[name]}")
    assert all(float(x) < 1e-4 for x in away.values()), away


def sets(rules: dict[str, Any], spec: str, kind: str, *, compiled: bool = True) -> None:
    names = list(rules)
    for some in (names[n : n + 4] for n in range(0, len(names), 4)):  # all at once compile slowly
        specs, shapes = dict.fromkeys(some, SPECS[spec]), dict.fromkeys(some, SHAPE)
        check({name: rules[name] for name in some}, specs, shapes, kind, compiled=compiled)


def joint(kind: str) -> None:
    rules = {"*": pg.Joint(pg.Simplex(axis=0)), "free": None}
    shapes = {"kernel": SHAPE, "bias": SHAPE[1:], "free": SHAPE}
    for specs in ((P("data", "model"), P("model")), (P("data"), P()), (P(), P("model"))):
        check(rules, dict(zip(shapes, (*specs, P("data")), strict=True)), shapes, kind, compiled=True)


def training(kind: str) -> None:
    """Data and model sharding of a network, without a context mesh as well."""
    rng = np.random.default_rng(0)
    shapes = {"first": (6, 16), "second": (16, 4)}
    start = {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    specs = {"first": P(None, "model"), "second": P("model", None)}
    x, y = (rng.normal(size=shape).astype("float32") for shape in ((8, 6), (8, 4)))
    rules = {"first": pg.SpectralNorm(0.5), "second": pg.Simplex(axis=0)}
    tx = po.projected(optax.adam(0.1), rules, metric="euclidean")

    def loss(params: Any, x: Any, y: Any, out: Any = None) -> Any:
        hidden = jnp.tanh(x @ params["first"])
        return ((jnp.matmul(hidden, params["second"], out_sharding=out) - y) ** 2).mean()

    @partial(jax.jit, static_argnums=4)
    def step(params: Any, state: Any, x: Any, y: Any, out: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params, x, y, out), state, params)
        return optax.apply_updates(params, updates), state

    def run(params: Any, x: Any, y: Any, out: Any = None) -> Any:
        params = po.project_params(params, rules)
        state = tx.init(params)
        for _ in range(5):
            params, state = step(params, state, x, y, out)
        return params

    alone = run(start, x, y)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(KINDS[kind],) * 2)
    placed = {name: jax.device_put(w, NamedSharding(mesh, specs[name])) for name, w in start.items()}
    batch = [jax.device_put(part, NamedSharding(mesh, P("data"))) for part in (x, y)]
    out = batch[0].sharding if kind == "explicit" else None
    found = run(placed, *batch, out)
    with jax.set_mesh(mesh):
        within = run(placed, *batch, out)
    for name, w in alone.items():
        for other in (found[name], within[name]):
            np.testing.assert_allclose(other, w, atol=2e-5)
            assert other.sharding.is_equivalent_to(placed[name].sharding, 2), (name, other.sharding)


def models(kind: str) -> None:
    """One model of an ensemble on each device."""
    mesh = jax.make_mesh((8,), ("models",), axis_types=(KINDS[kind],))
    start = np.random.default_rng(0).normal(size=(8, *SHAPE)).astype("float32")
    rules = {"a": pg.Simplex(axis=0), "b": pg.Monotone(axis=0)}
    tx = po.projected(optax.adam(0.1, eps=0.3), rules)

    @jax.jit
    @jax.vmap
    def train(w: Any) -> Any:
        params = po.project_params({"a": w, "b": w}, rules)
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
            params = optax.apply_updates(params, updates)
        return params

    with jax.set_mesh(mesh):
        placed = jax.device_put(start, NamedSharding(mesh, P("models")))
        found = train(placed)
    for name, alone in train(start).items():
        assert found[name].sharding.is_equivalent_to(placed.sharding, 3)
        np.testing.assert_allclose(found[name], alone, atol=2e-5)


def case(name: str) -> None:
    """The case by its name: a function of this file, and its arguments."""
    what, *how = name.split("; ")
    if what in ("joint", "training", "models", "shard_mapped"):
        globals()[what](*how)
    else:
        first = {name: FEW[name] for name in ("norm", "sparse", "spectral")}
        sets({"first": first, "few": FEW, "more": MORE}[what], *how[:2], compiled=len(how) < 3)


def shard_mapped(kind: str) -> None:
    """Inside of `jax.shard_map` a projection sees what one device has: what goes wrong, and what to write."""
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(KINDS[kind],))
    w = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    rules, across = {"w": pg.Simplex(axis=0)}, {"w": pg.Simplex(axis=1)}
    alone, alone_across = (po.project_params({"w": w}, r)["w"] for r in (rules, across))

    def mapped(do: Any) -> Any:
        with jax.set_mesh(mesh):
            placed = jax.device_put(w, NamedSharding(mesh, P("rows")))
            return jax.jit(jax.shard_map(do, in_specs=P("rows"), out_specs=P("rows")))(placed)

    def gathered(x: Any) -> Any:
        whole = jax.lax.all_gather(x, "rows", tiled=True)
        part = po.project_params({"w": whole}, rules)["w"]
        return jax.lax.dynamic_slice_in_dim(part, jax.lax.axis_index("rows") * len(x), len(x))

    tx = po.project(rules)
    tx.init({"w": w})
    np.testing.assert_allclose(mapped(lambda x: po.project_params({"w": x}, across)["w"]), alone_across, atol=2e-5)
    np.testing.assert_allclose(mapped(gathered), alone, atol=2e-5)
    with pytest.raises(ValueError, match=r"^w: Simplex.* along axis 0, .*jax.shard_map shows only 2 of 16.*outside"):
        mapped(lambda x: tx.update({"w": x}, optax.EmptyState(), {"w": 0 * x})[0]["w"])


def main(*names: str) -> None:
    assert jax.device_count() == 8
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # two programs at once wait for each other's threads
    results = {}
    for name in names:
        try:
            case(name)
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
