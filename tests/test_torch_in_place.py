"""Projecting torch tensors and models without an optimizer, in their memory."""

from __future__ import annotations

import copy
from typing import Any, cast

import numpy as np
import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch import nn

from projgrad.torch import ProjectedOptimizer, project_, project_params, violations
from projgrad_backends.torch import norms as norms_in_place
from tests.torch_network import RULES, network, norms, wrapped

# -- without an optimizer -----------------------------------------------------------------------------------------


def test_params_can_be_projected_and_checked_alone() -> None:
    model = network()
    rules = {"*.weight": pg.MaxNorm(0.5), "1.*": None}
    expected = (norms(model[:1]).max() - 0.5, norms(model[3:]).max() - 0.5)
    found = violations(model, rules)
    assert list(found) == ["0.weight", "3.weight"]
    assert found["0.weight"] == pytest.approx(expected[0].item(), rel=1e-5)
    project_params(model, rules)
    assert max(violations(model, rules).values()) < 1e-6
    state = network().state_dict()
    numeric = {"0.weight": pg.MaxNorm(0.5, axis=1)}
    project_params(state, numeric)
    torch.testing.assert_close(state["0.weight"], model[0].weight.data)
    assert violations(model.named_parameters(), numeric)["0.weight"] < 1e-6
    for wrong in ([model[0].weight], model[0].weight, {"w": 3.0}, []):
        with pytest.raises(TypeError, match="named_parameters"):
            violations(cast(Any, wrong), {})
    for call in (project_params, violations):
        with pytest.raises(ValueError, match="nothing is tagged"):
            call(network())


# -- in place ------------------------------------------------------------------------------------------------------


def test_project_in_place_checks_and_returns_its_tensor() -> None:
    x = torch.tensor([-1.0, 2.0])
    assert project_(x, pg.NonNeg()) is x
    assert x.tolist() == [0, 2]
    assert project_(x, lambda w: w / 2).tolist() == [0, 1]
    for bad, constraint, error in (
        (torch.arange(3), pg.NonNeg(), TypeError),
        (torch.ones(2, dtype=torch.complex64), pg.NonNeg(), TypeError),
        (torch.ones(2), pg.Box([0, 0, 0], 1), ValueError),
        (torch.ones(2), pg.MaxNorm(1.0), ValueError),
        ([1.0], pg.NonNeg(), TypeError),
    ):
        with pytest.raises(error):
            project_(cast(Any, bad), constraint)


def test_a_constraint_that_fails_changes_nothing() -> None:
    model = network()
    before = [p.clone() for p in model.parameters()]
    rules: dict[str, Any] = {"0.weight": pg.MaxNorm(0.1), "3.weight": lambda w: w[:1]}
    for make in (lambda: wrapped(model, rules), lambda: project_params(model, rules)):
        with pytest.raises(ValueError, match="shape"):
            make()
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    optimizer = wrapped(model)
    with pytest.raises(ValueError, match="shape"):
        optimizer.set_rules(rules, model=model)
    assert [e.constraint for e in optimizer.plan] == [pg.MaxNorm(0.5, axis=1)] * 2
    model[0].weight = nn.Parameter(model[0].weight.to(torch.complex64))
    with pytest.raises(TypeError, match="0.weight.*real"):
        wrapped(model, {"*.weight": pg.NonNeg()})


def test_a_group_of_zeros_among_others() -> None:
    for shape, axis in (((40, 30), 1), ((40, 30), 0), ((4, 5, 6), (0, 2))):
        x = torch.randn(shape)
        x.select(0 if axis == 1 else 1, 2).zero_()
        for c in (pg.MaxNorm(1.0, axis=axis), pg.UnitNorm(axis=axis)):
            torch.testing.assert_close(project_(x.clone(), c), c.project(x))


def test_a_shallow_copy_does_not_project_twice() -> None:
    model = network()
    optimizer = ProjectedOptimizer(torch.optim.SGD(model.parameters(), 0.1), RULES, model=model)
    copy.copy(optimizer)
    assert len(optimizer.inner._optimizer_step_post_hooks) == 1


def test_a_layer_may_be_called_module() -> None:
    model = nn.Module()
    model.module, model.weight = nn.Linear(2, 2), nn.Parameter(torch.ones(2))
    assert list(violations(model, {"*weight": pg.NonNeg()})) == ["weight", "module.weight"]


