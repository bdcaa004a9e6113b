"""Reports of torch models and optimizers, what is recorded for them, and weights that are not finite."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch import nn

from projgrad.torch import SPG, ProjectedOptimizer, constrain, report
from tests.torch_network import loss_of, network, train

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
BALL: dict[str, Any] = {"*.weight": pg.MaxNorm(0.5, axis=-1)}


def adam(model: Any) -> Any:
    return torch.optim.Adam(model.parameters(), lr=0.1, eps=1e-6)  # which float16 has, too


def test_the_rows_are_those_of_the_model_in_its_order() -> None:
    model = network()
    rules: dict[str, Any] = {"3.*": pg.Joint(pg.MaxNorm(0.5)), "0.bias": pg.NonNeg()}
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.0, -1.0, 2.0, 3.0, 0.0, 1.0, 1.0, 1.0]))
    rows = report(model, rules)
    assert [row.name for row in rows] == [*NAMES[:4], "3.weight + 3.bias"]
    assert [row.constraint is None for row in rows] == [True, False, True, True, False]
    assert (rows[1].on_boundary, rows[1].violation) == (3 / 8, 1.0)
    assert rows[0].norms[0] == pytest.approx(float(model[0].weight.detach().norm()))
    assert rows == report(model.state_dict(), {**rules, "3.*": pg.Joint(pg.MaxNorm(0.5, axis=1))})
    reversed_groups = [{"params": [p]} for p in reversed(list(model.parameters()))]
    wrapped = ProjectedOptimizer(torch.optim.SGD(reversed_groups, lr=0.1), rules, model=model)
    assert [row.name for row in wrapped.report()] == [row.name for row in rows]
    assert wrapped.report() == report(model, rules)


def test_tags_names_of_groups_and_no_names_at_all() -> None:
    model = network()
    assert all(row.constraint is None for row in report(model))
    constrain(model[0], weight=pg.UnitNorm())
    assert [row.constraint for row in report(model)][:2] == ["UnitNorm(axis=1)", None]
    optimizer = ProjectedOptimizer(torch.optim.SGD(list(model.named_parameters())[:2], lr=0.1), BALL)
    assert [row.name for row in optimizer.report()] == NAMES[:2]
    groups = [{"params": [model[0].weight], "constraint": pg.NonNeg()}, {"params": [model[0].bias]}]
    optimizer = ProjectedOptimizer(torch.optim.SGD(groups, lr=0.1))
    optimizer.add_param_group({"params": [model[3].weight, model[3].bias]})
    assert [row.name for row in optimizer.report()] == [f"param_groups[{g}][{i}]" for g, i in ("00", "10", "20", "21")]
    model = network()
    spg = SPG(model.parameters(), BALL, model=model)
    assert [row.name for row in spg.report()] == NAMES


def test_a_schedule_and_frozen_lazy_or_half_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 2).half().requires_grad_(False), nn.LazyLinear(2))
    rows = report(model, {"0.weight": pg.MaxNorm(pg.Schedule({0: 10.0, 5: 0.0}), axis=1)}, step=1)
    assert [row.name for row in rows] == ["0.weight", "0.bias"]
    assert rows[0].on_boundary == 0.0
    model = network()
    optimizer = ProjectedOptimizer(adam(model), {"0.weight": pg.MaxNorm(pg.Schedule({0: 10.0, 5: 0.1}))}, model=model)
    train(optimizer, model)
    assert optimizer.report()[0].on_boundary == 1.0


PATHS: dict[str, tuple[Any, dict[str, Any]]] = {
    "in place": ({"*.weight": pg.MaxNorm(0.5, axis=-1), "*.bias": pg.NonNeg()}, {}),
    "a new array": ({"*.weight": pg.Simplex(axis=-1), "3.bias": pg.Box([-0.1, -0.2], [0.0, 0.1])}, {}),
    "in a metric": ({"0.weight": pg.Simplex(axis=1), "3.weight": pg.UnitNorm(axis=1)}, {"metric": "optimizer"}),
    "joint": ({"3.*": pg.Joint(pg.MaxNorm(0.5))}, {}),
    "slices": ({"0.weight": pg.Slices([pg.UnitNorm(axis=1), None])}, {}),
    "relaxed": ({"0.weight": pg.MaxNorm(0.5, axis=1, rate=0.5), "0.bias": pg.NonNeg(rate=0.5)}, {}),
    "counted": ({"0.weight": pg.MaxNorm(pg.Schedule({0: 1.0, 5: 0.1}), axis=1), "3.*": pg.NonNeg().every(3)}, {}),
    "float16": ({"*.weight": pg.MaxNorm(0.5, axis=-1), "3.bias": pg.Box([-0.1, -0.2], [0.0, 0.1])}, {}),
    "bfloat16": ({"*.weight": pg.MaxNorm(0.5, axis=-1), "*.bias": pg.NonNeg()}, {}),
}


@pytest.fixture
def numbers(path: str) -> Iterator[float]:
    """Those of the path by default, float32 where it names none; given is the relative error that counts as none."""
    torch.set_default_dtype(getattr(torch, path, torch.float32))
    yield 1e-4 if path not in ("float16", "bfloat16") else 2 * float(torch.finfo(torch.get_default_dtype()).eps)
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("path", PATHS)
def test_what_is_recorded_is_what_the_projection_did(path: str, numbers: float) -> None:
    rules, options = PATHS[path]
    model = network()
    optimizer = ProjectedOptimizer(adam(model), rules, model=model, record=True, **options)
    assert all(row.before is None for row in optimizer.report())
    names, seen = dict(model.named_parameters()), dict[str, tuple[float, float]]()
    for step in range(1, 6):
        other = copy.deepcopy(model)
        bare = adam(other)
        bare.load_state_dict(copy.deepcopy(optimizer.inner.state_dict()))
        train(bare, other, 1)
        train(optimizer, model, 1)
        far = dict(other.named_parameters())
        for entry in optimizer.plan:
            if step % entry.tag.every == 0:
                arrays, now = ([each[name].detach().double().numpy() for name in entry.names] for each in (far, names))
                away = [np.linalg.norm(x - y) for x, y in zip(arrays, now, strict=True)]
                seen[entry.name] = (float(np.max(entry.violation(arrays, step))), float(np.linalg.norm(away)))
        for row in optimizer.report():
            if row.name in seen:
                assert (row.before, row.moved) == pytest.approx(seen[row.name], rel=numbers, abs=1e-6)
            else:
                assert row.before is row.moved is None
    assert max(before for before, _ in seen.values()) > 1e-3


def test_a_projection_may_move_half_numbers_farther_than_the_largest_of_them() -> None:
    x = nn.Parameter(torch.zeros(9, dtype=torch.float16))
    optimizer = ProjectedOptimizer(torch.optim.SGD([("x", x)], lr=1.0), {"x": pg.MaxNorm(0.0, axis=0)}, record=True)
    x.grad = torch.full_like(x, 3e4)
    optimizer.step()
    assert (optimizer.report()[0].before, optimizer.report()[0].moved) == pytest.approx((9e4, 9e4), rel=1e-3)


def test_recording_changes_nothing_else() -> None:
    models = network(), network()
    optimizers = [
        ProjectedOptimizer(adam(m), BALL, model=m, record=r) for m, r in zip(models, (False, True), strict=True)
    ]
    for optimizer, model in zip(optimizers, models, strict=True):
        train(optimizer, model)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(p, q)
    assert all(row.before is None and row.moved is None for row in optimizers[0].report())


def test_it_goes_on_in_a_copy_and_with_other_rules_and_groups() -> None:
    model = network()
    first = ProjectedOptimizer(adam(model), BALL, model=model, record=True, nonfinite="raise")
    train(first, model)
    for other in (copy.deepcopy((first, model)), pickle.loads(pickle.dumps((first, model)))):
        assert [row.name for row in other[0].report()] == NAMES
        assert all(row.before is None for row in other[0].report())
        train(*other)
        assert other[0].report()[0].before is not None
        with torch.no_grad():
            other[1][0].bias[0] = np.nan
        with pytest.raises(RuntimeError, match=r"after a step: .*0\.bias"):
            train(*other)
    first.set_rules({"0.bias": pg.NonNeg()}, model=model)
    assert all(row.before is None for row in first.report())
    train(first, model, 1)
    first.set_rules({"0.bias": pg.Simplex()}, model=model)  # under the same name
    assert all(row.before is None for row in first.report())
    first.add_param_group({"params": [nn.Parameter(torch.ones(3))], "constraint": pg.NonPos()})
    train(first, model, 1)
    rows = {row.name: row for row in first.report()}
    assert {name: row.before is not None for name, row in rows.items()} == {
        **dict.fromkeys(NAMES, False),
        "0.bias": True,
        "param_groups[1][0]": True,
    }


def test_a_compiled_step_records_too() -> None:
    models = network(), network()
    rules = {"*.weight": pg.MaxNorm(0.5, axis=-1), "0.bias": pg.Simplex()}
    optimizers = [ProjectedOptimizer(adam(model), rules, model=model, record=True) for model in models]
    step = torch.compile(optimizers[1].step, backend="eager")
    for _ in range(3):
        train(optimizers[0], models[0], 1)
        optimizers[1].zero_grad()
        loss_of(models[1]).backward()
        step()
        expected = optimizers[0].report().scalars()
        assert optimizers[1].report().scalars() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert expected["3.weight/before"] > 1e-3


# -- not finite ---------------------------------------------------------------------------------------------------


def spoil(model: Any, *names: str) -> None:
    for name, p in model.named_parameters():
        p.grad = torch.full_like(p, np.inf if name in names else 0.0)


@pytest.mark.parametrize("counted", [False, True])
def test_parameters_that_are_not_finite_are_named_or_an_error(counted: bool) -> None:
    rules = {"*.weight": pg.MaxNorm(0.5, axis=-1).every(2 if counted else 1)}
    for nonfinite, kind in (("warn", RuntimeWarning), ("raise", RuntimeError)):
        model = network()
        with torch.no_grad():
            model[1].weight.fill_(3e38)  # of which the sum is not finite, but each is
        optimizer = ProjectedOptimizer(adam(model), rules | {"1.*": None}, model=model, nonfinite=nonfinite)
        spoil(model)
        optimizer.step()
        spoil(model, "0.weight", "3.bias")
        caught: Any = pytest.warns(kind) if nonfinite == "warn" else pytest.raises(kind)
        with caught as found:
            optimizer.step()
        text = str(found[0].message if nonfinite == "warn" else found.value)
        assert text == "NaN or infinite after a step: 0.weight, 3.bias"
        assert [row.name for row in optimizer.report() if not row.finite] == ["0.weight", "3.bias"]
        assert str(optimizer.report()).count("NOT FINITE") == 2
    with pytest.raises(ValueError, match="nonfinite='error' is none of None, 'warn' and 'raise'"):
        ProjectedOptimizer(adam(model), rules, model=model, nonfinite="error")


def test_lazy_and_frozen_parameters_may_stand_beside_those_that_are_looked_at() -> None:
    model = nn.Sequential(*network(), nn.LazyLinear(1))
    model.frozen = nn.Parameter(torch.ones(3).to(torch.float8_e4m3fn), requires_grad=False)
    rules = {"0.weight": pg.MaxNorm(0.5, axis=-1)}
    optimizer = ProjectedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), rules, model=model, nonfinite="raise")
    optimizer.zero_grad()
    loss_of(model[:-1]).backward()
    optimizer.step()
    assert [row.name for row in optimizer.report()] == ["frozen", *NAMES]
    model.frozen.data = torch.full((3,), np.nan).to(torch.float8_e4m3fn)
    with pytest.raises(RuntimeError, match="after a step: frozen$"):
        optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_none(fused: bool) -> None:
    model = network()
    inner = torch.optim.Adam(model.parameters(), lr=0.1, fused=fused)
    optimizer = ProjectedOptimizer(inner, BALL, model=model, record=True, nonfinite="raise")
    scaler = torch.amp.GradScaler("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for bad in (True, False):
            scaler.scale(loss_of(model)).backward()
            if bad:
                model[0].weight.grad[0, 0] = np.inf
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert (optimizer.report()[0].before is None) == bad
    assert all(row.finite for row in optimizer.report())


def test_the_numbers_reach_tensorboard_through_the_writer_of_torch(tmp_path: Any) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from torch.utils.tensorboard import SummaryWriter

    model = network()
    found = report(model, BALL)
    with SummaryWriter(tmp_path) as writer:
        for name, value in found.scalars().items():
            writer.add_scalar(name, value, 7)
    read = events.EventAccumulator(str(tmp_path)).Reload()
    ((step, norm),) = [(event.step, event.value) for event in read.Scalars("0.weight/norm_max")]
    assert step == 7
    assert norm == pytest.approx(float(model[0].weight.detach().norm(dim=1).max()))
    assert set(read.Tags()["scalars"]) == set(found.scalars())
