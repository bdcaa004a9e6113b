"""The torch wrapper in the metric of its optimizer: options, checkpoints, what is refused."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch import nn, optim

from projgrad.torch import ProjectedOptimizer, constrain, project_params, register_metric
from projgrad_backends.torch.metric import scaling_of, weights
from tests.torch_network import loss_of, network, train

METRIC = {"metric": "optimizer"}
SIMPLEX = pg.Simplex(axis=0)


# -- the wrapper --------------------------------------------------------------------------------------------------

RULES = {"*.weight": pg.MaxNorm(0.5), "0.bias": SIMPLEX, "1.*": None}


def read(optimizer: Any, p: Any) -> Any:
    return weights(optimizer, [(p, optimizer.param_groups[0])])[0]


def wrapped(model: Any, rules: Any = RULES, **options: Any) -> ProjectedOptimizer:
    adam = optim.Adam(model.parameters(), lr=0.1)
    return ProjectedOptimizer(adam, rules, model=model, **(METRIC | options))


def values(model: Any) -> Any:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def test_a_step_is_the_wrapped_optimizers_step_and_then_the_projection_in_its_metric() -> None:
    model, twin = network(), network()
    optimizer = wrapped(model)
    project_params(twin, RULES)
    bare = optim.Adam(twin.parameters(), lr=0.1)
    for k in range(1, 5):
        train(optimizer, model, 1)
        train(bare, twin, 1)
        for p, c in (
            (twin[0].weight, pg.MaxNorm(0.5, axis=1)),
            (twin[3].weight, pg.MaxNorm(0.5, axis=1)),
            (twin[0].bias, SIMPLEX),
        ):
            h = (bare.state[p]["exp_avg_sq"] / (1 - 0.999**k)).sqrt() + 1e-8
            p.data = c.project(p.data, metric=h)
        torch.testing.assert_close(values(model), values(twin))
    euclidean = network()
    train(wrapped(euclidean, metric="euclidean"), euclidean, 4)
    assert (values(model) - values(euclidean)).abs().max() > 0.01


def test_projecting_by_hand_uses_the_state_there_is() -> None:
    model = network()
    optimizer = wrapped(model)
    train(optimizer, model, 3)
    p, h = model[0].bias, read(optimizer.inner, model[0].bias)
    for project in (optimizer.project, lambda: optimizer.set_rules(RULES, model=model)):
        x = torch.linspace(-1, 2, 8)
        p.data.copy_(x)
        project()
        torch.testing.assert_close(p.detach(), SIMPLEX.project(x, metric=h))
    project_params({"b": x}, {"b": pg.Tag(SIMPLEX, metric="optimizer")})
    torch.testing.assert_close(x, SIMPLEX.project(torch.linspace(-1, 2, 8)))


def test_tags_decide_for_themselves() -> None:
    model = network()
    constrain(model[0], weight=pg.Tag(pg.MaxNorm(0.5), metric="euclidean"), bias=SIMPLEX)
    plan = ProjectedOptimizer(optim.Adam(model.parameters()), model=model, **METRIC).plan
    assert [entry.in_metric for entry in plan] == [False, True]
    rules = {"0.weight": pg.MaxNorm(0.5), "0.bias": pg.Tag(SIMPLEX, metric="optimizer")}
    free = network()
    assert [entry.in_metric for entry in wrapped(free, rules, metric="euclidean").plan] == [False, True]
    with pytest.raises(ValueError, match="ProjectedOptimizer: metric='adam' is not known"):
        wrapped(network(), metric="adam")


def test_it_is_remembered() -> None:
    model = network()
    optimizer = ProjectedOptimizer(
        optim.Adam(model[0].parameters(), lr=0.1), RULES, model=model, partial=True, metric="optimizer"
    )
    with pytest.raises(ValueError, match="its param group.*but the rules|the rules.*but its param group"):
        optimizer.add_param_group(
            {"params": list(model[3].parameters()), "constraint": pg.Tag(pg.MaxNorm(0.5, axis=1), metric="euclidean")}
        )
    optimizer.add_param_group({"params": [model[3].weight], "constraint": pg.MaxNorm(0.5, axis=1)})
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "constraint": SIMPLEX})
    assert [entry.in_metric for entry in optimizer.plan] == [True] * 4
    optimizer.set_rules({"0.weight": pg.MaxNorm(0.5)}, model=model)
    for copied in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        copied.add_param_group({"params": [nn.Parameter(torch.ones(3))], "constraint": SIMPLEX})
        assert [entry.in_metric for entry in copied.plan] == [True] * 4


def test_checkpoints() -> None:
    model = network()
    optimizer = wrapped(model)
    train(optimizer, model, 3)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights_of, state = torch.load(file, weights_only=True)
    other = network()
    loaded = wrapped(other)
    other.load_state_dict(weights_of)
    loaded.load_state_dict(state)
    train(optimizer, model, 3)
    train(loaded, other, 3)
    assert torch.equal(values(model), values(other))


def test_where_all_entries_are_alike() -> None:
    found = []
    for metric in ("optimizer", "euclidean"):
        model = network()
        sgd = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        rules = {"0.weight": pg.SpectralNorm(0.5, axis=(0, 1)), "0.bias": SIMPLEX}
        train(ProjectedOptimizer(sgd, rules, model=model, metric=metric), model)
        found.append(values(model))
    assert torch.equal(*found)
    model = network()
    boxed = wrapped(model, {"*": pg.Box(-0.1, 0.1)})
    assert [held for _, _, held in boxed._located(boxed.plan)] == [None] * 6


def test_several_parameters_in_one_set() -> None:
    model = network()
    groups = [{"params": [model[0].weight], "lr": 0.1}, {"params": [model[0].bias], "lr": 0.01}]
    optimizer = ProjectedOptimizer(
        optim.Adam(groups), {"0.*": pg.Joint(pg.MaxNorm(0.5))}, model=model, metric="optimizer"
    )

    def located() -> Any:
        return next(optimizer._located(optimizer.plan))

    assert located()[2] == [None, None]
    loss_of(model).backward()
    bias_gradient, model[0].bias.grad = model[0].bias.grad, None
    optimizer.step()
    _, entry, h = located()
    assert h[1] is None
    assert entry.gather_metric(h) is None
    model[0].bias.grad = bias_gradient
    optimizer.step()
    h = located()[2]
    for x, group, weight in zip((model[0].weight, model[0].bias), optimizer.param_groups, h, strict=True):
        alone = weights(optimizer.inner, [(x, group)])[0]
        torch.testing.assert_close(weight, alone / group["lr"])  # an entry's step is lr / h times its gradient
    rows = torch.cat([model[0].weight, model[0].bias[:, None]], dim=1).detach()
    assert pg.MaxNorm(0.5, axis=1).contains(rows)


class Unknown(optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            self.state[p]["size"] = p.grad.abs().mean(dim=-1, keepdim=True) + 1
            p.data -= 0.1 * p.grad / self.state[p]["size"]


def test_other_optimizers() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"Unknown divides its steps.*register_metric\(Unknown\)"):
        ProjectedOptimizer(Unknown(model.parameters()), RULES, model=model, **METRIC)
    tagged = {"0.bias": pg.Tag(SIMPLEX, metric="optimizer")}
    with pytest.raises(ValueError, match="register_metric"):
        ProjectedOptimizer(Unknown(model.parameters()), tagged, model=model)
    ProjectedOptimizer(Unknown(model.parameters()), RULES, model=model)

    class Registered(Unknown):
        pass

    class Derived(Registered):
        pass

    @register_metric(Registered)
    def scaling(state: dict[str, Any], group: dict[str, Any]) -> Any:
        return state["size"]

    assert scaling_of(Derived) is scaling
    model = network()
    optimizer = ProjectedOptimizer(Derived(model.parameters()), {"0.weight": pg.MaxNorm(0.5)}, model=model, **METRIC)
    train(optimizer, model, 1)
    assert read(optimizer.inner, model[0].weight).shape == (8, 4)
    register_metric(Derived)(lambda state, group: torch.ones(7))
    with pytest.raises(ValueError, match=r"metric of Derived has the shape \(7,\).*\(8, 4\)"):
        train(optimizer, model, 1)
    with pytest.raises(TypeError, match="takes a class"):
        register_metric(optim.Adam([nn.Parameter(torch.ones(1))]))


@pytest.mark.parametrize("kind", [optim.LBFGS, optim.Rprop])
def test_optimizers_without_a_metric(kind: Any) -> None:
    model = network()
    with pytest.raises(ValueError, match=f"{kind.__name__} has no metric"):
        ProjectedOptimizer(kind(model.parameters()), RULES, model=model, **METRIC)


def test_what_cannot_be_is_said_when_wrapping() -> None:
    model = network()
    before = values(model)
    with pytest.raises(ValueError, match=r"^0.weight cannot have metric='optimizer': SpectralNorm[^:]*: its nearest"):
        wrapped(model, {"0.bias": SIMPLEX, "0.weight": pg.SpectralNorm(0.5)})
    assert torch.equal(values(model), before)
    p = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    groups = [{"params": [p], "constraint": pg.MaxNorm(1.0, axis=0)}]
    with pytest.raises(ValueError, match=r"param_groups\[0\]\[0\]: .*no metric of complex"):
        ProjectedOptimizer(optim.Adam(groups), **METRIC)
    optimizer = wrapped(model)
    with pytest.raises(ValueError, match=r"param_groups\[1\]\[0\]: .*no metric of complex"):
        optimizer.add_param_group(groups[0])
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("options", [{}, {"capturable": True}], ids=str)
def test_a_compiled_step(options: dict[str, Any]) -> None:
    found = []
    for compiled in (False, True):
        model = network()
        adam = optim.Adam(model.parameters(), lr=0.1, **(options if compiled else {}))
        optimizer = ProjectedOptimizer(adam, RULES, model=model, **METRIC)
        step = torch.compile(optimizer.step, backend="aot_eager") if compiled else optimizer.step
        for _ in range(4):
            optimizer.zero_grad()
            loss_of(model).backward()
            step()
        found.append(values(model))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_a_compiled_step_after_another_one() -> None:
    other = torch.nn.Linear(3, 4)
    bare = optim.SGD(other.parameters(), lr=0.1)
    step = torch.compile(bare.step, backend="eager")
    for _ in range(2):
        other(torch.ones(1, 3)).sum().backward()
        step()
    test_a_compiled_step({})
