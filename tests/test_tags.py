"""Tags: a constraint with options, and steps on which nothing is projected."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest

import projgrad as pg
from projgrad.rules import Parameter, Use, resolve
from tests.steppers import Weights, every_wrapper, same_steps

Tag: Any = pg.Tag

START = {"w": np.array([[3.0, 4.0], [0.1, 0.2]], "float32"), "b": np.array([-1.0, 2.0], "float32")}
GRADIENT = {"w": np.full((2, 2), -0.25, "float32"), "b": np.array([0.5, -0.5], "float32")}


def expected(steps: int, **every: tuple[pg.Constraint, int]) -> list[Weights]:
    """Gradient descent with a projection after every so many steps."""
    x = {name: v.astype("float64") for name, v in START.items()}
    found = []
    for n in range(steps + 1):
        for name in x:
            x[name] = x[name] - (GRADIENT[name] if n else 0.0)
            if name in every and n % every[name][1] == 0:
                x[name] = every[name][0].project(x[name])
        found.append(dict(x))
    return found


# -- the object ---------------------------------------------------------------------------------------------------


def test_a_tag_is_a_constraint_with_options() -> None:
    tag: Any = pg.MaxNorm(3.0, axis=1).every(10)
    assert tag == Tag(pg.MaxNorm(3.0, axis=1), every=10) != Tag(pg.MaxNorm(3.0, axis=1))
    assert hash(tag) == hash(copy.deepcopy(tag))
    assert eval(repr(tag), vars(pg)) == tag
    assert pg.from_dict(json.loads(json.dumps(tag.to_dict()))) == tag
    assert pickle.loads(pickle.dumps(tag)) == tag
    assert Tag(abs).constraint == pg.as_constraint(abs)
    assert str(pg.Tag(pg.NonNeg())) == "NonNeg()"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pg.NonNeg().every(0), ValueError, "every=0 must be at least 1"),
        (lambda: Tag(pg.NonNeg(), every=2.0), TypeError, "every=2.0 is not an int"),
        (lambda: Tag(3), TypeError, "neither a constraint nor a function"),
        (lambda: Tag(pg.NonNeg().every(2)), TypeError, "is a tag already"),
        (lambda: Tag(pg.NonNeg(), metric="l1"), ValueError, "metric='l1' is not known"),
    ],
)
def test_wrong_tags_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_rules_with_other_options_disagree() -> None:
    held = [Parameter((Use("w", (1,), tag=pg.NonNeg().every(2)),), (2, 2), "float32")]
    (entry,) = resolve({"w": pg.Tag(pg.NonNeg(), every=2)}, held)
    assert entry.tag.every == 2
    assert "every=2" in repr(resolve(None, held))
    with pytest.raises(
        ValueError, match=r"asks for NonNeg\(\), but the tag on its layer for Tag\(NonNeg\(\), every=2\)"
    ):
        resolve({"w": pg.NonNeg()}, held)


# -- every wrapper ------------------------------------------------------------------------------------------------


@every_wrapper
def test_a_projection_every_so_many_steps(wrapper: str) -> None:
    ball, plus = pg.MaxNorm(1.0, axis=1), pg.NonNeg()
    rules = {"w": ball.every(3), "b": plus}
    same_steps(wrapper, rules, START, GRADIENT, expected(7, w=(ball, 3), b=(plus, 1)))


@every_wrapper
def test_without_options_a_tag_is_its_constraint(wrapper: str) -> None:
    ball = pg.MaxNorm(1.0, axis=1)
    same_steps(wrapper, {"w": pg.Tag(ball)}, START, GRADIENT, expected(2, w=(ball, 1)))


@every_wrapper
def test_relaxed_every_second_step(wrapper: str) -> None:
    ball = pg.MaxNorm(1.0, axis=1).relaxed(0.5)
    same_steps(wrapper, {"w": ball.every(2)}, START, GRADIENT, expected(4, w=(ball, 2)))


# -- PyTorch ------------------------------------------------------------------------------------------------------


def _torch(tag: Any) -> tuple[Any, Any]:
    torch = pytest.importorskip("torch")
    from projgrad.torch import ProjectedOptimizer

    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    return ProjectedOptimizer(torch.optim.Adam(model.parameters(), 0.5), {"weight": tag}, model=model), model


def _train(optimizer: Any, model: Any, steps: int) -> None:
    import torch

    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()


def test_the_number_of_steps_is_saved_beside_the_state_of_torch() -> None:
    torch = pytest.importorskip("torch")
    optimizer, model = _torch(pg.MaxNorm(0.5).every(3))
    _train(optimizer, model, 2)
    state = copy.deepcopy(optimizer.state_dict())
    assert state["projgrad"] == {"step": 2}
    assert state["param_groups"][0]["projgrad"] == {"step": 2}
    other, twin = _torch(pg.MaxNorm(0.5).every(3))
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(state_dict=state)
    _train(other, twin, 1)
    assert pg.MaxNorm(0.5, axis=1).contains(twin.weight)
    # a bare optimizer loads it, and one that never did lacks the number
    bare = torch.optim.Adam(twin.parameters(), 0.5)
    bare.load_state_dict(state)
    assert "projgrad" not in bare.state_dict()
    bare = torch.optim.Adam(twin.parameters(), 0.5)
    bare.step()
    assert "projgrad" not in bare.state_dict() | bare.state_dict()["param_groups"][0]
    other.load_state_dict(bare.state_dict())
    _train(other, twin, 2)
    assert not pg.MaxNorm(0.5, axis=1).contains(twin.weight)
    _train(other, twin, 1)
    assert pg.MaxNorm(0.5, axis=1).contains(twin.weight)


def test_nothing_is_added_to_the_state_where_nothing_counts() -> None:
    assert set(_torch(pg.MaxNorm(0.5))[0].state_dict()) == {"state", "param_groups"}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_go_on_counting(duplicate: Any) -> None:
    optimizer, model = _torch(pg.MaxNorm(0.5).every(2))
    _train(optimizer, model, 1)
    other, twin = duplicate((optimizer, model))
    _train(other, twin, 1)
    assert pg.MaxNorm(0.5, axis=1).contains(twin.weight)
    assert not pg.MaxNorm(0.5, axis=1).contains(model.weight)


def test_a_compiled_step_counts() -> None:
    torch = pytest.importorskip("torch")
    optimizer, model = _torch(pg.MaxNorm(0.5).every(2))
    step = torch.compile(optimizer.step, backend="eager")
    for n in range(1, 7):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        step()
        assert pg.MaxNorm(0.5, axis=1).contains(model.weight) == (n % 2 == 0)


def test_projecting_by_hand_always_projects() -> None:
    torch = pytest.importorskip("torch")
    from projgrad.torch import project_params, violations

    tag = pg.MaxNorm(0.5).every(3)
    optimizer, model = _torch(tag)
    _train(optimizer, model, 1)
    assert violations(model, {"weight": tag})["weight"] > 0
    optimizer.project()
    assert pg.MaxNorm(0.5, axis=1).contains(model.weight)
    for step, due in ((None, True), (6, True), (7, False)):
        w = {"w": torch.ones(2, 2)}
        project_params(w, {"w": pg.MaxNorm(0.5, axis=1).every(3)}, step=step)
        assert pg.MaxNorm(0.5, axis=1).contains(w["w"]) == due


def test_layers_and_param_groups_of_torch_take_tags() -> None:
    torch = pytest.importorskip("torch")
    from projgrad.torch import ProjectedOptimizer, constrain

    layer = constrain(torch.nn.Linear(4, 3), weight=pg.MaxNorm(0.5).every(2))
    extra = torch.nn.Parameter(torch.ones(3))
    optimizer = ProjectedOptimizer(torch.optim.SGD(layer.parameters(), 1.0), model=layer)
    optimizer.add_param_group({"params": [extra], "constraint": pg.NonPos().every(4)})
    assert [(entry.name, entry.tag.every) for entry in optimizer.plan] == [("weight", 2), ("param_groups[1][0]", 4)]
    _train(optimizer, layer, 1)
    assert not pg.MaxNorm(0.5, axis=1).contains(layer.weight)
    _train(optimizer, layer, 1)
    assert pg.MaxNorm(0.5, axis=1).contains(layer.weight)


# -- optax --------------------------------------------------------------------------------------------------------


def test_optax_counts_only_where_needed() -> None:
    pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    import projgrad.optax as po

    assert isinstance(po.project({"w": pg.NonNeg()}).init(START), optax.EmptyState)
    tx = po.project(tree={"w": pg.NonNeg().every(2), "b": None})
    assert int(tx.init(START).count) == 0
    with pytest.raises(ValueError, match="state that init returned"):
        tx.update(GRADIENT, optax.EmptyState(), START)


def test_optax_counts_in_scan_vmap_and_multi_steps() -> None:
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    import projgrad.optax as po

    ball = pg.MaxNorm(1.0, axis=1)
    rules = {"w": ball.every(3)}
    wanted = [weights["w"] for weights in expected(6, w=(ball, 3))]

    def run(tx: Any, steps: int, params: Any) -> Any:
        def step(carried: Any, _: Any) -> Any:
            params, state = carried
            updates, state = tx.update(GRADIENT, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params["w"]

        return jax.lax.scan(step, (params, tx.init(params)), None, length=steps)[1]

    start = po.project_params(START, rules)
    tx = po.projected(optax.sgd(1.0), rules)
    np.testing.assert_allclose(run(tx, 6, start), wanted[1:], rtol=1e-5)
    twice = jax.tree.map(lambda x: np.stack([x, x]), start)
    np.testing.assert_allclose(jax.vmap(lambda p: run(tx, 6, p))(twice)[1], wanted[1:], rtol=1e-5)
    slow = run(optax.MultiSteps(tx, 2).gradient_transformation(), 12, start)
    np.testing.assert_allclose(slow[1::2], wanted[1:], rtol=1e-5)
