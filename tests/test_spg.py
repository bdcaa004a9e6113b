"""The spectral projected gradient method as an optimizer of PyTorch, and its formulas."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import projgrad as pg
from projgrad import spg as method

torch = pytest.importorskip("torch")

from torch import nn

from projgrad.torch import SPG, ProjectedOptimizer, constrain, violations
from tests.boxes import box

pytestmark = pytest.mark.usefixtures("one_thread")


# -- an optimizer of torch ----------------------------------------------------------------------------------------


def closure_of(optimizer: Any, loss_of: Callable[[], Any], calls: list[float] | None = None) -> Callable[[], Any]:
    def closure() -> Any:
        optimizer.zero_grad(set_to_none=False)  # the gradients stay in the same memory
        loss = loss_of()
        loss.backward()
        if calls is not None:
            calls.append(loss.item())
        return loss

    return closure


def test_float32() -> None:
    problem, least = box("least squares")
    w = nn.Parameter(torch.tensor(problem.start, dtype=torch.float32))
    optimizer = SPG([("w", w)], {"w": pg.NonNeg()}, max_iter=200)
    optimizer.step(closure_of(optimizer, lambda: problem.value(w, torch)))
    assert w.dtype == torch.float32
    assert problem.value(w.detach().double().numpy(), np) == pytest.approx(least, rel=1e-6)


class Net(nn.Module):
    """Parameters in different sets and free, of which one has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(4, 8)
        self.two = nn.Linear(8, 1)
        self.unused = nn.Parameter(torch.ones(2))

    def loss(self) -> Any:
        x = torch.linspace(-1, 1, 80, dtype=self.one.weight.dtype).reshape(20, 4)
        return (self.two(torch.tanh(self.one(x.sin() * 3))) - x[:, :1] * 2).square().mean()


RULES = {"one.weight": pg.MaxNorm(0.5), "two.weight": pg.Simplex(2.0, axis=1), "unused": pg.NonNeg()}


def test_several_parameters_each_in_its_set_at_every_evaluation() -> None:
    net = Net().double()
    optimizer = SPG(net.parameters(), RULES, model=net, max_iter=300)
    calls: list[float] = []

    def loss() -> Any:
        assert max(violations(net, RULES).values()) < 1e-14
        return net.loss()

    first = optimizer.step(closure_of(optimizer, loss, calls))
    assert isinstance(optimizer, ProjectedOptimizer)
    assert first.item() == calls[0]
    assert calls[-1] < 0.5 * calls[0]
    assert torch.equal(net.unused, torch.ones(2).double())
    assert {entry.name for entry in optimizer.plan} == set(RULES)


def test_the_limits_of_a_step() -> None:
    net = Net()
    optimizer = SPG(net.parameters(), RULES, model=net, max_iter=3)
    calls: list[float] = []
    closure = closure_of(optimizer, net.loss, calls)
    optimizer.step(closure)
    (state,) = optimizer.state.values()
    assert state["n_iter"] <= 3
    assert len(calls) == state["func_evals"] <= 5
    for group in optimizer.param_groups:
        group["max_eval"] = 1
    before = [p.clone() for p in net.parameters()]
    optimizer.step(closure)
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_with_a_window_of_one_no_iteration_goes_up() -> None:
    net = Net().double()
    optimizer = SPG(net.parameters(), RULES, model=net, max_iter=1, max_eval=30, history_size=1)
    calls: list[float] = []
    starts = [optimizer.step(closure_of(optimizer, net.loss, calls)).item() for _ in range(60)]
    assert all(b <= a for a, b in pairwise(starts))
    wide = SPG(net.parameters(), RULES, model=net, max_iter=1)
    for _ in range(15):
        wide.step(closure_of(wide, net.loss))
    (state,) = wide.state.values()
    assert len(state["values"]) == 10


def test_a_checkpoint_goes_on_bit_for_bit() -> None:
    def made() -> tuple[Any, SPG, Callable[[], Any]]:
        net = Net()
        optimizer = SPG(net.parameters(), RULES, model=net, max_iter=4)
        return net, optimizer, closure_of(optimizer, net.loss)

    net, optimizer, closure = made()
    for _ in range(3):
        optimizer.step(closure)
    saved = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], saved)
    saved.seek(0)
    twin, other, again = made()
    weights, state = torch.load(saved, weights_only=True)
    twin.load_state_dict(weights)
    other.load_state_dict(state)
    for _ in range(3):
        optimizer.step(closure)
        other.step(again)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_works(copied: Any) -> None:
    net = Net()
    net, optimizer = copied((net, SPG(net.parameters(), RULES, model=net)))
    before = net.loss().item()
    optimizer.step(closure_of(optimizer, net.loss))
    assert net.loss().item() < before
    assert max(violations(net, RULES).values()) < 1e-6


