"""Projecting in the metric of a torch optimizer: what is read from its state, and where it leads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch import nn, optim

from projgrad.torch import ProjectedOptimizer
from projgrad_backends.torch.metric import weights
from projgrad_backends.torch.namespace import TorchNamespace

METRIC = {"metric": "optimizer"}
Make = Callable[[Any], Any]

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