def test_a_box_is_not_spoilt_by_a_tracing_mode() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    box = pg.Box([0.25, 0.5], 1)
    with FakeTensorMode():
        box.project(torch.zeros(2))
    assert box.project(torch.zeros(2)).tolist() == [0.25, 0.5]


# -- quick ways against a plain one ---------------------------------------------------------------------------------

LAYOUTS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "rows": (lambda: torch.randn(64, 48), (1,)),
    "columns": (lambda: torch.randn(64, 48), (0,)),
    "many rows": (lambda: torch.randn(2000, 70), (1,)),
    "long rows": (lambda: torch.randn(150, 1111), (1,)),
    "many columns": (lambda: torch.randn(400, 500), (0,)),
    "one group": (lambda: torch.randn(300, 500), (0, 1)),
    "kernels": (lambda: torch.randn(40, 30, 3, 3), (1, 2, 3)),
    "kernels, units last": (lambda: torch.randn(3, 3, 50, 300), (0, 1, 2)),
    "columns in a stack": (lambda: torch.randn(5, 150, 200), (1,)),
    "transposed rows": (lambda: torch.randn(400, 300).t(), (1,)),
    "transposed columns": (lambda: torch.randn(400, 300).t(), (0,)),
    "rows of a part": (lambda: torch.randn(400, 300)[10:, 20:-1], (1,)),
    "columns of a part": (lambda: torch.randn(400, 300)[10:, 20:-1], (0,)),
    "every other entry": (lambda: torch.randn(150, 500)[:, ::2], (1,)),
    "channels last": (lambda: torch.randn(20, 30, 9, 9).to(memory_format=torch.channels_last), (1, 2, 3)),
    "a vector": (lambda: torch.randn(5000), (0,)),
}
SHELLS: list[tuple[Any, float, float]] = [
    (lambda axis: pg.MaxNorm(2.0, axis=axis), 0.0, 2.0),
    (lambda axis: pg.MaxNorm(2.0, axis=axis, rate=0.25), 0.0, 2.0),
    (lambda axis: pg.L2Ball(2.0, axis=axis), 0.0, 2.0),
    (lambda axis: pg.UnitNorm(axis=axis), 1.0, 1.0),
    (lambda axis: pg.UnitNorm(axis=axis, rate=0.5), 1.0, 1.0),
    (lambda axis: pg.MinMaxNorm(0.5, 2.0, axis=axis), 0.5, 2.0),
    (lambda axis: pg.MinMaxNorm(1.5, float("inf"), axis=axis), 1.5, float("inf")),
]


def with_norms(make: Any, axes: tuple[int, ...], dtype: Any) -> Any:
    """An array as the layout has it in memory, with groups on the bounds of `SHELLS`, within, near and far away."""
    torch.manual_seed(0)
    x = make()
    wide = x.double()
    norms = torch.linalg.vector_norm(wide, dim=axes, keepdim=True)
    some = torch.tensor(np.resize([1.0, 0.7, 2.0, 3.0, 0.1, 1.3, 0.5, 1e4, 1.5, 1e-4], norms.numel()))
    x.copy_(wide / norms * some.reshape(norms.shape))
    return x.to(dtype)


def shell(values: np.ndarray, axes: tuple[int, ...], low: float, high: float, rate: float) -> np.ndarray:
    """The part `rate` of the way to norms between `low` and `high`, in double precision."""
    norms = np.sqrt((values**2).sum(axis=axes, keepdims=True))
    size = values.size // norms.size
    with np.errstate(divide="ignore", invalid="ignore"):
        to = np.where(norms == 0, low / np.sqrt(size), values / norms * np.clip(norms, low, high))
    return (1 - rate) * values + rate * to


OTHERS = [
    (layout, dtype)
    for layout in ("rows", "columns", "long rows", "many columns", "kernels")
    for dtype in ("float64", "bfloat16", "float16")
]


