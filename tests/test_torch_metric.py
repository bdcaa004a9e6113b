"""Projecting in the metric of a torch optimizer: what is read from its state, and where it leads."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch import nn, optim

from projgrad.torch import ProjectedOptimizer, constrain, project_params, register_metric
from projgrad_backends.torch.metrics import scaling_of, weights
from projgrad_backends.torch.namespace import TorchNamespace
from tests.torch_network import loss_of, network, train

METRIC = {"metric": "optimizer"}
SIMPLEX = pg.Simplex(axis=0)
Make = Callable[[Any], Any]

# -- what is read -------------------------------------------------------------------------------------------------

# without momentum, so that a step is the gradient, divided by h; with an eps that matters
SCALED: dict[str, Make] = {
    "Adam": lambda p: optim.Adam(p, betas=(0.0, 0.99), eps=1e-3),
    "Adam foreach": lambda p: optim.Adam(p, betas=(0.0, 0.99), eps=1e-3, foreach=True),
    "Adam fused": lambda p: optim.Adam(p, betas=(0.0, 0.99), eps=1e-3, fused=True),
    "amsgrad": lambda p: optim.Adam(p, betas=(0.0, 0.9), eps=1e-3, amsgrad=True),
    "amsgrad foreach": lambda p: optim.Adam(p, betas=(0.0, 0.9), eps=1e-3, amsgrad=True, foreach=True),
    "amsgrad fused": lambda p: optim.Adam(p, betas=(0.0, 0.9), eps=1e-3, amsgrad=True, fused=True),
    "AdamW": lambda p: optim.AdamW(p, betas=(0.0, 0.99), eps=1e-3, weight_decay=0.0, maximize=True),
    "AdamW fused": lambda p: optim.AdamW(p, betas=(0.0, 0.99), eps=1e-3, weight_decay=0.0, fused=True),
    "NAdam": lambda p: optim.NAdam(p, betas=(0.0, 0.99), eps=1e-3),
    "NAdam foreach": lambda p: optim.NAdam(p, betas=(0.0, 0.99), eps=1e-3, foreach=True),
    "RAdam": lambda p: optim.RAdam(p, betas=(0.0, 0.99), eps=1e-3),
    "RAdam foreach": lambda p: optim.RAdam(p, betas=(0.0, 0.99), eps=1e-3, foreach=True),
    "Adamax": lambda p: optim.Adamax(p, betas=(0.0, 0.99), eps=1e-3),
    "Adamax foreach": lambda p: optim.Adamax(p, betas=(0.0, 0.99), eps=1e-3, foreach=True),
    "Adagrad": lambda p: optim.Adagrad(p, eps=1e-3, initial_accumulator_value=0.1),
    "Adagrad foreach": lambda p: optim.Adagrad(p, eps=1e-3, foreach=True),
    "Adagrad fused": lambda p: optim.Adagrad(p, eps=1e-3, fused=True),
    "RMSprop": lambda p: optim.RMSprop(p, eps=1e-3),
    "RMSprop foreach": lambda p: optim.RMSprop(p, eps=1e-3, foreach=True),
    "RMSprop centered": lambda p: optim.RMSprop(p, eps=1e-3, centered=True),
    "Adafactor": lambda p: optim.Adafactor(p, eps=(1e-2, 1e-3), weight_decay=0.0),
    "Adafactor foreach": lambda p: optim.Adafactor(p, weight_decay=0.0, foreach=True),
    "SGD": lambda p: optim.SGD(p, 0.1),
    "ASGD": lambda p: optim.ASGD(p, 0.1, lambd=0.0),
}
STEPS = 9


def stepped(make: Make, shape: tuple[int, ...] = (4, 3), steps: int = STEPS) -> tuple[Any, Any, Any, Any]:
    """An optimizer after some steps, its parameter, and the last gradient and change of it."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = make([p])
    sizes = 10.0 ** torch.linspace(-4, 2, p.numel(), dtype=torch.float64).reshape(shape)
    for _ in range(steps):
        p.grad, before = sizes * torch.randn_like(p), p.detach().clone()
        optimizer.step()
    return optimizer, p, p.grad, p.detach() - before


def read(optimizer: Any, p: Any) -> Any:
    return weights(optimizer, [(p, optimizer.param_groups[0])])[0]


def spread(x: Any) -> float:
    return float(x.abs().max() / x.abs().min()) - 1


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("shape", [(4, 3), (6,)], ids=str)
def test_the_metric_is_what_the_step_was_divided_by(name: str, shape: tuple[int, ...]) -> None:
    optimizer, p, gradient, change = stepped(SCALED[name], shape)
    h = read(optimizer, p)
    if name in ("SGD", "ASGD"):
        assert h is None
        h = 1.0
    else:
        assert h.shape == p.shape
        assert h.dtype == p.dtype
        assert spread(h) > 10
    assert spread(change * h / gradient) < 1e-9


