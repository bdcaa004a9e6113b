"""A run that is resumed from a checkpoint of torch goes on bit for bit as if it had not stopped."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch import nn

from projgrad.torch import ProjectedOptimizer, violations
from tests.integrations.processes import killed

RULES: dict[str, Any] = {
    "schedule, every": {"*.weight": pg.MaxNorm(pg.Schedule({0: 0.3, 60: 1.0})).every(3)},
    "rate": {"*.weight": pg.UnitNorm(rate=0.3)},
    "rate inside": {"*.weight": pg.Slices([pg.MaxNorm(0.2, rate=0.5), None]), "0.bias": pg.NonNeg()},
    "schedule, rate, every": {
        "0.weight": pg.MaxNorm(pg.Schedule({0: 0.3, 60: 1.0}), rate=0.5).every(2),
        "3.weight": pg.Tag(pg.Simplex(rate=0.7), metric="optimizer"),
        "*.bias": pg.Joint(pg.MaxNorm(0.2, axis=None), every=4),
    },
    "nothing to count": {"0.weight": pg.Orthogonal(), "3.weight": pg.Simplex() & pg.Box(0.0, 0.4)},
}
ORDERS = ("wrap, model, optimizer", "model, wrap, optimizer", "wrap, optimizer, model", "model, optimizer, wrap")


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 4))


class Run:
    """A run with everything that a training has, made anew or from a checkpoint."""

    def __init__(
        self, rules: Any, file: Path | None = None, order: str = ORDERS[0], make: Any = torch.optim.Adam
    ) -> None:
        saved = torch.load(file, weights_only=True) if file else None
        self.model, self.step = network(), 0
        self.inner = make(self.model.parameters(), lr=0.05)
        self.optimizer: Any = None
        for act in order.split(", "):
            if act == "wrap":
                self.optimizer = ProjectedOptimizer(self.inner, rules, model=self.model)
                self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.98)
            elif saved and act == "model":
                self.model.load_state_dict(saved["model"])
            elif saved:
                (self.optimizer or self.inner).load_state_dict(saved["optimizer"])
        if saved:
            self.scheduler.load_state_dict(saved["scheduler"])
            torch.set_rng_state(saved["random"])
            self.step = saved["step"]

    def train(self, until: int) -> Run:
        while self.step < until:
            self.optimizer.zero_grad()
            (self.model(torch.randn(8, 6)) - torch.randn(8, 4)).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()
            self.step += 1
        return self

    def save(self, file: Path) -> Path:
        state = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scheduler")}
        torch.save(state | {"random": torch.get_rng_state(), "step": self.step}, file.with_suffix(".new"))
        os.replace(file.with_suffix(".new"), file)
        return file

    def same(self, other: Run) -> bool:
        pairs = zip(self.model.parameters(), other.model.parameters(), strict=True)
        return all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", RULES)
def test_a_resumed_run_goes_on_bit_for_bit(name: str, order: str, tmp_path: Path) -> None:
    rules = RULES[name]
    whole = Run(rules).train(20)
    # a state of no steps does not say whether the weights that were wrapped are those beside it, or new ones
    for stop in (1, 7) if "rate" in name and order.startswith("model, wrap") else (0, 1, 7):
        file = Run(rules).train(stop).save(tmp_path / "checkpoint")
        first = Run(rules, file, order).train(12)
        assert Run(rules, first.save(tmp_path / "second"), order).train(20).same(whole)


def test_it_holds_for_optimizers_without_a_state(tmp_path: Path) -> None:
    for rules in (RULES["rate"], RULES["schedule, every"]):
        whole = Run(rules, make=torch.optim.SGD).train(12)
        file = Run(rules, make=torch.optim.SGD).train(5).save(tmp_path / "checkpoint")
        for order in ORDERS:
            assert Run(rules, file, order, torch.optim.SGD).train(12).same(whole)


def test_weights_that_came_between_are_not_taken_back(tmp_path: Path) -> None:
    rules = RULES["rate"]
    state = Run(rules).train(3).optimizer.state_dict()
    run = Run(rules)
    for p in run.model.parameters():
        p.data.copy_(torch.ones_like(p))  # which the version of the parameter does not show
    run.optimizer.load_state_dict(state)
    assert all(bool((p == 1).all()) for p in run.model.parameters())


def test_other_rules_hold_for_a_bare_optimizer_that_has_the_number_of_steps(tmp_path: Path) -> None:
    state = Run(RULES["schedule, every"]).train(5).optimizer.state_dict()
    model = network()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10)
    bare = torch.optim.Adam(model.parameters(), lr=0.05)
    bare.load_state_dict(state)
    start = [p.detach().clone() for p in model.parameters()]
    rules = {
        "0.weight": pg.MaxNorm(pg.Schedule({0: 0.3, 10: 1.3})),
        "0.bias": pg.Box(-0.1, 0.1).every(5),
        "3.weight": pg.MaxNorm(0.5).every(2),  # next after the sixth step
        "3.bias": pg.NonNeg(rate=0.5),
    }
    optimizer = ProjectedOptimizer(bare, rules, model=model)
    found = violations(model, rules, step=5)
    assert found["0.weight"] < 1e-6
    assert found["0.bias"] == 0
    assert float(model[0].weight.norm(dim=1).max()) == pytest.approx(0.8, abs=1e-6)
    assert all(torch.equal(p, q) for p, q in zip(model[3].parameters(), start[2:], strict=True))
    model(torch.ones(2, 6)).square().sum().backward()
    optimizer.step()
    assert violations(model, rules, step=6)["3.weight"] < 1e-6
    assert optimizer.param_groups[0]["projgrad"] == {"step": 6}
    again = torch.optim.Adam(model.parameters(), lr=0.05)
    again.load_state_dict(optimizer.state_dict())
    assert "projgrad" not in ProjectedOptimizer(again, {"3.weight": pg.Simplex()}, model=model).state_dict()
    assert "projgrad" not in again.param_groups[0]  # there is nothing to count any more
    assert max(violations(model, {"3.weight": pg.Simplex()}).values()) < 1e-6


def test_a_state_of_no_steps_takes_nothing_back() -> None:
    rules = {"*.weight": pg.MaxNorm(0.3).every(2)}
    run = Run(rules)
    run.optimizer.load_state_dict(run.optimizer.state_dict())  # as accelerator.prepare() does
    assert max(violations(run.model, rules).values()) < 1e-6


def test_rules_and_groups_that_came_later_are_taken_back_too(tmp_path: Path) -> None:
    rules = RULES["schedule, every"]

    def run(saved: Any = None) -> tuple[Any, Any]:
        model = network()
        if saved:
            model.load_state_dict(saved[0])
        inner = torch.optim.Adam(model[0].parameters(), 0.05)
        optimizer = ProjectedOptimizer(inner, rules, model=model, partial=True)
        optimizer.add_param_group({"params": list(model[3].parameters())})
        if saved:
            optimizer.load_state_dict(saved[1])
        return model, optimizer

    def train(model: Any, optimizer: Any, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model.eval()(torch.ones(2, 6)).square().sum().backward()
            optimizer.step()

    model, optimizer = run()
    train(model, optimizer, 4)
    saved = [{k: v.clone() for k, v in model.state_dict().items()}, optimizer.state_dict()]
    other = run(saved)
    for p, q in zip(model.parameters(), other[0].parameters(), strict=True):
        assert torch.equal(p, q)


# -- other optimizers and other ways to save ----------------------------------------------------------------------


def test_checkpoints_interchange_with_a_bare_optimizer(tmp_path: Path) -> None:
    run = Run(RULES["schedule, every"]).train(5)
    torch.save(run.optimizer.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    assert set(state) == {"state", "param_groups", "projgrad"}
    bare = torch.optim.Adam(run.model.parameters(), lr=0.05)
    bare.load_state_dict(state)
    bare.step()
    fresh = torch.optim.Adam(run.model.parameters(), lr=0.05)
    fresh.step()
    run.optimizer.load_state_dict(fresh.state_dict())  # counting goes on
    assert run.optimizer.state_dict()["param_groups"][0]["projgrad"] == {"step": 5}
    run.optimizer.load_state_dict({**fresh.state_dict(), "projgrad": {"step": 8}})  # as it was saved once
    assert run.train(6).optimizer.state_dict()["param_groups"][0]["projgrad"] == {"step": 9}
    for step in (-3, "x"):
        with pytest.raises(ValueError, match="the state to load has projgrad=.*an int of at least 0"):
            run.optimizer.load_state_dict({**bare.state_dict(), "projgrad": {"step": step}})
        assert run.optimizer.state_dict()["param_groups"][0]["projgrad"] == {"step": 9}


@pytest.mark.parametrize("options", [{}, {"flatten_optimizer_state_dict": True}, {"full_state_dict": True}], ids=str)
@pytest.mark.parametrize("rules", [RULES["schedule, every"], RULES["rate"]], ids=["schedule, every", "rate"])
def test_distributed_checkpoints(rules: Any, options: dict[str, bool], tmp_path: Path) -> None:
    from torch.distributed.checkpoint import state_dict as states
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save

    chosen = states.StateDictOptions(**options)

    def state_of(run: Run) -> dict[str, Any]:
        model, optimizer = states.get_state_dict(run.model, run.optimizer, options=chosen)
        return {"model": model, "optimizer": optimizer}

    def last(run: Run) -> Run:
        torch.manual_seed(1)
        return run.train(run.step + 8)

    run = Run(rules).train(5)
    state = state_of(run)
    save(state, checkpoint_id=tmp_path, no_dist=True)
    other = Run(rules)
    other.step, other.scheduler = 5, torch.optim.lr_scheduler.ExponentialLR(other.optimizer, 0.98)
    before = [p.clone() for p in other.model.parameters()]
    state = state_of(other)  # makes a step without effect, for the state to be there
    assert state_of(other)["optimizer"]["param_groups"] if not options else True
    assert all(torch.equal(p, q) for p, q in zip(other.model.parameters(), before, strict=True))
    load(state, checkpoint_id=tmp_path, no_dist=True)
    states.set_state_dict(
        other.model,
        other.optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=chosen,
    )
    other.scheduler.load_state_dict(run.scheduler.state_dict())
    assert last(other).same(last(run))


def test_a_first_step_at_a_rate_of_0_counts() -> None:
    model = network()
    optimizer = ProjectedOptimizer(
        torch.optim.SGD(model.parameters(), 0.0), {"0.weight": pg.MaxNorm(0.3).every(2)}, model=model
    )
    for n in range(1, 4):
        optimizer.zero_grad()
        model(torch.ones(2, 6)).sum().backward()
        optimizer.step()
        assert optimizer.param_groups[0]["projgrad"] == {"step": n}


# -- killed -------------------------------------------------------------------------------------------------------

_CHILD = """
import sys, time
from pathlib import Path
from tests.integrations.test_torch_resume import RULES, Run
name, order, file, end = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
run = Run(RULES[name], file if file.exists() else None, order)
while run.step < end:
    run.train(run.step + 1)
    time.sleep(0.02)  # so that it is killed between two checkpoints
    if run.step % 3 == 0:
        run.save(file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS[:2])
def test_a_killed_run_goes_on_bit_for_bit(order: str, tmp_path: Path) -> None:
    name, file, end = "schedule, rate, every", tmp_path / "checkpoint", 90
    command = [sys.executable, "-c", _CHILD, name, order, str(file), str(end)]
    killed(command, lambda: file.stat().st_mtime_ns if file.exists() else None)
    saved = torch.load(file, weights_only=True)
    assert saved["step"] == end
    whole = Run(RULES[name]).train(end).model.state_dict()
    assert all(torch.equal(x, whole[key]) for key, x in saved["model"].items())
