"""One set over several parameters together."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import projgrad as pg
from projgrad.rules import Parameter, Use, resolve
from tests.steppers import Weights, every_wrapper, same_steps

RNG = np.random.default_rng(0)
NO = "a bias has none"


def parameter(name: str, *shape: int, incoming: Any = NO, dtype: str = "float32") -> Parameter:
    return Parameter((Use(name, incoming),), shape, dtype, handle=name)


LINEAR = [parameter("fc.weight", 3, 4, incoming=(1,)), parameter("fc.bias", 3)]
CONV = [parameter("conv.kernel", 2, 2, 4, 3, incoming=(0, 1, 2)), parameter("conv.bias", 3)]


def arrays(parameters: list[Parameter]) -> list[np.ndarray]:
    return [RNG.normal(size=p.shape) for p in parameters]


# -- how parameters are laid out ----------------------------------------------------------------------------------


def test_a_unit_is_its_incoming_weights_and_its_bias() -> None:
    for parameters in (LINEAR, CONV):
        (entry,) = resolve({"*": pg.Joint(pg.UnitNorm())}, parameters)
        weight, bias = entry.project(arrays(parameters))
        axes = parameters[0].uses[0].incoming
        np.testing.assert_allclose((weight**2).sum(axes) + bias**2, 1)
        assert entry.constraint == pg.UnitNorm(axis=1)
        assert entry.names == tuple(p.name for p in parameters)
        assert entry.shapes == tuple(p.shape for p in parameters)


def test_given_axes_are_those_of_the_weights() -> None:
    parameters = [parameter("kernel", 4, 3), parameter("bias", 3)]
    (entry,) = resolve({"*": pg.Joint(pg.MaxNorm(0.5, axis=0))}, parameters)
    weight, bias = entry.project(arrays(parameters))
    assert ((weight**2).sum(0) + bias**2 <= 0.25 * (1 + 1e-12)).all()


def test_without_an_axis_all_are_one_vector() -> None:
    parameters = [*LINEAR, *CONV, parameter("scale")]
    given = arrays(parameters)
    (entry,) = resolve({"*": pg.Joint(pg.MaxNorm(2.0, axis=None))}, parameters)
    assert entry.shape == (12 + 3 + 48 + 3 + 1,)
    found = entry.project(given)
    norm = np.sqrt(sum((x**2).sum() for x in given))
    for x, y in zip(given, found, strict=True):
        assert y.shape == x.shape
        np.testing.assert_allclose(y, x * 2 / norm)
    assert entry.violation(given) == pytest.approx(norm - 2)
    (entry,) = resolve({"*": pg.Joint(pg.NonNeg())}, parameters)
    for x, y in zip(given, entry.project(given), strict=True):
        np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_what_is_laid_out_comes_back_bit_for_bit() -> None:
    for parameters in (LINEAR, CONV, CONV[::-1]):
        for c in (pg.MaxNorm(1e9), pg.MaxNorm(1e9, axis=None)):
            (entry,) = resolve({"*": pg.Joint(c)}, parameters)
            given = arrays(parameters)
            for x, y in zip(given, entry.project(given), strict=True):
                np.testing.assert_array_equal(x, y)


def test_each_rule_joins_what_it_selects() -> None:
    rules: Any = {"fc*": pg.Joint(pg.UnitNorm()), "conv*": pg.Joint(pg.UnitNorm()), "conv.bias": pg.NonNeg()}
    plan = resolve(rules, [*LINEAR, *CONV])
    assert [entry.names for entry in plan] == [("fc.weight", "fc.bias"), ("conv.kernel",), ("conv.bias",)]
    assert repr(plan).splitlines()[0] == "fc.weight + fc.bias  (3, 5)   Joint(UnitNorm(axis=1))"


def test_a_tied_weight_is_joined_once() -> None:
    tied = Parameter((Use("a.weight", (1,)), Use("b.weight", (1,))), (3, 4), "float32")
    (entry,) = resolve({"*": pg.Joint(pg.UnitNorm())}, [tied, parameter("b.bias", 3)])
    assert entry.names == ("a.weight", "b.bias")
    with pytest.raises(ValueError, match="tied"):
        resolve({"a*": pg.Joint(pg.UnitNorm()), "b*": pg.Joint(pg.UnitNorm())}, [tied, parameter("b.bias", 3)])


@pytest.mark.parametrize(
    ("constraint", "parameters", "message"),
    [
        (pg.UnitNorm(), [*LINEAR, parameter("b", 4)], r"number of units \(fc.weight has 3, fc.bias has 3, b has 4\)"),
        (pg.UnitNorm(), [parameter("a", 3), parameter("b", 3)], "axis=None takes all as one vector"),
        (pg.UnitNorm(), [LINEAR[0], parameter("b", 3, 3)], "b: a bias has none"),
        (pg.UnitNorm(axis=5), LINEAR, "axis 5 does not exist"),
        (pg.UnitNorm(), [LINEAR[0], parameter("b", 3, dtype="float16")], "differ in their dtype.*b is float16"),
        (pg.Simplex(axis=None), [parameter("n", 3, dtype="int32")], "floating-point"),
        (pg.Box([[0.0, 0.0]], 1.0), LINEAR, "broadcast"),
        (pg.Slices([pg.UnitNorm(), pg.UnitNorm(axis=0)]), LINEAR, "same axis"),
        (pg.Slices([pg.UnitNorm(axis=0), None]), LINEAR, 'axis="incoming" or None'),
    ],
)
def test_what_does_not_go_together_is_refused(constraint: Any, parameters: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        resolve({"*": pg.Joint(constraint)}, parameters)


def test_sets_of_sets_are_laid_out_too() -> None:
    (entry,) = resolve({"*": pg.Joint(pg.Slices({(0, 1): pg.UnitNorm()}))}, LINEAR)
    given = arrays(LINEAR)
    weight, bias = entry.project(given)
    assert (weight[0] ** 2).sum() + bias[0] ** 2 == pytest.approx(1)
    np.testing.assert_array_equal(weight[1:], given[0][1:])


def test_intersections_are_laid_out_too() -> None:
    (entry,) = resolve({"*": pg.Joint(pg.UnitNorm() & pg.NonNeg())}, LINEAR)
    weight, bias = entry.project(arrays(LINEAR))
    np.testing.assert_allclose((weight**2).sum(1) + bias**2, 1)
    assert weight.min() >= 0
    with pytest.raises(ValueError, match='axis="incoming" or None'):
        resolve({"*": pg.Joint(pg.UnitNorm(axis=1) & pg.NonNeg())}, LINEAR)


def test_it_can_be_shown_saved_and_compared() -> None:
    joint: Any = pg.Joint(pg.MaxNorm(2.0, axis=None), every=3)
    assert pg.from_dict(json.loads(json.dumps(joint.to_dict()))) == joint
    assert eval(repr(joint), vars(pg)) == joint
    assert joint != pg.Tag(pg.MaxNorm(2.0, axis=None), every=3)


# -- every wrapper ------------------------------------------------------------------------------------------------

START = {
    "kernel": RNG.normal(size=(3, 4)).astype("float32"),
    "bias": RNG.normal(size=4).astype("float32"),
    "free": np.ones(2, "float32"),
}
GRADIENT = {name: RNG.normal(size=x.shape).astype("float32") for name, x in START.items()}


def expected(project: Any, every: int = 1) -> list[Weights]:
    x, found = {name: v.astype("float64") for name, v in START.items()}, []
    for n in range(6):
        x = {name: v - (GRADIENT[name] if n else 0.0) for name, v in x.items()}
        if n % every == 0:
            x["kernel"], x["bias"] = project(x["kernel"], x["bias"])
        found.append(dict(x))
    return found


@every_wrapper
def test_units_in_every_wrapper(wrapper: str) -> None:
    def project(kernel: np.ndarray, bias: np.ndarray) -> Any:
        shrink = np.minimum(1, 0.5 / np.sqrt((kernel**2).sum(0) + bias**2))
        return kernel * shrink, bias * shrink

    rules: Any = {"*": pg.Joint(pg.MaxNorm(0.5, axis=0), every=2), "free": None}
    same_steps(wrapper, rules, START, GRADIENT, expected(project, every=2))


@every_wrapper
def test_one_vector_in_every_wrapper(wrapper: str) -> None:
    def project(kernel: np.ndarray, bias: np.ndarray) -> Any:
        flat = pg.Simplex(2.0)(np.concatenate([kernel.ravel(), bias]))
        return flat[:12].reshape(3, 4), flat[12:]

    same_steps(wrapper, {"*": pg.Joint(pg.Simplex(2.0, axis=None)), "free": None}, START, GRADIENT, expected(project))


def norm(*parts: Any) -> float:
    return float(np.sqrt(sum((np.asarray(p, "float64") ** 2).sum() for p in parts)))


def test_torch_by_param_group_and_by_layer() -> None:
    torch = pytest.importorskip("torch")
    from projgrad.torch import ProjectedOptimizer, constrain, project_params, violations

    joint = pg.Joint(pg.MaxNorm(0.5, axis=None))
    a, b, c, d = (torch.nn.Parameter(torch.ones(3)) for _ in range(4))
    groups = [{"params": [a, b], "constraint": joint}, {"params": [c, d], "constraint": joint}]
    optimizer = ProjectedOptimizer(torch.optim.SGD(groups, lr=0.1))
    assert [len(entry.names) for entry in optimizer.plan] == [2, 2]
    for pair in ((a, b), (c, d)):
        assert norm(*(p.detach() for p in pair)) == pytest.approx(0.5)
    e, f = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer.add_param_group({"params": [e, f], "constraint": joint})
    assert norm(e.detach(), f.detach()) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="as a rule that selects them all"):
        constrain(torch.nn.Linear(3, 2), weight=joint)
    layer = torch.nn.Linear(3, 2)
    project_params(layer, {"*": joint})
    assert violations(layer, {"*": joint}) == {"weight + bias": 0.0}
    assert layer.weight.is_leaf


def test_torch_refuses_what_it_cannot_hold_together() -> None:
    torch = pytest.importorskip("torch")
    from projgrad.torch import ProjectedOptimizer, project_params

    joint = pg.Joint(pg.MaxNorm(0.5, axis=None))
    with pytest.raises(ValueError, match="different devices: a is on cpu, b is on meta"):
        project_params({"a": torch.ones(2), "b": torch.ones(2, device="meta")}, {"*": joint})
    with pytest.raises(ValueError, match=r"dtype.*a is torch.float32, b is torch.float64"):
        project_params({"a": torch.ones(2), "b": torch.ones(2, dtype=torch.float64)}, {"*": joint})
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match="bias would not be held by the same optimizer"):
        ProjectedOptimizer(torch.optim.SGD([layer.weight], 0.1), {"*": joint}, model=layer, partial=True)
    pair = torch.nn.Sequential(layer, torch.nn.Linear(2, 2))
    rules: Any = {"0*": pg.NonNeg(), "1.*": joint}
    optimizer = ProjectedOptimizer(torch.optim.SGD(layer.parameters(), 0.1), rules, model=pair, partial=True)
    with pytest.raises(ValueError, match=r"1.bias would not be held.*same new group"):
        optimizer.add_param_group({"params": [pair[1].weight]})
    optimizer.add_param_group({"params": list(pair[1].parameters())})
    assert [entry.name for entry in optimizer.plan] == ["0.weight", "0.bias", "1.weight + 1.bias"]
    named = ProjectedOptimizer(torch.optim.SGD(list(layer.named_parameters()), 0.1), {"*": joint})
    with pytest.raises(ValueError, match=r"call set_rules\(\)"):
        named.add_param_group({"params": [("more", torch.nn.Parameter(torch.ones(2)))]})
    assert len(named.param_groups) == 1


def test_optax_by_tree_and_with_masked_updates() -> None:
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    import projgrad.optax as po

    ball = pg.Joint(pg.MaxNorm(0.5, axis=None))
    x = np.ones(2, "float32")
    params = {"a": {"w": np.stack([x, x]), "b": jax.numpy.ones(2)}, "c": {"w": x, "b": x}}
    tree = {"a": ball, "c": ball}
    found = po.project_params(params, tree=tree)
    for layer in found.values():
        assert norm(*layer.values()) == pytest.approx(0.5)
    assert isinstance(found["c"]["w"], np.ndarray)
    assert set(po.violations(found, tree=tree)) == {"a/b + a/w", "c/b + c/w"}
    tx = po.project(tree=tree)
    updates = jax.tree.map(np.ones_like, params) | {"c": {"w": None, "b": None}}
    new, _ = tx.update(updates, tx.init(params), found)
    assert norm(*(found["a"][k] + new["a"][k] for k in "wb")) == pytest.approx(0.5, rel=1e-6)
    assert new["c"] == {"w": None, "b": None}
    with pytest.raises(ValueError, match="c/w has no update"):
        tx.update(updates | {"c": {"w": None, "b": np.ones(2)}}, optax.EmptyState(), found)


def test_two_rules_that_read_the_same_are_two_sets() -> None:
    first, second = type("Linear", (), {}), type("Linear", (), {})
    parameters = [
        Parameter((Use(name, (1,), layer=kind(), attribute="weight"),), (3, 2), "float32", handle=name)
        for name, kind in (("a.weight", first), ("b.weight", second))
    ]
    rules = {kind: {"weight": pg.Joint(pg.MaxNorm(1.0, axis=None))} for kind in (first, second)}
    assert [entry.names for entry in resolve(rules, parameters)] == [("a.weight",), ("b.weight",)]