@pytest.mark.parametrize("name", ["Adam", "amsgrad", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adafactor"])
def test_on_a_device_nothing_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # as of a capturable or fused step, whose number is on the device as well
    optimizer, p, _, _ = stepped(SCALED[name])
    expected = read(optimizer, p)

    def waits(*_: Any) -> Any:
        raise AssertionError("this waits for the device")

    monkeypatch.setattr(TorchNamespace, "can_look", lambda self, x: False)
    for method in ("item", "__bool__", "__float__", "__int__", "tolist", "cpu"):
        monkeypatch.setattr(torch.Tensor, method, waits)
    found = read(optimizer, p)
    monkeypatch.undo()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)


def test_momentum_is_no_part_of_the_metric() -> None:
    optimizer, p, _, change = stepped(lambda p: optim.Adam(p, eps=1e-3))
    assert spread(change * read(optimizer, p) / optimizer.state[p]["exp_avg"]) < 1e-9
    optimizer, p, _, change = stepped(lambda p: optim.RMSprop(p, eps=1e-3, momentum=0.9), steps=1)
    assert spread(change * read(optimizer, p) / p.grad) < 1e-9


def test_sparse_adam() -> None:
    p = nn.Parameter(torch.zeros(5, 3, dtype=torch.float64))
    optimizer, rows = optim.SparseAdam([p], betas=(0.5, 0.99), eps=1e-3), torch.tensor([[0, 3]])
    for _ in range(3):
        values = torch.tensor([[1e-4, 1.0, 5.0], [2.0, 1e-3, 70.0]], dtype=torch.float64)
        p.grad, before = torch.sparse_coo_tensor(rows, values, (5, 3)), p.detach().clone()
        optimizer.step()
    touched = rows[0]
    ratio = (p.detach() - before) * read(optimizer, p) / optimizer.state[p]["exp_avg"]
    assert spread(ratio[touched]) < 1e-9


def test_adadelta_within_the_factor_that_it_does_not_keep() -> None:
    rho = 0.9
    optimizer, p, gradient, change = stepped(lambda p: optim.Adadelta(p, rho=rho))
    assert spread(change * read(optimizer, p) / gradient) < ((1 + rho) / rho) ** 0.5 - 1
    for _ in range(200):
        before = p.detach().clone()
        optimizer.step()  # with the same gradient again and again
    assert spread((p.detach() - before) * read(optimizer, p) / gradient) < 0.01


def test_radam_before_it_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in range(1, 9):
        optimizer, p, gradient, change = stepped(SCALED["RAdam"], steps=steps)
        h = read(optimizer, p)
        assert (h is None) == (spread(change / gradient) < 1e-9) == (steps < 6)
        with monkeypatch.context() as patch:
            patch.setattr(TorchNamespace, "can_look", lambda self, x: False)
            assert (spread(read(optimizer, p)) == 0) == (h is None)


def test_half_precision() -> None:
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    for make in (optim.Adam, optim.Adafactor, optim.Adamax):
        optimizer = ProjectedOptimizer(make([{"params": [p], "constraint": pg.MaxNorm(1.0, axis=0)}]), **METRIC)
        assert read(optimizer.inner, p) is None
        p.grad = torch.tensor([1.0, 10.0, 100.0], dtype=torch.bfloat16)
        optimizer.step()
        assert read(optimizer.inner, p).dtype == torch.float32
        assert pg.MaxNorm(1.0, axis=0).contains(p.detach())


def test_a_first_step_that_was_skipped() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer: Any = optim.Adam([p], fused=True)
    p.grad = torch.full((3,), float("inf"))
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    optimizer.step()
    assert optimizer.state[p]["step"] == 0
    assert spread(read(optimizer, p)) == 0


# -- where it leads -----------------------------------------------------------------------------------------------


def quadratic() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    return basis @ np.diag(np.logspace(-2, 1, 20)) @ basis.T, rng.standard_normal(20)


@pytest.mark.parametrize("constraint", [SIMPLEX, pg.MaxNorm(1.0, axis=0)], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        optim.Adam,
        pytest.param(lambda p, lr: optim.Adam(p, lr, amsgrad=True), marks=pytest.mark.slow),
        pytest.param(optim.NAdam, marks=pytest.mark.slow),
        pytest.param(optim.Adamax, marks=pytest.mark.slow),
        pytest.param(optim.RMSprop, marks=pytest.mark.slow),
    ],
)
def test_the_constrained_minimum_is_reached(make: Any, constraint: Any) -> None:
    matrix, vector = quadratic()

    def loss(x: np.ndarray) -> float:
        return float(0.5 * x @ matrix @ x - vector @ x)

    best = np.zeros(20)
    for _ in range(4000):  # its condition number is 1000
        best = constraint.project(best - (matrix @ best - vector) / 10)
    assert np.linalg.norm(best - constraint.project(best - (matrix @ best - vector) / 10)) < 1e-9
    gaps = {}
    for metric in ("optimizer", "euclidean"):
        p = nn.Parameter(torch.full((20,), 0.05, dtype=torch.float64))
        optimizer = ProjectedOptimizer(make([{"params": [p], "constraint": constraint}], lr=0.1), metric=metric)
        schedule = optim.lr_scheduler.LambdaLR(optimizer, lambda k: (1 + k) ** -0.5)
        a, b = torch.from_numpy(matrix), torch.from_numpy(vector)
        for _ in range(1500):
            p.grad = a @ p.detach() - b
            optimizer.step()
            schedule.step()
        gaps[metric] = (loss(p.detach().numpy()) - loss(best)) / abs(loss(best))
    assert abs(gaps["optimizer"]) < 1e-8
    assert gaps["euclidean"] > 0.01


# -- the wrapper --------------------------------------------------------------------------------------------------

RULES = {"*.weight": pg.MaxNorm(0.5), "0.bias": SIMPLEX, "1.*": None}


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
    with pytest.raises(ValueError, match=r"0.weight cannot have SpectralNorm.*no way is known"):
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
