"""Every optimizer of torch, however it is run: as the bare one with a projection by hand after each step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch import nn, optim
from torch.optim import lr_scheduler as schedulers
from torch.optim import optimizer as hooks
from torch.optim.swa_utils import SWALR

from projgrad.torch import ProjectedOptimizer, violations
from tests import torch_network
from tests.torch_network import RULES, clip, held, loss_of, network

pytestmark = pytest.mark.usefixtures("one_thread")

close = partial(torch_network.close, rtol=1e-7, atol=1e-9)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """So that roundings do not grow, in L-BFGS most of all."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def parameters(model: Any, kind: Any = None) -> list[Any]:
    return [p for p in model.parameters() if p.ndim == 2 or kind is not optim.Muon]


def trained(
    make: Callable[[Any], Any], wrap: bool, step: Callable[[Any], Any] = lambda optimizer: optimizer.step
) -> Any:
    """A model after a few steps, of a wrapped optimizer, or of a bare one and projections by hand."""
    model = network()
    optimizer = make(model)
    if wrap:
        optimizer = ProjectedOptimizer(optimizer, RULES, model=model)
    else:
        clip(model)
    act = step(optimizer)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    for _ in range(5):
        if isinstance(optimizer, optim.LBFGS) or (wrap and isinstance(optimizer.inner, optim.LBFGS)):
            act(closure)
        else:
            closure()
            act()
        if wrap:
            assert held(model)
        else:
            clip(model)
    return model


# -- all of torch.optim -------------------------------------------------------------------------------------------

_EACH: list[dict[str, Any]] = [{}, {"foreach": True}]
_FUSED: list[dict[str, Any]] = [*_EACH, {"fused": True}]
OPTIONS: dict[Any, list[dict[str, Any]]] = {
    optim.ASGD: _EACH,
    optim.Adadelta: [{"lr": 5.0}, {"lr": 5.0, "foreach": True}],
    optim.Adafactor: _EACH,
    optim.Adagrad: _FUSED,
    optim.Adam: [*_FUSED, {"amsgrad": True, "maximize": True}, {"lr": torch.tensor(0.1)}],
    optim.AdamW: _FUSED,
    optim.Adamax: _EACH,
    optim.LBFGS: [{"max_iter": 4}, {"max_iter": 4, "line_search_fn": "strong_wolfe"}],
    optim.Muon: [{}],
    optim.NAdam: _EACH,
    optim.RAdam: _EACH,
    optim.RMSprop: [*_EACH, {"centered": True, "momentum": 0.9}],
    optim.Rprop: _EACH,
    optim.SGD: [*_FUSED, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
}


def test_none_is_forgotten() -> None:
    found = {kind for kind in vars(optim).values() if isinstance(kind, type) and issubclass(kind, optim.Optimizer)}
    assert found - {optim.Optimizer} == {*OPTIONS, optim.SparseAdam}


@pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: kind.__name__)
def test_a_step_is_the_bare_optimizers_and_then_the_projection(kind: Any) -> None:
    for options in OPTIONS[kind]:

        def make(model: Any, options: Any = options) -> Any:
            return kind(parameters(model, kind), **{"lr": 0.1} | options)

        close(trained(make, True), trained(make, False))


@pytest.mark.slow
@pytest.mark.parametrize("options", _FUSED, ids=str)
@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam], ids=lambda kind: kind.__name__)
def test_a_compiled_step(kind: Any, options: dict[str, Any]) -> None:
    def make(model: Any) -> Any:
        return kind(model.parameters(), lr=0.1, **options)

    def compiled(optimizer: Any) -> Any:
        torch._dynamo.reset()
        return torch.compile(optimizer.step, backend="aot_eager")

    close(trained(make, True, compiled), trained(make, False))


@pytest.mark.slow
def test_a_compiled_step_counts() -> None:
    torch._dynamo.reset()
    model, other = network(), network()
    rules = {"*.weight": None, **{f"{n}.weight": pg.MaxNorm(pg.Schedule({0: 0.3, 8: 0.7})).every(2) for n in (0, 3)}}
    found = []
    for each, compile in ((model, True), (other, False)):
        optimizer = ProjectedOptimizer(optim.SGD(each.parameters(), 0.1), rules, model=each)
        step = torch.compile(optimizer.step, backend="aot_eager") if compile else optimizer.step
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(each).backward()
            step()
        found.append(optimizer.state_dict()["projgrad"])
    assert found == [{"step": 5}] * 2
    close(model, other)


