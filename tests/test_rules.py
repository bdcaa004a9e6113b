"""Rules: who gets which constraint, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import projgrad as pg
from projgrad.plan import Plan, PlanEntry
from projgrad.rules import Parameter, Use
from projgrad.rules import resolve as plan_of


class Dense: ...


class Wide(Dense): ...


def parameter(name: str, layer: Any = None, shape: tuple[int, ...] = (3, 4), **changes: Any) -> Parameter:
    attribute = name.rpartition(".")[2]
    use = Use(
        name, (1,) if attribute == "weight" else "a bias feeds no unit", layer, attribute, changes.pop("tag", None)
    )
    return Parameter((use,), shape, changes.pop("dtype", "float32"), **changes)


MODEL = [
    parameter("fc1.weight", Dense()),
    parameter("fc1.bias", Dense(), (3,)),
    parameter("fc2.weight", Wide()),
    parameter("norm.weight", shape=(3,)),
]


def resolve(rules: Any, parameters: list[Parameter]) -> dict[int, pg.Constraint]:
    """The constraint of each parameter by its position."""
    parameters = [replace(p, handle=i) for i, p in enumerate(parameters)]
    return {entry.handles[0]: entry.constraint for entry in plan_of(rules, parameters)}


def test_patterns_and_classes_select() -> None:
    found = resolve({"fc?.weight": pg.MaxNorm(1.0)}, MODEL)
    assert found == {0: pg.MaxNorm(1.0, axis=1), 2: pg.MaxNorm(1.0, axis=1)}
    assert resolve({Dense: {"weight": pg.UnitNorm()}}, MODEL) == {0: pg.UnitNorm(axis=1), 2: pg.UnitNorm(axis=1)}
    assert resolve({Wide: {"weight": pg.UnitNorm()}}, MODEL) == {2: pg.UnitNorm(axis=1)}
    assert set(resolve({"*": pg.NonNeg()}, MODEL)) == {0, 1, 2, 3}


def test_the_last_rule_wins() -> None:
    rules = {"*.weight": pg.NonNeg(), "norm*": None, Wide: {"weight": pg.Box(0, 1)}}
    assert resolve(rules, MODEL) == {0: pg.NonNeg(), 2: pg.Box(0, 1)}
    assert resolve({"fc1.*": pg.NonNeg(), Dense: None, "*.bias": pg.NonPos()}, MODEL) == {1: pg.NonPos()}


def test_no_rules_leave_all_free() -> None:
    assert resolve({}, MODEL) == {}
    assert resolve(None, MODEL) == {}


def test_functions_are_constraints_too() -> None:
    found = resolve({"fc1.weight": abs}, MODEL)
    assert found[0] == pg.as_constraint(abs)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"fc1.wieght": pg.NonNeg()}, "'fc1.wieght' selects no parameter; the nearest: fc1.weight"),
        ({"decoder.*": None}, "selects no parameter"),
        ({Dense: {"wieght": pg.NonNeg()}}, r"Dense\['wieght'\] selects no parameter; the nearest: weight"),
        ({int: {"weight": pg.NonNeg()}}, "selects no parameter; the nearest: Wide, Dense|Dense, Wide"),
        ({"*": pg.MaxNorm(1.0)}, "fc1.bias.*feeds no unit"),
        ({"norm.weight": pg.MaxNorm(1.0, axis=1)}, r"norm.weight, of shape \(3,\).*axis 1 does not exist"),
        ({"fc1.weight": pg.Box([0, 0, 0], 1)}, "broadcast"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rules: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(rules, MODEL)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([pg.NonNeg()], "mapping"),
        (pg.NonNeg(), "mapping"),
        ({"*": 3}, "neither a constraint nor a function"),
        ({"*": pg.NonNeg}, "is a class"),
        ({"*": {"weight": pg.NonNeg()}}, "name pattern"),
        ({Dense: pg.NonNeg()}, "must say which"),
        ({3: pg.NonNeg()}, "name pattern or a layer class"),
    ],
)
def test_rules_of_another_form_are_refused(rules: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        resolve(rules, MODEL)


def test_numbers_must_be_floating_point() -> None:
    with pytest.raises(TypeError, match="steps.*floating-point"):
        resolve({"*": pg.NonNeg()}, [parameter("steps", dtype="int32")])


def test_what_must_not_be_constrained_says_why() -> None:
    with pytest.raises(ValueError, match="w: is parametrized"):
        resolve({"*": pg.NonNeg()}, [parameter("w", refused="is parametrized")])


def test_tags_hold_and_must_agree_with_the_rules() -> None:
    tagged = [parameter("fc1.weight", tag=pg.MaxNorm(1.0))]
    assert resolve(None, tagged) == {0: pg.MaxNorm(1.0, axis=1)}
    assert resolve({"*": pg.MaxNorm(1.0, axis=-1)}, tagged) == {0: pg.MaxNorm(1.0, axis=1)}
    for other in (pg.MaxNorm(2.0), None):
        with pytest.raises(ValueError, match=r"fc1.weight: the rule '\*' asks for .* but the tag on its layer for"):
            resolve({"*": other}, tagged)


def test_tied_weights_must_agree() -> None:
    tied = [Parameter((Use("embed.weight", (1,)), Use("head.weight", (1,))), (3, 4), "float32")]
    assert resolve({"head.*": pg.UnitNorm()}, tied) == {0: pg.UnitNorm(axis=1)}
    assert resolve({"*": pg.UnitNorm(), "head.*": pg.UnitNorm(axis=1)}, tied) == {0: pg.UnitNorm(axis=1)}
    with pytest.raises(ValueError, match=r"tied: embed.weight, head.weight"):
        resolve({"embed.*": pg.UnitNorm(), "head.*": pg.MaxNorm(1.0)}, tied)
    with pytest.raises(ValueError, match="tied"):
        resolve({"*": pg.UnitNorm(), "head.*": None}, tied)


def test_aliases_match_too() -> None:
    use = Use("fc.weight", (1,), aliases=("module._orig_mod.fc.weight",))
    for pattern in ("fc.weight", "module.*"):
        assert resolve({pattern: pg.NonNeg()}, [Parameter((use,), (3, 4), "float32")]) == {0: pg.NonNeg()}


def test_a_plan_is_a_sequence_that_prints_as_a_table() -> None:
    entries = [("fc1.weight", (3, 4), pg.MaxNorm(1.0, axis=1)), ("b", (3,), pg.NonNeg())]
    plan = Plan([PlanEntry((name,), (shape,), pg.Tag(constraint)) for name, shape, constraint in entries])
    assert str(plan).splitlines() == [
        "fc1.weight  (3, 4)  MaxNorm(max_value=1.0, axis=1)",
        "b           (3,)    NonNeg()",
    ]
    assert [entry.name for entry in plan[:1]] == ["fc1.weight"]
    assert plan == Plan(list(plan)) != Plan([])
    assert len(Plan([])) == 0
    assert "no parameter" in str(Plan([]))


def test_what_has_no_metric_in_so_many_dimensions_is_refused() -> None:
    rules = {"w": pg.L1Ball(axis=None) & pg.ZeroMean(axis=1)}
    parameters = [Parameter((Use("w", (1,)),), (3, 4), "float32")]
    plan_of(rules, parameters)
    with pytest.raises(ValueError, match=r"^w cannot have metric='optimizer': Intersection.*is not implemented"):
        plan_of(rules, parameters, metric="optimizer")


def test_a_plan_shows_the_method_of_an_intersection_in_the_metric_that_holds() -> None:
    use = Use("w", (1,))
    for constraint in (pg.MaxNorm() & pg.NonNeg(), pg.MaxNorm(pg.Schedule({0: 1.0, 5: 2.0})) & pg.NonNeg()):
        plain, weighted = (
            plan_of({"w": constraint}, [Parameter((use,), (3, 4), "float32")], metric=metric)
            for metric in (None, "optimizer")
        )
        assert "method='cone, then ball')" in str(plain)
        assert "method='orthant and sphere'), metric='optimizer')" in str(weighted)
        pasted = eval(str(weighted[0].shown), vars(pg))
        pasted = plan_of({"w": pasted}, [Parameter((use,), (3, 4), "float32")])
        assert str(pasted) == str(weighted)