def test_tags_of_layers_and_one_set_over_several_parameters() -> None:
    net = Net()
    constrain(net.two, weight=pg.NonNeg())
    optimizer = SPG(net.parameters(), model=net)
    optimizer.step(closure_of(optimizer, net.loss))
    assert bool((net.two.weight >= 0).all())
    joint = SPG(net.parameters(), {"one.*": pg.Joint(pg.MaxNorm(0.3))}, model=net)
    joint.step(closure_of(joint, net.loss))
    rows = torch.cat([net.one.weight, net.one.bias[:, None]], 1)
    assert torch.linalg.vector_norm(rows, dim=1).max() <= 0.3 * (1 + 1e-6)


def test_a_group_may_be_added_and_the_rate_scheduled() -> None:
    w, b = (nn.Parameter(torch.full((3,), 2.0)) for _ in range(2))
    optimizer = SPG([{"params": [w], "constraint": pg.NonNeg()}])
    optimizer.add_param_group({"params": [b], "constraint": pg.Box(-0.5, 0.5)})
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    closure = closure_of(optimizer, lambda: (w + 1).square().sum() + (b + 1).square().sum())
    optimizer.step(closure)
    scheduler.step()
    optimizer.step(closure)
    assert torch.equal(w, torch.zeros(3))
    assert torch.equal(b, torch.full((3,), -0.5))
    optimizer.param_groups[1]["lr"] = 2.0
    with pytest.raises(ValueError, match="lr differs between param groups"):
        optimizer.step(closure)


def test_what_is_loaded_outside_is_projected_first() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = SPG([("w", w)], {"w": pg.Box(0.5, 1.0)})
    w.data.fill_(-1.0)  # where the value is lower than anywhere inside
    optimizer.step(closure_of(optimizer, lambda: (w - 0.75).square().sum() + 10 * w.clamp(max=0).sum()))
    torch.testing.assert_close(w.detach(), torch.full((3,), 0.75))


def test_the_tolerances() -> None:
    w = nn.Parameter(torch.full((3,), 3.0).double())
    curvature = torch.tensor([1.0, 9.0, 100.0])

    def solve(**options: Any) -> Any:
        w.data.fill_(3.0)
        optimizer = SPG([("w", w)], {"w": pg.NonNeg()}, max_iter=300, **options)
        optimizer.step(closure_of(optimizer, lambda: (curvature * (w - 1) ** 2).sum()))
        return optimizer.state[w]["n_iter"], (2 * curvature * (w - 1)).abs().max().item()

    few, coarse = solve(tolerance_grad=1e-2)
    many, fine = solve(tolerance_grad=1e-9)
    assert (few < many, coarse <= 1e-2, fine <= 1e-9) == (True, True, True)
    assert solve(tolerance_change=10.0)[0] == 1


def test_values_that_are_not_finite() -> None:
    w = nn.Parameter(torch.tensor([3.0, 0.5], dtype=torch.float64))
    optimizer = SPG([("w", w)], {"w": pg.NonNeg()}, max_iter=200, max_eval=1000)
    optimizer.step(closure_of(optimizer, lambda: (100 * w - w.log()).sum()))  # infinite at the bound, NaN beyond
    torch.testing.assert_close(w.detach(), torch.full((2,), 0.01, dtype=torch.float64))
    start = w.detach().clone()
    loss = optimizer.step(closure_of(optimizer, lambda: (w * torch.nan).sum()))
    assert loss.isnan()
    assert torch.equal(w.detach(), start)
    optimizer.step(closure_of(optimizer, lambda: (w - 1).square().sum()))  # and it goes on
    torch.testing.assert_close(w.detach(), torch.ones(2, dtype=torch.float64))


def test_another_function_is_not_compared_with_the_last_one() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = SPG([("w", w)], {"w": pg.NonNeg()}, max_iter=1)
    for scale, goal in ((100.0, 3.0), (1.0, 0.5)):
        optimizer.step(closure_of(optimizer, lambda scale=scale, goal=goal: scale * (w - goal).square().sum() + scale))
    assert optimizer.state[w]["n_iter"] == 2
    assert max(optimizer.state[w]["values"]) < 100


def test_where_nothing_goes_down_the_next_function_finds_a_length_again() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = SPG([("w", w)], {"w": pg.NonNeg()}, max_eval=1000)

    def uphill() -> Any:
        w.grad = torch.full((3,), -1e4)
        return w.sum()

    optimizer.step(uphill)
    assert torch.equal(w, torch.ones(3))
    optimizer.step(closure_of(optimizer, lambda: (w - 3).square().sum()))
    torch.testing.assert_close(w.detach(), torch.full((3,), 3.0))