@pytest.mark.slow
def test_a_compiled_model() -> None:
    torch._dynamo.reset()
    model, other = network(), network()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = ProjectedOptimizer(optim.Adam(compiled.parameters(), 0.1), RULES, model=compiled)
    bare = optim.Adam(other.parameters(), 0.1)
    clip(other)
    for _ in range(5):
        for each, computed in ((optimizer, compiled), (bare, other)):
            each.zero_grad()
            loss_of(computed).backward()
            each.step()
        clip(other)
    assert held(model)
    close(model, other)
    assert max(violations(compiled, RULES).values()) < 1e-6


# -- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [optim.SparseAdam, optim.SGD, optim.Adagrad], ids=lambda kind: kind.__name__)
def test_sparse_gradients(kind: Any) -> None:
    found = []
    for wrap in (True, False):
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Embedding(9, 4, sparse=True))
        optimizer = kind(model.parameters(), lr=0.5)
        if wrap:
            optimizer = ProjectedOptimizer(optimizer, {"0.weight": pg.MaxNorm(0.5)}, model=model)
        else:
            clip(model)
        for n in range(4):
            optimizer.zero_grad()
            (-model(torch.tensor([n, 3, 3])).square().sum()).backward()
            assert model[0].weight.grad.is_sparse
            optimizer.step()
            if not wrap:
                clip(model)
        found.append(model)
    close(*found)


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_are_accumulated_between_steps(to_none: bool) -> None:
    model, other = network(), network()
    counted = {key: {"weight": pg.MaxNorm(0.5).every(2)} for key in RULES}
    optimizer = ProjectedOptimizer(optim.Adam(model.parameters(), 0.1), counted, model=model)
    bare = optim.Adam(other.parameters(), 0.1)
    clip(other)
    for n in range(15):
        for each, computed in ((optimizer, model), (bare, other)):
            (loss_of(computed) / 3).backward()
            if n % 3 == 2:
                each.step()
                each.zero_grad(set_to_none=to_none)
                assert (computed[0].weight.grad is None) == to_none
        if n % 6 == 5:  # every second step
            clip(other)
    close(model, other)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_steps_that_the_gradient_scaler_skips_do_not_count(fused: bool, unscale: bool) -> None:
    model, other = network(), network()
    rules = {key: {"weight": pg.MaxNorm(pg.Schedule({0: 0.3, 4: 0.7})).every(2)} for key in RULES}
    optimizer = ProjectedOptimizer(optim.Adam(model.parameters(), 0.1, fused=fused), rules, model=model)
    bare = optim.Adam(other.parameters(), 0.1, fused=fused)
    clip(other, 0.3)
    made = 0
    scalers = [torch.amp.GradScaler("cpu", init_scale=64.0) for _ in range(2)]
    for n in range(7):
        bad = n in (1, 4)
        for each, computed, scaler in ((optimizer, model, scalers[0]), (bare, other, scalers[1])):
            each.zero_grad()
            scaler.scale(loss_of(computed)).backward()
            if bad:
                computed[0].weight.grad[0, 0] = torch.inf
            if unscale:
                scaler.unscale_(each)
                nn.utils.clip_grad_norm_(computed.parameters(), 1.0)
            scaler.step(each)
            scaler.update()
        made += not bad
        if not bad and made % 2 == 0:
            clip(other, {2: 0.5, 4: 0.7}[made])
        assert optimizer.state_dict()["projgrad"] == {"step": made}
        close(model, other)


# -- groups, hooks, learning rates --------------------------------------------------------------------------------


def test_several_groups_and_those_added_later() -> None:
    model, other = network(), network()

    def groups(model: Any) -> list[dict[str, Any]]:
        return [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters(), "lr": 0.01}]

    optimizer = ProjectedOptimizer(optim.AdamW(groups(model)), RULES, model=model, partial=True)
    bare = optim.AdamW(groups(other))
    clip(other[:1])
    for n in range(6):
        if n == 2:  # the last layer was neither trained nor constrained before
            assert not held(model)
            for each, computed in ((optimizer, model), (bare, other)):
                each.add_param_group({"params": computed[3].parameters(), "lr": 0.3, "weight_decay": 0.0})
            assert held(model)
            clip(other)
        for each, computed in ((optimizer, model), (bare, other)):
            computed.zero_grad()
            loss_of(computed).backward()
            each.step()
        clip(other if n >= 2 else other[:1])
    close(model, other)


