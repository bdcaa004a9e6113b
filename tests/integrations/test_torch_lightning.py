"""Lightning: automatic and manual optimization, checkpoints, averages of the weights, reports."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")
lightning: Any = pytest.importorskip("lightning")

from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from projgrad.lightning import ProjectCallback, ReportCallback
from projgrad.torch import ProjectedOptimizer, audit, project_params, violations
from tests.torch_network import clip, close

pytestmark = pytest.mark.usefixtures("one_thread")

MAXNORM: dict[str, Any] = {"*.weight": pg.MaxNorm(0.3)}
COUNTED: dict[str, Any] = {"*.weight": pg.MaxNorm(pg.Schedule({0: 0.2, 20: 0.8}), rate=0.5).every(3)}
SPHERE: dict[str, Any] = {"*.weight": pg.UnitNorm()}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def data() -> Any:
    random = torch.Generator().manual_seed(0)
    tensors = torch.randn(32, 6, generator=random), torch.randn(32, 3, generator=random)
    return DataLoader(TensorDataset(*tensors), batch_size=8)


class Module(lightning.LightningModule):
    """A network that is trained with a schedule of the learning rate; without rules, by a bare optimizer."""

    def __init__(self, rules: Any, manual: bool = False, **options: Any) -> None:
        super().__init__()
        self.net = network()
        self.rules, self.options = rules, options
        self.automatic_optimization = not manual

    def loss(self, batch: Any) -> Any:
        return (self.net(batch[0]) - batch[1]).square().mean()

    def training_step(self, batch: Any, _: int) -> Any:
        loss = self.loss(batch)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.lr_schedulers().step()
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        self.validated = violations(self.net, self.rules)

    def configure_optimizers(self) -> Any:
        self.optimizer: Any = optim.Adam(self.parameters(), lr=0.05)
        if self.rules is not None:
            self.optimizer = ProjectedOptimizer(self.optimizer, self.rules, model=self, **self.options)
        scheduler = optim.lr_scheduler.StepLR(self.optimizer, 3, 0.8)
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def trainer(folder: Path, epochs: int, **options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "barebones": False}
    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        max_epochs=epochs,
        **quiet | {"enable_checkpointing": False, "num_sanity_val_steps": 0} | options,
    )


def by_hand(
    epochs: int,
    accumulate: int,
    clip_norm: float | None = None,
    project: Callable[[Any], None] = lambda model: clip(model, 0.3),
) -> Any:
    model = network()
    project(model)
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 3, 0.8)
    for _ in range(epochs):
        for n, (x, y) in enumerate(data()):
            ((model(x) - y).square().mean() / accumulate).backward()
            if n % accumulate == accumulate - 1:
                if clip_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                project(model)
    return model


@pytest.mark.parametrize(
    ("manual", "options"),
    [(False, {}), (True, {}), (False, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1})],
    ids=["automatic", "manual", "accumulated and clipped"],
)
def test_a_step_is_the_bare_optimizers_and_then_the_projection(manual: bool, options: Any, tmp_path: Path) -> None:
    module = Module(MAXNORM, manual)
    trainer(tmp_path, 2, **options).fit(module, data())
    expected = by_hand(2, options.get("accumulate_grad_batches", 1), options.get("gradient_clip_val"))
    close(module.net, expected)
    audit(module, MAXNORM)


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_a_resumed_run_goes_on_bit_for_bit(manual: bool, tmp_path: Path) -> None:
    whole, first, second = (Module(COUNTED, manual) for _ in range(3))
    trainer(tmp_path, 4).fit(whole, data())
    stopped = trainer(tmp_path, 2)
    stopped.fit(first, data())
    stopped.save_checkpoint(tmp_path / "checkpoint")
    saved = torch.load(tmp_path / "checkpoint", weights_only=True)
    assert saved["optimizer_states"][0]["projgrad"] == {"step": 8}
    report = ReportCallback(5)
    resumed = trainer(tmp_path, 4, callbacks=[report])
    resumed.fit(second, data(), ckpt_path=tmp_path / "checkpoint", weights_only=True)
    for p, q in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
    assert second.optimizer.state_dict()["projgrad"] == {"step": 16}
    assert [step for step, _ in report.history] == [10, 15]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(precision: Any, tmp_path: Path) -> None:
    module = Module(MAXNORM)
    trainer(tmp_path, 2, precision=precision).fit(module, data())
    audit(module, MAXNORM)
    norms = torch.linalg.vector_norm(module.net[0].weight.double(), dim=1)
    assert float(norms.max()) > 0.29  # it binds


def test_fabric_saves_and_loads_it_as_any_optimizer(tmp_path: Path) -> None:
    fabric = lightning.Fabric(accelerator="cpu", devices=1)

    def made() -> Any:
        model = network()
        optimizer = ProjectedOptimizer(optim.Adam(model.parameters(), lr=0.05), COUNTED, model=model)
        return (*fabric.setup(model, optimizer), optimizer)

    def train(model: Any, optimizer: Any, _: Any) -> None:
        for x, y in data():
            optimizer.zero_grad()
            fabric.backward((model(x) - y).square().mean())
            optimizer.step()

    whole, stopped, resumed = made(), made(), made()
    train(*whole)
    train(*whole)
    train(*stopped)
    fabric.save(tmp_path / "state", {"model": stopped[0], "optimizer": stopped[1]})
    fabric.load(tmp_path / "state", {"model": resumed[0], "optimizer": resumed[1]})
    train(*resumed)
    for p, q in zip(resumed[0].parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(p, q)
    assert resumed[2].state_dict()["projgrad"] == {"step": 8}


# -- averages of the weights --------------------------------------------------------------------------------------


def averaging(kind: str) -> Any:
    return StochasticWeightAveraging(0.05, 1, 2) if kind == "SWA" else EMAWeightAveraging(decay=0.8)


@pytest.mark.parametrize("kind", ["SWA", "EMA"])
def test_averages(kind: str, tmp_path: Path) -> None:
    convex, outside, mended = Module(MAXNORM), Module(SPHERE), Module(SPHERE)
    trainer(tmp_path, 4, callbacks=[averaging(kind)]).fit(convex, data())
    audit(convex, MAXNORM)
    trainer(tmp_path, 4, callbacks=[averaging(kind)]).fit(outside, data())
    with pytest.raises(ValueError, match=r"net.0.weight is .* away from UnitNorm.*project_params\(\)"):
        audit(outside, SPHERE)
    trainer(tmp_path, 4, callbacks=[averaging(kind), ProjectCallback()]).fit(mended, data())
    audit(mended, SPHERE)
    project_params(outside, SPHERE)
    for p, q in zip(outside.parameters(), mended.parameters(), strict=True):
        assert torch.equal(p, q)


def test_what_is_saved_and_validated_under_ema_is_the_average(tmp_path: Path) -> None:
    module = Module(SPHERE)
    saving = ModelCheckpoint(tmp_path, save_last=True)
    fit = trainer(tmp_path, 3, callbacks=[EMAWeightAveraging(decay=0.8), saving], enable_checkpointing=True)
    fit.fit(module, data(), data())
    assert max(module.validated.values()) > 1e-3
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    rules = {"*.weight": pg.UnitNorm(axis=1)}  # a state has no layers, so axes are numbers
    audit(state["current_model_state"], rules)
    with pytest.raises(ValueError, match="net.0.weight is .* away"):
        audit(state["state_dict"], rules)
    project_params(state["state_dict"], rules)
    audit(state["state_dict"], rules)


# -- reports ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_report_is_in_tensorboard(accumulate: int, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    callback = ReportCallback(2)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    options = {"callbacks": [callback], "logger": logger, "accumulate_grad_batches": accumulate}
    trainer(tmp_path, 3, **options).fit(Module(MAXNORM, record=True), data())
    found = events.EventAccumulator(str(tmp_path)).Reload()
    done: list[tuple[float, float, float]] = []  # the first time when it is wrapped, then after each step

    @torch.no_grad()
    def project(model: Any) -> None:
        weight = model[0].weight
        old, most = weight.clone(), float(weight.norm(dim=1).max())
        clip(model, 0.3)
        done.append((max(0.0, most - 0.3), float((weight - old).norm()), float(weight.norm(dim=1).max())))

    by_hand(3, accumulate, project=project)
    steps = range(2, 12 // accumulate + 1, 2)
    assert [step for step, _ in callback.history] == list(steps)
    assert min(done[step][0] for step in steps) > 1e-4
    for n, name in enumerate(("before", "moved", "norm_max")):
        logged = {event.step: event.value for event in found.Scalars(f"constraints/net.0.weight/{name}")}
        assert logged == pytest.approx({step: done[step][n] for step in steps}, rel=1e-5 if n == 2 else 1e-3)
    assert [event.value for event in found.Scalars("constraints/net.2.bias/finite")] == [1.0] * len(steps)
    assert "constraints/net.2.bias/violation" not in found.Tags()["scalars"]  # it is not constrained


class Several(Module):
    """With three optimizers, which all step in each batch."""

    def training_step(self, batch: Any, _: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        inner = [optim.SGD([p], 0.1) for p in (self.net[0].weight, self.net[2].weight, self.net[2].bias)]
        return [ProjectedOptimizer(each, self.rules, model=self, partial=True) for each in inner]


def test_several_optimizers_are_in_one_report_after_so_many_of_their_steps(tmp_path: Path) -> None:
    callback = ReportCallback(4)
    trainer(tmp_path, 2, callbacks=[callback]).fit(Several(MAXNORM, manual=True), data())
    assert [step for step, _ in callback.history] == [6, 9, 12, 18, 21, 24]  # the batches in which 4, 8, ... are made
    rows = callback.history[-1][1]
    assert [(row.name, row.constraint is None) for row in rows] == [
        ("net.0.weight", False),
        ("net.2.weight", False),
        ("net.2.bias", True),
    ]


def test_what_cannot_work_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ProjectCallback must stand behind EMAWeightAveraging"):
        trainer(tmp_path, 1, callbacks=[ProjectCallback(), averaging("EMA")]).fit(Module(SPHERE), data())
    for callback in (ProjectCallback(), ReportCallback()):
        with pytest.raises(ValueError, match=r"no optimizer of the trainer is a ProjectedOptimizer; return one from"):
            trainer(tmp_path, 1, callbacks=[callback]).fit(Module(None), data())
    with pytest.raises(ValueError, match="every=0 is not a positive int"):
        ReportCallback(0)
