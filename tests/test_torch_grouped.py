"""Small parameters that are projected together are projected like each of them by itself."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import numpy as np
import pytest

import projgrad as pg
from projgrad.stack import stacked
from tests.cases import Case, all_cases

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode

from projgrad.torch import ProjectedOptimizer, project_
from projgrad_backends.torch.namespace import TorchNamespace

CASES = all_cases()


def parameters(values: Any, dtype: Any = torch.float32) -> list[tuple[str, Any]]:
    return [(f"p{i}", torch.nn.Parameter(torch.as_tensor(v).clone().to(dtype))) for i, v in enumerate(values)]


def kept(named: Any, rule: Any, **options: Any) -> ProjectedOptimizer:
    return ProjectedOptimizer(torch.optim.SGD(named, lr=0.0), {"*": rule}, **options)


@torch.no_grad()
def fill(named: Any, values: Any) -> None:
    for (_, x), value in zip(named, values, strict=True):
        x.copy_(torch.as_tensor(value))


def stacks(optimizer: Any) -> list[int]:
    return [len(stack.entries) for stack in optimizer._together._stacks]


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_each_set(case: Case) -> None:
    shape = case.shapes[0]
    values = [case.groups(seed, shape).astype(np.float32) for seed in range(3)]
    named = parameters(values)
    optimizer = kept(named, case.constraint)
    assert stacks(optimizer) == [3]
    values[1][(2, *(0,) * len(shape))] = math.nan
    values[2][3] = 0
    fill(named, values)
    optimizer.project()
    for (_, x), value in zip(named, values, strict=True):
        alone = project_(torch.as_tensor(value.copy()), case.constraint)
        size = np.linalg.norm(np.nan_to_num(value).reshape(len(value), -1), axis=1).max()
        torch.testing.assert_close(
            x.detach(),
            alone,
            rtol=1e-5,
            atol=case.accuracy * pg.tolerance("float32", value[0].size, size),
            equal_nan=True,
        )


def rows(count: int = 40, shape: tuple[int, ...] = (16, 8), seed: int = 0) -> Any:
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))


def by_hand(x: Any, most: float) -> Any:
    norm = x.double().square().sum(-1, keepdim=True).sqrt()
    return (x.double() * (most / norm).clamp(max=1.0)).to(x.dtype)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64], ids=str
)
def test_a_norm_by_hand_and_what_is_inside_is_not_touched(dtype: Any) -> None:
    values = rows().to(dtype)
    values[1::2] *= 0.01
    values[0, 3] = 0
    named = parameters(values, dtype)
    optimizer = kept(named, pg.MaxNorm(1.0, axis=1))
    assert stacks(optimizer) == [40]
    fill(named, values)
    versions = [x._version for _, x in named]
    optimizer.project()
    if dtype.is_complex:
        norm = torch.linalg.vector_norm(values.to(torch.complex128), dim=-1, keepdim=True)
        wanted = (values / norm.clamp(min=1.0)).to(dtype)
    else:
        wanted = by_hand(values, 1.0)
    rtol = {torch.float64: 1e-14, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}.get(dtype, 1e-6)
    torch.testing.assert_close(torch.stack([x.detach() for _, x in named]), wanted, rtol=rtol, atol=0)
    for i, (_, x) in enumerate(named):
        alone = project_(values[i].clone(), pg.MaxNorm(1.0, axis=1))
        assert torch.equal(x.detach(), alone)  # bit for bit
    if dtype in (torch.float32, torch.float64):  # nothing is written
        assert [x._version for _, x in named[1::2]] == versions[1::2]
    after = [x.detach().clone() for _, x in named]
    optimizer.project()
    assert all(torch.equal(x, y) for (_, x), y in zip(named, after, strict=True))


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e25, 1e38])
@pytest.mark.parametrize("rule", [pg.MaxNorm(1e-3, axis=1), pg.UnitNorm(axis=1), pg.MaxNorm(2.0, axis=None, rate=0.5)])
def test_extreme_values(scale: float, rule: Any) -> None:
    values = rows() * torch.tensor([1.0, scale])[torch.arange(40) % 2][:, None, None]
    values[4, 2], values[5, 3], values[6, 4, 1] = math.nan, 0.0, math.inf
    named = parameters(values)
    optimizer = kept(named, rule)
    fill(named, values)
    optimizer.project()
    for (_, x), value in zip(named, values, strict=True):
        torch.testing.assert_close(x.detach(), project_(value.clone(), rule), equal_nan=True, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rule", "lower", "upper"),
    [
        (pg.NonNeg(), 0.0, math.inf),
        (pg.NonPos(), -math.inf, 0.0),
        (pg.Box(-0.3, 0.7), -0.3, 0.7),
        (pg.Box(0.1, math.inf), 0.1, math.inf),
        (pg.LInfBall(0.3), -0.3, 0.3),
        (pg.Box(pg.Schedule({0: -0.3, 5: -0.2}), 0.0), -0.3, 0.0),
    ],
    ids=repr,
)
def test_numbers_as_bounds_need_no_stack(
    rule: Any, lower: float, upper: float, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = rows(6)
    values[0, 0], values[1, 0], values[2, 0] = 0.0, -0.0, math.nan
    values[3, 0], values[4, 0] = math.inf, -math.inf
    values = values.to(dtype)
    named = parameters(values, dtype)
    optimizer = kept(named, rule)
    assert stacks(optimizer) == [6]
    fill(named, values)
    monkeypatch.setattr(torch, "stack", None)
    optimizer.project()
    low, high = (float(torch.tensor(bound, dtype=torch.float64).to(dtype)) for bound in (lower, upper))
    wide = values.double().numpy()
    wanted = np.where(wide < low, low, np.where(wide > high, high, wide))
    for (_, x), y in zip(named, wanted, strict=True):
        found = x.detach().double().numpy()
        np.testing.assert_array_equal(found, y)
        np.testing.assert_array_equal(np.signbit(found), np.signbit(y))


def test_which_are_together() -> None:
    square, wide = rows(4, (8, 8)), rows(3, (8, 16))
    named = [*parameters([*square, *wide]), ("half", torch.nn.Parameter(square[0].half()))]
    named += [("big", torch.nn.Parameter(torch.randn(512, 512))), ("empty", torch.nn.Parameter(torch.zeros(0, 4)))]
    rule = pg.MaxNorm(1.0, axis=1)
    assert stacks(kept(named, rule)) == [4, 3]
    other = pg.Tag(rule, every=2)
    groups = [
        {"params": [x for _, x in named[:2]], "constraint": rule},
        {"params": [x for _, x in named[2:4]], "constraint": other},
    ]
    assert stacks(ProjectedOptimizer(torch.optim.SGD(groups, lr=0.1))) == [2, 2]
    assert stacks(kept(named, lambda x: x * 0.5)) == []  # nobody knows what a function does
    assert stacks(kept(named[:4], pg.Joint(rule))) == []
    many = parameters(rows(40, (256, 256)))
    assert stacks(kept(many, rule)) == [8, 8, 8, 8, 8]  # of bounded memory
    optimizer = kept(named[:4], rule)
    added = [(f"q{i}", torch.nn.Parameter(x.clone())) for i, x in enumerate(square)]
    optimizer.add_param_group({"params": added, "constraint": rule})
    assert stacks(optimizer) == [8]


def test_an_unhashable_set_of_the_users_is_projected_alone() -> None:
    class Mine(pg.Constraint):
        __dataclass_fields__: dict[str, Any] = {}  # noqa: RUF012
        __hash__ = None  # type: ignore[assignment]
        axis = ()

        def solve(self, x: Any, xp: Any, metric: Any = None) -> Any:
            return pg.NonNeg().solve(x, xp)

    for compiled in (False, True):
        named = parameters(rows(3))
        optimizer = kept(named, Mine(), compile=compiled)
        assert stacks(optimizer) == []
        optimizer.project()
        assert all((x >= 0).all() for _, x in named)


def test_few_groups_outside_of_a_large_stack_of_complex_parameters() -> None:
    values = rows(40, (64, 64)).to(torch.complex64) * 1e-3
    values[::3, ::13] *= 1e3
    optimizer = kept(named := parameters(values, torch.complex64), pg.MaxNorm(0.5, axis=1))
    assert stacks(optimizer) == [40]
    fill(named, values)
    optimizer.project()
    for (_, x), value in zip(named, values, strict=True):
        assert torch.equal(x.detach(), project_(value.clone(), pg.MaxNorm(0.5, axis=1)))
    assert max(torch.linalg.vector_norm(x.detach(), dim=1).max() for _, x in named) < 0.500001


def test_parameters_that_are_not_alike_any_more() -> None:
    values = rows(6) * 3
    values[2, 0], values[2, 0, 0], values[2, 0, 1] = 0.0, 1.0, 0.078125  # inside, as far as bfloat16 can tell
    named = parameters(values)
    optimizer = kept(named, pg.MaxNorm(1.0, axis=1))
    fill(named, values)
    named[2][1].data = named[2][1].data.to(torch.bfloat16)
    optimizer.project()
    for i, (_, x) in enumerate(named):
        assert x.dtype == (torch.bfloat16 if i == 2 else torch.float32)
        assert torch.equal(x.detach(), project_(values[i].to(x.dtype), pg.MaxNorm(1.0, axis=1)))


def test_where_one_has_no_nearest_point_the_error_is_of_it_alone() -> None:
    values = [np.eye(4, dtype=np.float32)] * 3
    rule = pg.Hyperplane(np.ones(4), 1.0, axis=1) & pg.MaxNorm(0.6, axis=1) & pg.Box(-1, 1)
    named = parameters(values)
    optimizer = kept(named, rule)
    assert stacks(optimizer) == [3]
    entry = optimizer.plan[0]

    def solve(self: Any, x: Any, xp: Any, metric: Any = None) -> Any:
        raise RuntimeError(f"no nearest point is found for shape {tuple(x.shape)}")

    before = [x.detach().clone() for _, x in named]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(entry.constraint), "solve", solve)
        with pytest.raises(RuntimeError, match=r"shape \(4, 4\)"):
            optimizer.project()
    assert all(torch.equal(x, y) for (_, x), y in zip(named, before, strict=True))


def trained(named: Any, wrap: Any, steps: int = 6, make: Any = torch.optim.Adam) -> list[Any]:
    optimizer = wrap(make(named, lr=0.1))
    for step in range(steps):
        for i, (_, x) in enumerate(named):
            x.grad = torch.sin(x.detach() * (i + 2) + step)
        optimizer.step()
    return [x.detach() for _, x in named]


@pytest.mark.parametrize(
    "tag",
    [
        pg.Tag(pg.Simplex(1.0, axis=1), metric="optimizer"),
        pg.Tag(pg.MaxNorm(0.5, axis=1), metric="optimizer", every=2),
        pg.MaxNorm(pg.Schedule({0: 2.0, 5: 0.5}), axis=1),
        pg.Tag(pg.L1Ball(pg.Schedule({0: 5.0, 5: 1.0}), axis=None), every=3),
        pg.UnitNorm(axis=0, rate=0.3),
        pg.Slices([pg.UnitNorm(axis=1), None]),
        pg.Tag(pg.UnitNorm(axis=1), tangent="gradient"),
    ],
    ids=repr,
)
def test_training(tag: Any) -> None:
    def wrap(inner: Any, **options: Any) -> ProjectedOptimizer:
        return ProjectedOptimizer(inner, {"*": tag}, **options)

    together = trained(parameters(rows(5)), wrap)
    recorded = trained(parameters(rows(5)), lambda inner: wrap(inner, record=True))  # each by itself
    for x, y in zip(together, recorded, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-6)


def test_a_metric_that_some_do_not_have_yet() -> None:
    named = parameters(rows(4))
    tag = pg.Tag(pg.Simplex(1.0, axis=1), metric="optimizer")
    optimizer = ProjectedOptimizer(torch.optim.Adam(named, lr=0.1), {"*": tag})
    assert stacks(optimizer) == [4]
    for _, x in named[1:]:
        x.grad = torch.randn_like(x)
    optimizer.step()
    assert all(pg.Simplex(1.0, axis=1).contains(x) for _, x in named)


def test_groups_of_different_rates_are_not_mixed_in_a_metric() -> None:
    groups = [{"params": [torch.nn.Parameter(x)], "lr": rate} for x in rows(2) for rate in (0.1, 0.01)]
    tag = pg.Tag(pg.Simplex(1.0, axis=1), metric="optimizer")
    for group in groups:
        group["constraint"] = tag
    assert stacks(ProjectedOptimizer(torch.optim.Adam(groups))) == []


class NoLooking(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func), "a value was brought to the host"
        assert "nonzero" not in str(func), "the shape of a result depends on values"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", [pg.MaxNorm(1.0, axis=1), pg.UnitNorm(axis=1), pg.Box(-0.1, 0.1), pg.L1Ball(1.0)])
def test_nothing_waits_where_values_cannot_be_looked_at(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = rows(6)
    named = parameters(values)
    optimizer = kept(named, rule)
    fill(named, values)
    monkeypatch.setattr(TorchNamespace, "can_look", lambda self, x: False)
    with NoLooking():
        optimizer.project()
    monkeypatch.undo()
    for (_, x), value in zip(named, values, strict=True):
        torch.testing.assert_close(x.detach(), project_(value.clone(), rule))


def test_nested_sets_shift_all_their_axes() -> None:
    rule = pg.Slices({(0, 4): pg.UnitNorm(axis=1), (4, 8): None}, along=1)
    found = stacked(rule.bind((3, 8), "none"), 2)
    assert found == pg.Slices({(0, 4): pg.UnitNorm(axis=2), (4, 8): None}, along=2)
    assert stacked(pg.Slices({(0, 4): pg.as_constraint(lambda x: x)}), 2) is None
    both = stacked(pg.MaxNorm(axis=0) & pg.SumTo(0.5, axis=0) & pg.Box(0, 0.5), 2)
    assert both == pg.MaxNorm(axis=1) & pg.SumTo(0.5, axis=1) & pg.Box(0, 0.5)
    assert stacked(pg.SpectralNorm(axis=(0, (1, 2))), 3) == pg.SpectralNorm(axis=(1, (2, 3)))
    assert stacked(pg.Extensive(spatial=(2, 3)), 4).spatial == (3, 4)  # type: ignore[union-attr]


# -- compile=True --------------------------------------------------------------------------------------------------

COMPILED = [
    pg.MaxNorm(1.0, axis=1),
    pg.L1Ball(pg.Schedule({0: 5.0, 5: 1.0}), axis=None, rate=0.7),
    pytest.param(pg.Simplex(1.0, axis=1), marks=pytest.mark.slow),
    pytest.param(pg.NonNeg() & pg.MaxNorm(1.0, axis=0), marks=pytest.mark.slow),
    pytest.param(pg.Tag(pg.UnitNorm(axis=1), every=2, metric="optimizer"), marks=pytest.mark.slow),
]


def compare_compiled(tag: Any) -> None:
    def mixed() -> Any:
        return parameters([*rows(4), rows(1, (12, 20))[0]])

    def wrap(inner: Any, **options: Any) -> ProjectedOptimizer:
        return ProjectedOptimizer(inner, {"*": tag}, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        compiled = trained(mixed(), lambda inner: wrap(inner, compile=True))
    for x, y in zip(compiled, trained(mixed(), wrap), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("tag", COMPILED, ids=repr)
def test_what_is_compiled_gives_the_same(tag: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    original = torch.compile

    def compile_(function: Any, **options: Any) -> Any:
        made.append(function)
        return original(function, backend="eager", **options)  # traced, but without the seconds for a C++ compiler

    monkeypatch.setattr(torch, "compile", compile_)
    compare_compiled(tag)
    assert len(made) == (0 if isinstance(tag, pg.MaxNorm) else 2)  # for the stack and the other one, for all steps


@pytest.mark.slow
@pytest.mark.parametrize("tag", [pg.Simplex(1.0, axis=1), COMPILED[1]], ids=repr)
def test_what_is_compiled_in_full_gives_the_same(tag: Any) -> None:
    compare_compiled(tag)


def test_without_a_compiler_it_is_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: Any, **options: Any) -> Any:
        def call(*given: Any) -> Any:
            raise RuntimeError("no C++ compiler\nof any kind")

        return call

    monkeypatch.setattr(torch, "compile", fail)
    named, twins = parameters(rows(4)), parameters(rows(4))
    rule = {"*": pg.Simplex(1.0, axis=1), "p3": pg.L1Ball(1.0)}
    with pytest.warns(RuntimeWarning, match=r"compile=True: .* no C\+\+ compiler$") as caught:
        found = trained(named, lambda inner: ProjectedOptimizer(inner, rule, compile=True))
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    wanted = trained(twins, lambda inner: ProjectedOptimizer(inner, rule))
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))


def test_copies_compile_too_and_take_no_code_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    optimizer: Any = kept(parameters(rows(3)), pg.Simplex(1.0, axis=1), compile=True)
    optimizer.project()
    assert len(optimizer._find._functions) == 1
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other._find._functions == {}
        other.project()
        assert len(other._find._functions) == 1
    assert optimizer.state_dict().keys() == kept(parameters(rows(3)), pg.Simplex(1.0, axis=1)).state_dict().keys()


@pytest.mark.parametrize("rule", [pg.MaxNorm(0.05, axis=None), pg.UnitNorm(axis=None), pg.Simplex(0.05, axis=None)])
def test_numbers_are_projected_alone(rule: Any) -> None:
    named = parameters(torch.tensor([3.0, 4.0]))
    assert stacks(kept(named, rule)) == []
    assert [x.detach() for _, x in named] == [project_(torch.tensor(v), rule) for v in (3.0, 4.0)]
