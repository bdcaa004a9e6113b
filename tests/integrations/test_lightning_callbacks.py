"""Lightning: reports in TensorBoard, and averaged weights that are in their sets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")
lightning: Any = pytest.importorskip("lightning")
events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from projgrad.lightning import ProjectCallback, ReportCallback
from projgrad.torch import ProjectedOptimizer

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::UserWarning")]

BATCHES, EVERY = 4, 2


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def data() -> Any:
    random = torch.Generator().manual_seed(0)
    tensors = torch.randn(8 * BATCHES, 6, generator=random), torch.randn(8 * BATCHES, 3, generator=random)
    return DataLoader(TensorDataset(*tensors), batch_size=8)


class Module(lightning.LightningModule):
    def __init__(self, constraint: Any) -> None:
        super().__init__()
        self.net = network()
        self.constraint = constraint

    def training_step(self, batch: Any, _: int) -> Any:
        return (self.net(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> Any:
        sgd = optim.SGD(self.parameters(), lr=0.2)
        if self.constraint is None:
            return sgd
        return ProjectedOptimizer(sgd, {"net.0.weight": self.constraint}, model=self, record=True)


def fit(folder: Path, constraint: Any, *callbacks: Any, logger: Any = False) -> Any:
    module = Module(constraint)
    lightning.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        max_epochs=3,
        callbacks=list(callbacks),
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    ).fit(module, data())
    return module.net


def test_the_report_is_in_tensorboard(tmp_path: Path) -> None:
    callback = ReportCallback(EVERY)
    fit(tmp_path, pg.MaxNorm(0.3), callback, logger=TensorBoardLogger(tmp_path, name="", version=""))
    found = events.EventAccumulator(str(tmp_path)).Reload()

    def logged(name: str) -> dict[int, float]:
        return {event.step: event.value for event in found.Scalars(f"constraints/{name}")}

    model = network()
    weight = model[0].weight
    optimizer = optim.SGD(model.parameters(), lr=0.2)
    before, moved, most = {}, {}, {}
    for step in range(3 * BATCHES + 1):  # the first time, as when it is wrapped
        with torch.no_grad():
            norms, old = weight.norm(dim=1, keepdim=True), weight.clone()
            weight.mul_((0.3 / norms).clamp(max=1))
            if step % EVERY == 0 and step > 0:
                before[step] = max(0.0, float(norms.max()) - 0.3)
                moved[step], most[step] = float((weight - old).norm()), float(weight.norm(dim=1).max())
        for x, y in list(data())[step % BATCHES :][:1]:
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
    assert min(before.values()) > 1e-4
    assert logged("net.0.weight/before") == pytest.approx(before, rel=1e-3)
    assert logged("net.0.weight/moved") == pytest.approx(moved, rel=1e-3)
    assert logged("net.0.weight/norm_max") == pytest.approx(most, rel=1e-5)
    assert set(logged("net.2.bias/finite").values()) == {1.0}  # unconstrained ones, too
    assert "constraints/net.2.bias/violation" not in found.Tags()["scalars"]
    assert [step for step, _ in callback.history] == list(before)


AVERAGES: dict[str, Callable[[], Any]] = {
    "swa": lambda: StochasticWeightAveraging(swa_lrs=0.2, swa_epoch_start=1),
    "ema": lambda: EMAWeightAveraging(decay=0.5),
}


@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_of_unit_vectors_is_one_at_the_end(average: str, tmp_path: Path) -> None:
    def away(*callbacks: Any) -> float:
        net = fit(tmp_path, pg.UnitNorm(), AVERAGES[average](), *callbacks)
        return float((net[0].weight.norm(dim=1) - 1).abs().max())

    assert away() > 1e-4  # this is what the callback is for
    assert away(ProjectCallback()) < 1e-6


def test_what_cannot_work_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ProjectCallback must stand behind EMAWeightAveraging"):
        fit(tmp_path, pg.UnitNorm(), ProjectCallback(), AVERAGES["ema"]())
    for callback in (ProjectCallback(), ReportCallback()):
        with pytest.raises(ValueError, match=r"no optimizer of the trainer is a ProjectedOptimizer; return one from"):
            fit(tmp_path, None, callback)
    with pytest.raises(ValueError, match="every=0 is not a positive int"):
        ReportCallback(0)
