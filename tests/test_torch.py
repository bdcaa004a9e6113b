"""The PyTorch wrapper: projected after every step, and an optimizer in every other respect."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch import nn

from projgrad.torch import ProjectedOptimizer, project_, project_params
from projgrad_backends.torch import inplace
from projgrad_backends.torch import optimizer as wrapper
from tests.torch_network import RULES, held, loss_of, network, norms, train, wrapped

# -- projecting ---------------------------------------------------------------------------------------------------


def test_parameters_are_projected_when_wrapped_and_after_every_step() -> None:
    model = network()
    assert not held(model)
    optimizer = wrapped(model)
    assert held(model)
    before = [p.clone() for p in model.parameters()]
    for _ in range(5):
        train(optimizer, model, 1)
        assert held(model)
    assert norms(model).max() > 0.499  # the constraint binds
    assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_step_is_the_wrapped_optimizers_step_and_then_the_projection() -> None:
    model, twin = network(), network()
    optimizer = wrapped(model)
    project_params(twin, RULES)
    bare = torch.optim.Adam(twin.parameters(), lr=0.1)
    for _ in range(5):
        train(optimizer, model, 1)
        train(bare, twin, 1)
        for layer in (twin[0], twin[3]):
            layer.weight.data = pg.MaxNorm(0.5, axis=1)(layer.weight.data)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q)


def test_parameters_stay_the_same_objects_without_gradient_history() -> None:
    model = network()
    pointers = [p.data_ptr() for p in model.parameters()]
    train(wrapped(model), model)
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(p.is_leaf and p.requires_grad and p.grad_fn is None for p in model.parameters())


def test_a_closure_is_projected_once_after_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = ProjectedOptimizer(torch.optim.LBFGS(model.parameters(), max_iter=5), RULES, model=model)
    calls: list[int] = []
    projections: list[None] = []
    project = inplace.project_each
    monkeypatch.setattr(wrapper, "project_each", lambda *given: projections.append(project(*given)))

    def closure() -> Any:
        calls.append(1)
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    assert isinstance(optimizer.step(closure), torch.Tensor)
    assert len(calls) > 1
    assert len(projections) == 1
    assert held(model)


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, 0.1, fused=True)]
)
def test_other_optimizers(make: Any) -> None:
    model = network()
    optimizer = ProjectedOptimizer(make(model.parameters()), RULES, model=model)
    train(optimizer, model)
    assert held(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: Any) -> None:
    model = network().to(dtype)
    wrapped(model)
    for layer in (model[0], model[3]):
        assert layer.weight.dtype == dtype
        assert pg.MaxNorm(0.5, axis=1).contains(layer.weight)


def test_arrays_of_many_parts_are_projected_like_small_ones() -> None:
    big = torch.randn(700, 600)
    assert big.numel() > 2**18
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = big.to(dtype)
        for axis in (0, 1, None):
            for c in (pg.UnitNorm(axis=axis), pg.MaxNorm(20.0, axis=axis), pg.Box(torch.zeros(700, 1), 0.5, rate=0.5)):
                y = x.clone()
                project_(y, c)
                torch.testing.assert_close(y, c.project(x))
    strided = big.t()[::2]
    expected = pg.UnitNorm(axis=0).project(strided)
    project_(strided, pg.UnitNorm(axis=0))
    torch.testing.assert_close(strided, expected)


# -- an optimizer like any other ----------------------------------------------------------------------------------


def test_it_is_an_optimizer_with_the_state_of_the_wrapped_one() -> None:
    model = network()
    optimizer = wrapped(model)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert isinstance(optimizer.inner, torch.optim.Adam)
    assert optimizer.param_groups is optimizer.inner.param_groups
    assert optimizer.state is optimizer.inner.state
    assert optimizer.defaults is optimizer.inner.defaults
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizer.inner.param_groups[0]["lr"] == 0.5
    assert "MaxNorm" in repr(optimizer)


@pytest.mark.parametrize("before", [True, False])
def test_learning_rate_schedulers(before: bool) -> None:
    model = network()
    inner = torch.optim.SGD(model.parameters(), 0.4, momentum=0.9)
    first = torch.optim.lr_scheduler.StepLR(inner, 1, 0.5) if before else None
    optimizer = ProjectedOptimizer(inner, RULES, model=model)
    scheduler = first or torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            train(optimizer, model, 1)
            scheduler.step()
            assert held(model)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(scheduler.get_last_lr()[0]) != 0.4


def test_checkpoints_interchange_with_the_bare_optimizer() -> None:
    model = network()
    optimizer = wrapped(model)
    train(optimizer, model, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(optimizer, model, 3)

    def resumed(wrap: bool) -> nn.Module:
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        again = network()
        again.load_state_dict(saved["model"])
        inner = torch.optim.Adam(again.parameters(), lr=0.1)
        resuming = ProjectedOptimizer(inner, RULES, model=again) if wrap else inner
        resuming.load_state_dict(state_dict=saved["optimizer"])
        train(resuming, again, 3)
        return again

    for p, q in zip(model.parameters(), resumed(True).parameters(), strict=True):
        assert torch.equal(p, q)
    assert not held(resumed(False))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_stay_constrained(duplicate: Any) -> None:
    model = network()
    optimizer = wrapped(model)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    train(optimizer, model)
    other, twin = duplicate((optimizer, model))
    assert other.plan == optimizer.plan
    train(other, twin)
    assert held(twin)
    train(optimizer, model)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_hooks_fire_once_and_see_projected_weights() -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    model = network()
    inner = torch.optim.SGD(model.parameters(), 5.0)
    seen: dict[str, list[bool]] = {"inner": [], "wrapper": [], "all": [], "pre": []}
    inner.register_step_post_hook(lambda *_: seen["inner"].append(held(model)))
    optimizer = ProjectedOptimizer(inner, RULES, model=model)
    optimizer.register_step_post_hook(lambda *_: seen["wrapper"].append(held(model)))
    optimizer.register_step_pre_hook(lambda *_: seen["pre"].append(True))
    everywhere = register_optimizer_step_post_hook(lambda *_: seen["all"].append(held(model)))
    try:
        train(optimizer, model, 2)
    finally:
        everywhere.remove()
    assert seen == {name: [True, True] for name in seen}


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_skipped_by_the_gradient_scaler(fused: bool) -> None:
    model = network()
    optimizer = ProjectedOptimizer(torch.optim.Adam(model.parameters(), 0.1, fused=fused), RULES, model=model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for bad in (False, True, False):
        optimizer.zero_grad()
        before = [p.clone() for p in model.parameters()]
        scaler.scale(loss_of(model)).backward()
        if bad:
            model[0].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        assert held(model)
        assert all(torch.isfinite(p).all() for p in model.parameters())
        unchanged = all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        assert unchanged == bad