def test_complex_parameters_and_sparse_gradients() -> None:
    z = nn.Parameter(torch.tensor([3 + 4j, 0.1j], dtype=torch.complex128))
    table = nn.Embedding(5, 2, sparse=True).double()
    goal = torch.tensor([1 + 1j, 2j], dtype=torch.complex128)
    optimizer = SPG(
        [("z", z), ("table", table.weight)], {"z": pg.MaxNorm(1.0, axis=0), "table": pg.NonNeg()}, max_iter=300
    )
    rows = torch.tensor([1, 3])

    def loss() -> Any:
        return (z - goal).abs().square().sum() + (table(rows) + 1).square().sum()

    optimizer.step(closure_of(optimizer, loss))
    torch.testing.assert_close(z.detach(), goal / 6**0.5)
    assert torch.equal(table(rows), torch.zeros(2, 2).double())


def test_imaginary_parts_count() -> None:
    curvature, goal = torch.tensor([1.0, 30.0, 900.0]).double(), torch.tensor([1j, 2j, 3j], dtype=torch.complex128)
    evaluations = []
    for factor in (1.0, -1j):
        z = nn.Parameter(0 * goal)
        optimizer = SPG([("z", z)], {"z": pg.MaxNorm(9.0, axis=0)}, max_iter=300, tolerance_grad=1e-9)
        optimizer.step(
            closure_of(optimizer, lambda z=z, factor=factor: (curvature * (z - factor * goal).abs() ** 2).sum())
        )
        torch.testing.assert_close(z.detach(), factor * goal)
        evaluations.append(optimizer.state[z]["func_evals"])
    assert evaluations[0] == evaluations[1]  # as many as for real ones


# -- errors -------------------------------------------------------------------------------------------------------

CHANGING = [
    pg.NonNeg().every(2),
    pg.MaxNorm(1.0, axis=0, rate=0.5),
    pg.MaxNorm(pg.Schedule({0: 1.0, 9: 2.0}), axis=0),
    pg.Tag(pg.MaxNorm(1.0, axis=0), metric="optimizer"),
    pg.Slices([pg.NonNeg().relaxed(0.5), None]),
]


@pytest.mark.parametrize("constraint", CHANGING, ids=repr)
def test_sets_that_change_are_refused(constraint: Any) -> None:
    w = nn.Parameter(-torch.ones(4))
    with pytest.raises(ValueError, match="w: the spectral projected gradient method"):
        SPG([("w", w)], {"w": constraint})
    assert bool((w == -1).all())


@pytest.mark.parametrize("option", [{"lr": 0.0}, {"max_iter": 0}, {"max_eval": 0}, {"history_size": 0}])
def test_options_out_of_range(option: Any) -> None:
    with pytest.raises(ValueError, match="lr must be above 0"):
        SPG([("w", nn.Parameter(torch.ones(2)))], {"w": pg.NonNeg()}, **option)


def test_sharded_parameters_are_refused(tmp_path: Any) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        w = nn.Parameter(distribute_tensor(torch.ones(2), init_device_mesh("cpu", (1,))))
        optimizer = SPG([("w", w)], {"w": pg.NonNeg()})
        with pytest.raises(NotImplementedError, match="unshard"):
            optimizer.step(closure_of(optimizer, lambda: w.sum()))
    finally:
        distributed.destroy_process_group()


# -- the formulas -------------------------------------------------------------------------------------------------


def test_lengths_and_factors() -> None:
    assert method.first_length(0.1, np) == 1
    assert method.first_length(50.0, np) == 0.02
    assert method.next_length(4.0, 8.0, 1.0, np) == 0.5
    assert method.next_length(4.0, -8.0, 1.0, np) == 10
    assert method.next_length(1.0, 1e-300, 1.0, np) == 1e10
    # the parabola with value 1, slope -4 and 3 at the end is least at 1/3
    assert method.shorter(1.0, 1.0, 3.0, -4.0, np) == pytest.approx(1 / 3)
    assert method.shorter(0.5, 1.0, 0.9, -4.0, np) == 0.25
    assert [method.shorter(1.0, 1.0, new, -4.0, np) for new in (1e9, np.inf, np.nan)] == [0.1] * 3
    assert not method.is_sufficient(np.nan, 1.0, -1.0, 1e-16, np)
    assert not method.is_same(np.inf, np.inf, 1e-16, np)
