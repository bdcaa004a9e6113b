"""Ways to train with torch in which there is more than one optimizer, one set of weights, or one gradient a step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch import nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from projgrad.torch import ProjectedOptimizer, audit, constrain, project_params, violations
from tests.torch_network import RULES, clip, close, held, loss_of, network, train, wrapped

pytestmark = pytest.mark.usefixtures("one_thread")


def by_hand(make: Callable[[Any], Any], steps: int = 4) -> Any:
    """A model that was trained by a bare optimizer, with a projection by hand after each step."""
    model = network()
    optimizer = make(model.parameters())
    clip(model)
    for _ in range(steps):
        train(optimizer, model, 1)
        clip(model)
    return model


# -- several optimizers -------------------------------------------------------------------------------------------


def test_an_optimizer_for_each_parameter_that_steps_in_the_backward_pass() -> None:
    model = network()
    optimizers = {
        p: ProjectedOptimizer(optim.SGD([p], 0.5), RULES, model=model, partial=True) for p in model.parameters()
    }

    def step(p: Any) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    for _ in range(4):
        loss_of(model).backward()
        assert held(model)
    close(model, by_hand(lambda p: optim.SGD(p, 0.5)))


def test_muon_for_matrices_and_adamw_for_the_rest() -> None:
    rules = {**RULES, "*.bias": pg.NonNeg()}

    def parts(model: Any) -> list[Any]:
        matrices = [p for p in model.parameters() if p.ndim == 2]
        return [
            optim.Muon(matrices, lr=0.1),
            optim.AdamW([p for p in model.parameters() if p.ndim != 2], lr=0.1),
        ]

    def clip_all(model: Any) -> None:
        clip(model)
        for layer in model:
            if hasattr(layer, "bias"):
                layer.bias.data.clamp_(min=0)

    model, other = network(), network()
    both = [ProjectedOptimizer(each, rules, model=model, partial=True) for each in parts(model)]
    bare = parts(other)
    clip_all(other)
    for _ in range(4):
        model.zero_grad()
        other.zero_grad()
        loss_of(model).backward()
        loss_of(other).backward()
        for each in (*both, *bare):
            each.step()
        clip_all(other)
        assert max(violations(model, rules).values()) < 1e-6
    close(model, other)
    assert sorted(len(each.plan) for each in both) == [2, 3]


class Sam(optim.Optimizer):
    """Steps by the gradient at the worst point near the weights, with another optimizer, in two halves."""

    def __init__(self, parameters: Any, base: Any, **options: Any) -> None:
        super().__init__(parameters, options)
        self.base_optimizer = base(self.param_groups, **options)

    def _each(self) -> Any:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def first_step(self) -> None:
        norm = torch.stack([p.grad.norm() for p in self._each()]).norm()
        for p in self._each():
            self.state[p]["old"] = p.clone()
            p.add_(p.grad * 0.05 / norm)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self._each():
            p.copy_(self.state[p]["old"])
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.first_step()
        torch.enable_grad()(closure)()
        self.second_step()


@pytest.mark.parametrize("way", ["closure", "inside"])
def test_a_step_in_two_halves(way: str) -> None:
    model, other = network(), network()
    made = Sam(model.parameters(), optim.SGD, lr=0.5)
    bare = Sam(other.parameters(), optim.SGD, lr=0.5)
    optimizer: Any = made
    if way == "closure":
        optimizer = ProjectedOptimizer(made, RULES, model=model)
    else:
        made.base_optimizer = ProjectedOptimizer(made.base_optimizer, RULES, model=model)
    clip(other)
    for _ in range(4):
        for each, computed in ((optimizer, model), (bare, other)):
            each.zero_grad()
            loss_of(computed).backward()
            if way == "closure":
                each.step(lambda computed=computed: loss_of(computed).backward())
            else:
                each.first_step()
                loss_of(computed).backward()
                each.second_step()
        clip(other)
        assert held(model)
    close(model, other)


def test_half_a_step_of_a_wrapped_one_is_an_error() -> None:
    model = network()
    optimizer = ProjectedOptimizer(Sam(model.parameters(), optim.SGD, lr=0.5), RULES, model=model)
    with pytest.raises(AttributeError, match=r"first_step.*wrapped Sam has it.*step\(closure\).*\.base_optimizer"):
        optimizer.first_step()


# -- several copies of the weights --------------------------------------------------------------------------------


def test_master_weights_in_float32() -> None:
    model = network().bfloat16()
    masters = {name: p.detach().float().requires_grad_() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"0.weight, 3.weight: constrained, but not held by this optimizer"):
        ProjectedOptimizer(optim.Adam(masters.values(), 0.1), RULES, model=model)
    rules = {"0.weight": pg.MaxNorm(0.5, axis=1), "3.weight": pg.UnitNorm(axis=1)}
    optimizer = ProjectedOptimizer(optim.Adam(masters.items(), 0.1), rules)
    for _ in range(4):
        model.zero_grad()
        x = torch.linspace(-1, 1, 24).reshape(6, 4).bfloat16()
        (model(x) - 3).square().mean().backward()
        for name, p in model.named_parameters():
            masters[name].grad = p.grad.float()
        optimizer.step()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(masters[name])
        assert max(violations(masters, rules).values()) < 1e-6
    assert 1e-4 < max(violations(model, rules).values()) < 1e-2  # what rounding makes of it: constrain these as well
    project_params(model, rules)
    audit(model, rules)


def test_tied_weights_are_projected_once_a_step() -> None:
    found = []
    for wrap in (True, False):
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
        model[1].weight = model[0].weight
        optimizer: Any = optim.SGD(model.parameters(), 0.5)
        if wrap:  # relaxed, so that twice would be another point
            optimizer = ProjectedOptimizer(optimizer, {"*.weight": pg.MaxNorm(0.5, axis=1, rate=0.5)}, model=model)
        for n in range(4):
            if not wrap:
                whole = model[0].weight.data.clone()
                clip(model)
                model[0].weight.data.add_(whole).div_(2)
            if n < 3:
                optimizer.zero_grad()
                model(torch.arange(6)).square().mean().neg().backward()
                optimizer.step()
        assert model[1].weight is model[0].weight
        found.append(model)
    close(*found)


# -- averages -----------------------------------------------------------------------------------------------------

AVERAGES: dict[str, Any] = {"SWA": {}, "EMA": {"multi_avg_fn": get_ema_multi_avg_fn(0.8)}}


def averaged(rules: Any, **options: Any) -> Any:
    model = network()
    optimizer = ProjectedOptimizer(optim.SGD(model.parameters(), 0.3), rules, model=model)
    average = AveragedModel(model, **options)
    for _ in range(8):
        train(optimizer, model, 1)
        average.update_parameters(model)
    return average


@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("constraint", [pg.MaxNorm(0.5), pg.Simplex(), pg.Box(-0.2, 0.1), pg.SpectralNorm(0.5)])
def test_averages_of_points_of_a_convex_set_are_inside(constraint: Any, kind: str) -> None:
    rules = {"*.weight": constraint, "1.weight": None}
    average = averaged(rules, **AVERAGES[kind])
    audit(average, rules)


@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize(
    "constraint",
    [pg.UnitNorm(), pg.Orthogonal(), pg.MaxNorm(pg.Schedule({0: 1.0, 8: 0.3}))],
    ids=["UnitNorm", "Orthogonal", "a bound that shrinks"],
)
def test_other_averages_are_outside_which_audit_says_and_project_params_mends(constraint: Any, kind: str) -> None:
    rules = {"*.weight": constraint, "1.weight": None}
    average = averaged(rules, **AVERAGES[kind])
    with pytest.raises(ValueError, match=r"outside of their sets: .*0.weight is .* away from .*project_params\(\)"):
        audit(average, rules, step=8)
    state = copy.deepcopy(average.module.state_dict())
    before = [p.clone() for p in average.parameters()]
    project_params(average, rules, step=8)
    audit(average, rules, step=8)
    assert sum(not torch.equal(p, q) for p, q in zip(average.parameters(), before, strict=True)) == 2
    if constraint.axis != "incoming":
        project_params(state, rules, step=8)
        audit(state, rules, step=8)


def test_tags_are_kept_in_averages() -> None:
    model = network()
    constrain(model[0], weight=pg.UnitNorm())
    optimizer = ProjectedOptimizer(optim.SGD(model.parameters(), 0.3), model=model)
    average = AveragedModel(model)
    for _ in range(3):
        train(optimizer, model, 1)
        average.update_parameters(model)
    assert violations(average)["0.weight"] > 1e-4
    project_params(average)
    audit(average)


def test_a_second_bare_optimizer_of_the_same_weights_is_seen_by_audit() -> None:
    model = network()
    train(wrapped(model), model, 1)
    train(optim.Adam(model.parameters(), 0.5), model, 1)
    with pytest.raises(ValueError, match="0.weight is .* away"):
        audit(model, RULES)