@pytest.mark.parametrize(("layout", "dtype"), [*((layout, "float32") for layout in LAYOUTS), *OTHERS])
def test_groups_are_scaled_in_any_layout(layout: str, dtype: str) -> None:
    make, axes = LAYOUTS[layout]
    x = with_norms(make, axes, getattr(torch, dtype))
    values = x.double().numpy()
    size = int(np.prod([x.shape[d] for d in axes]))
    tolerance = pg.tolerance(dtype, size, 1.0)
    norms = np.sqrt((values**2).sum(axis=axes, keepdims=True))
    for of_axes, low, high in SHELLS:
        c = of_axes(axes)
        start = x.clone(memory_format=torch.preserve_format)
        y = project_(start, c)
        expected = shell(values, axes, low, high, c.rate)
        np.testing.assert_allclose(y.double().numpy(), expected, rtol=2 * tolerance, atol=1e-7, err_msg=str(c))
        inside = torch.from_numpy((norms >= low) & (norms <= high)).expand(x.shape)
        assert torch.equal(y[inside], x[inside])
        if c.rate == 1:
            assert torch.equal(project_(y.clone(), c), y)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_where_few_groups_are_outside_only_these_are_written(share: float, dtype: str) -> None:
    torch.manual_seed(0)
    outside = torch.rand(2000) < share
    values = torch.randn(2000, 150, dtype=torch.float64)
    values /= torch.linalg.vector_norm(values, dim=1, keepdim=True) * torch.where(outside, 0.2, 1.5)[:, None]
    for x, axis in ((values, 1), (values.t().contiguous(), 0), (values.reshape(2000, 3, 50), (1, 2))):
        x = x.to(getattr(torch, dtype))
        axes = (axis,) if isinstance(axis, int) else axis
        y = project_(x.clone(), pg.MaxNorm(1.0, axis=axis))
        expected = shell(x.double().numpy(), axes, 0, 1, 1)
        np.testing.assert_allclose(y.double().numpy(), expected, rtol=2 * pg.tolerance(dtype, 150, 1.0))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("layout", ["rows", "transposed columns", "kernels", "columns", "rows of a part"])