def test_every_hook_fires_once_for_each_step() -> None:
    model = network()
    optimizer = ProjectedOptimizer(optim.SGD(model.parameters(), 5.0), RULES, model=model)
    seen: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: seen.append(name if held(model) else f"{name}, outside")

    handles = [
        hooks.register_optimizer_step_pre_hook(note("all before")),
        hooks.register_optimizer_step_post_hook(note("all after")),
    ]
    optimizer.register_step_pre_hook(note("before"))
    optimizer.inner.register_step_post_hook(note("after"))
    optimizer.register_state_dict_pre_hook(note("before saving"))
    optimizer.register_state_dict_post_hook(note("after saving"))
    optimizer.register_load_state_dict_pre_hook(note("before loading"))
    optimizer.register_load_state_dict_post_hook(note("after loading"))
    once = ["all before", "before", "after", "all after"]
    try:
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        assert sorted(seen) == sorted(once * 2)
        seen.clear()
        optimizer.step(lambda: loss_of(model))
        assert sorted(seen) == sorted(once)
        seen.clear()
        optimizer.load_state_dict(optimizer.state_dict())
        assert seen == ["before saving", "after saving", "before loading", "after loading"]
    finally:
        for handle in handles:
            handle.remove()


SCHEDULERS: dict[Any, Callable[[Any], Any]] = {
    schedulers.ChainedScheduler: lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o), schedulers.ExponentialLR(o, 0.9)], o
    ),
    schedulers.ConstantLR: schedulers.ConstantLR,
    schedulers.CosineAnnealingLR: lambda o: schedulers.CosineAnnealingLR(o, 5),
    schedulers.CosineAnnealingWarmRestarts: lambda o: schedulers.CosineAnnealingWarmRestarts(o, 2),
    schedulers.CyclicLR: lambda o: schedulers.CyclicLR(o, 0.01, 0.2, step_size_up=2),
    schedulers.ExponentialLR: lambda o: schedulers.ExponentialLR(o, 0.9),
    schedulers.LambdaLR: lambda o: schedulers.LambdaLR(o, lambda epoch: 0.9**epoch),
    schedulers.LinearLR: schedulers.LinearLR,
    schedulers.MultiStepLR: lambda o: schedulers.MultiStepLR(o, [2, 3]),
    schedulers.MultiplicativeLR: lambda o: schedulers.MultiplicativeLR(o, lambda epoch: 0.9),
    schedulers.OneCycleLR: lambda o: schedulers.OneCycleLR(o, 0.3, total_steps=10),
    schedulers.PolynomialLR: schedulers.PolynomialLR,
    schedulers.ReduceLROnPlateau: lambda o: schedulers.ReduceLROnPlateau(o, patience=0, threshold=10.0),
    schedulers.SequentialLR: lambda o: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o), schedulers.ExponentialLR(o, 0.9)], [2]
    ),
    schedulers.StepLR: lambda o: schedulers.StepLR(o, 2, 0.5),
    SWALR: lambda o: SWALR(o, 0.05, anneal_epochs=3),
}


def test_no_scheduler_is_forgotten() -> None:
    base = schedulers.LRScheduler
    found = {kind for kind in vars(schedulers).values() if isinstance(kind, type) and issubclass(kind, base)}
    assert {kind for kind in found if not kind.__name__.startswith("_")} - {base} == {*SCHEDULERS} - {SWALR}


@pytest.mark.parametrize("kind", SCHEDULERS, ids=lambda kind: kind.__name__)
def test_schedulers_made_before_and_after_wrapping(kind: Any) -> None:
    found = []
    for order in ("bare", "scheduler, wrap", "wrap, scheduler"):
        model = network()
        optimizer: Any = optim.SGD(model.parameters(), 0.4, momentum=0.9)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".*SequentialLR|.*epoch parameter", category=UserWarning)
            if order != "wrap, scheduler":
                scheduler = SCHEDULERS[kind](optimizer)
            if order == "bare":
                clip(model)
            else:
                optimizer = ProjectedOptimizer(optimizer, RULES, model=model)
            if order == "wrap, scheduler":
                scheduler = SCHEDULERS[kind](optimizer)
            rates = []
            for _ in range(6):
                optimizer.zero_grad()
                loss = loss_of(model)
                loss.backward()
                optimizer.step()
                if order == "bare":
                    clip(model)
                scheduler.step(*([loss.item()] if kind is schedulers.ReduceLROnPlateau else []))
                rates.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        found.append((model, rates, scheduler.state_dict().keys()))
    for model, rates, keys in found[1:]:
        assert held(model)
        close(model, found[0][0])
        assert rates == found[0][1]
        assert keys == found[0][2]
    assert len({rate for rate, _ in found[0][1]}) > 1