def test_blocks_in_which_all_some_or_none_are_outside(layout: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks get longer where nothing is written, and short again."""
    sizes: list[int] = []
    original = norms_in_place._scale_block_

    def seen(x: Any, *given: Any) -> bool:
        sizes.append(x.numel())
        return original(x, *given)

    monkeypatch.setattr(norms_in_place, "_BLOCK", 200)
    monkeypatch.setattr(norms_in_place, "_PART", 64)
    monkeypatch.setattr(norms_in_place, "_scale_block_", seen)
    make, axes = LAYOUTS[layout]
    torch.manual_seed(0)
    x = make()
    count = x.numel() // int(np.prod([x.shape[d] for d in axes]))
    norms = torch.full((count,), 0.7, dtype=torch.float64)
    norms[0] = norms[count // 3 : count // 2] = 3.0
    norms[2 * count // 3] = 5.0
    norms[3 * count // 4] = float("nan")
    wide = x.double()
    lengths = torch.linalg.vector_norm(wide, dim=axes, keepdim=True)
    x.copy_(wide / lengths * norms.reshape(lengths.shape))
    x = x.to(getattr(torch, dtype))
    values = x.double().numpy()
    inside = torch.from_numpy(np.sqrt((values**2).sum(axis=axes, keepdims=True)) < 1).expand(x.shape)
    for of_axes in (pg.MaxNorm, pg.MinMaxNorm):
        c = of_axes(axis=axes) if of_axes is pg.MinMaxNorm else of_axes(1.0, axis=axes)
        sizes.clear()
        y = project_(x.clone(memory_format=torch.preserve_format), c)
        rtol = 2 * pg.tolerance(dtype, x.numel() // count, 1.0)
        np.testing.assert_allclose(y.double().numpy(), shell(values, axes, 0, 1, 1), rtol=rtol)
        assert torch.equal(y[inside], x[inside])
        assert sum(sizes) == x.numel()
        assert (len(sizes) == 1) == (layout == "columns")
        assert layout == "columns" or max(sizes) > 2 * sizes[0]


@pytest.mark.parametrize("axis", [0, 1])
def test_extreme_groups_among_ordinary_ones(axis: int) -> None:
    x = torch.randn(300, 400).select(0, 0).expand(300, 400).clone()
    x = x if axis == 1 else x.t().contiguous()
    along = x if axis == 1 else x.t()
    for row, factor in enumerate((1e30, 1e18, 1e-18, 1e-30, 0.0)):
        along[row] *= factor
    along[5, 3], along[6, 3] = float("nan"), float("inf")
    for c, low, high in (
        (pg.MaxNorm(2.0, axis=axis), 0.0, 2.0),
        (pg.UnitNorm(axis=axis), 1.0, 1.0),
        (pg.MinMaxNorm(0.5, 2.0, axis=axis), 0.5, 2.0),
        (pg.MaxNorm(1e-25, axis=axis), 0.0, 1e-25),
        (pg.MinMaxNorm(1e-25, 1e25, axis=axis), 1e-25, 1e25),
        (pg.MaxNorm(0.0, axis=axis), 0.0, 0.0),
    ):
        values = x.double().numpy()
        values[~np.isfinite(values)] = np.nan
        expected = shell(values, (axis,), low, high, 1.0)
        y = project_(x.clone(), c).double().numpy()
        np.testing.assert_allclose(y, expected, rtol=2 * pg.tolerance("float32", 400, 1.0), atol=1e-37, err_msg=str(c))


def test_complex_groups_are_scaled() -> None:
    torch.manual_seed(0)
    for dtype, accuracy in ((torch.complex64, 1e-6), (torch.complex128, 1e-14)):
        for axis in (0, 1):
            x = torch.randn(300, 500, dtype=dtype)
            norms = torch.linalg.vector_norm(x, dim=axis, keepdim=True)
            x *= torch.rand_like(norms) * 4 / norms
            pairs = torch.view_as_real(x).double().numpy()
            y = torch.view_as_real(project_(x.clone(), pg.MaxNorm(1.0, axis=axis)))
            np.testing.assert_allclose(y.double().numpy(), shell(pairs, (axis, 2), 0, 1, 1), rtol=accuracy, atol=1e-12)


@pytest.mark.parametrize("shape", [(4400, 2048), (2048, 4400)])
def test_sums_of_many_parts_are_accurate(shape: tuple[int, int]) -> None:
    for axis in (0, 1, None):
        x = torch.full(shape, 0.1234567)
        size = x.numel() if axis is None else shape[axis]
        y = project_(x, pg.UnitNorm(axis=axis))
        assert abs(float(y.double().square().sum()) * size / x.numel() - 1) <= 2 * pg.tolerance("float32", size, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_bounds_that_are_arrays_keep_what_is_inside_bit_for_bit(dtype: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 200)
    x[:, ::7], x[:, 1::7] = 0.0, -0.0
    x[3, 5], x[4, 5], x[5, 5] = float("inf"), -float("inf"), float("nan")
    x = x.to(dtype)
    row, full = np.linspace(-1, 0, 200), np.random.default_rng(0).uniform(-1, 0, (300, 200))
    for lower, upper in (
        (row, 1.0),
        (row, -row),
        (full, -full),
        (np.zeros(200), np.inf),
        (np.zeros((300, 200)), np.inf),
        (-np.inf, np.zeros((300, 1))),
        (0 * full, 0 * full),
    ):
        for y in (x, x[:, 2:]):
            lo, up = (
                b if np.ndim(b) == 0 else np.broadcast_to(b + 0.0, (300, 200))[:, 200 - y.shape[1] :]
                for b in (lower, upper)
            )
            box = pg.Box(lo, up)
            found, wide = project_(y.clone(), box).double().numpy(), y.double().numpy()
            edges = [torch.as_tensor(np.array(b)).to(dtype).double().numpy() for b in (lo, up)]
            expected = np.where(wide < edges[0], edges[0], np.where(wide > edges[1], edges[1], wide))
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


# -- where others go wrong -----------------------------------------------------------------------------------------


def test_rows_of_an_embedding_are_within_their_norm_after_the_step() -> None:
    def largest(layer: nn.Embedding, optimizer: Any) -> float:
        optimizer.zero_grad()
        (-layer(torch.arange(5)).square().sum()).backward()
        optimizer.step()
        return float(torch.linalg.vector_norm(layer.weight.detach(), dim=1).max())

    theirs, ours = nn.Embedding(5, 3, max_norm=1.0), nn.Embedding(5, 3)
    assert largest(theirs, torch.optim.SGD(theirs.parameters(), 1.0)) > 2  # torch renormalises in the forward pass
    sgd = torch.optim.SGD(ours.parameters(), 1.0)
    assert largest(ours, ProjectedOptimizer(sgd, {"weight": pg.MaxNorm(1.0)}, model=ours)) <= 1 + 1e-6


def test_groups_of_a_single_entry() -> None:
    w = nn.Parameter(torch.tensor([[3.0], [-0.5], [0.0], [1.0]]))
    ProjectedOptimizer(torch.optim.SGD([{"params": [w], "constraint": pg.MinMaxNorm(0.6, 2.0, axis=1)}], 0.1))
    torch.testing.assert_close(w.detach().flatten(), torch.tensor([2.0, -0.6, 0.6, 1.0]))
