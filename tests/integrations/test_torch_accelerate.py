"""Accelerate and the Trainer of Transformers, which passes its optimizer through it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState
from torch import nn, optim
from torch.utils.data import DataLoader, Dataset

from projgrad.torch import ProjectedOptimizer, audit

pytestmark = pytest.mark.usefixtures("one_thread")

MAXNORM: dict[str, Any] = {"*.weight": pg.MaxNorm(0.3)}
COUNTED: dict[str, Any] = {"*.weight": pg.MaxNorm(pg.Schedule({0: 0.2, 20: 0.8}), rate=0.5).every(3)}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield
    AcceleratorState._reset_state(True)


class Network(nn.Module):
    """As Transformers expects it: the loss comes with the output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.1), nn.Linear(5, 3))

    def forward(self, x: Any, labels: Any) -> dict[str, Any]:
        outputs = self.layers(x)
        return {"loss": (outputs - labels).square().mean(), "logits": outputs}


class Points(Dataset):
    """32 random points."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(32, 6, generator=random), torch.randn(32, 3, generator=random)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, n: int) -> dict[str, Any]:
        return {"x": self.x[n], "labels": self.y[n]}


@torch.no_grad()
def clip(model: Any) -> None:
    for layer in (model.layers[0], model.layers[3]):
        layer.weight.mul_((0.3 / torch.linalg.vector_norm(layer.weight, dim=1, keepdim=True)).clamp(max=1.0))


def same(model: Any, other: Any) -> bool:
    return all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def close(model: Any, other: Any) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


# -- accelerate ---------------------------------------------------------------------------------------------------


class Run:
    """A training loop as accelerate wants it; without rules, of a bare optimizer and projections by hand."""

    def __init__(self, rules: Any = None, accumulate: int = 1, **options: Any) -> None:
        AcceleratorState._reset_state(True)
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate, **options)
        self.by_hand = rules is None
        model = Network()
        optimizer: Any = optim.Adam(model.parameters(), 0.05)
        if self.by_hand:
            clip(model)
        else:
            self.projected = optimizer = ProjectedOptimizer(optimizer, rules, model=model)
        scheduler = optim.lr_scheduler.StepLR(optimizer, 3, 0.8)
        prepared = self.accelerator.prepare(model, optimizer, scheduler, DataLoader(Points(), batch_size=8))
        self.model, self.optimizer, self.scheduler, self.data = prepared

    def train(self, epochs: int) -> Run:
        for _ in range(epochs):
            for batch in self.data:
                with self.accelerator.accumulate(self.model):
                    self.accelerator.backward(self.model(**batch)["loss"])
                    if self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                    self.optimizer.step()
                    self.scheduler.step()
                    self.optimizer.zero_grad()
                if self.by_hand and self.accelerator.sync_gradients:
                    clip(self.model)
        return self


@pytest.mark.parametrize("options", [{}, {"accumulate": 4}, {"mixed_precision": "bf16", "accumulate": 2}], ids=str)
def test_prepared_it_is_the_bare_optimizer_with_the_projection(options: Any) -> None:
    expected = Run(**options).train(3).model
    run = Run(MAXNORM, **options)
    assert isinstance(run.optimizer, accelerate.optimizer.AcceleratedOptimizer)
    audit(run.train(3).model, MAXNORM)
    close(run.model, expected)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_is_resumed_from_save_state_goes_on_bit_for_bit(accumulate: int, tmp_path: Path) -> None:
    whole = Run(COUNTED, accumulate).train(4)
    Run(COUNTED, accumulate).train(2).accelerator.save_state(tmp_path)
    state = torch.load(next(tmp_path.glob("optimizer*")), weights_only=True)
    assert state["projgrad"] == {"step": 8 // accumulate}
    run = Run(COUNTED, accumulate)
    run.accelerator.load_state(tmp_path)
    assert same(run.train(2).model, whole.model)
    assert run.projected.state_dict()["projgrad"] == {"step": 16 // accumulate}


def test_what_is_prepared_already_is_refused() -> None:
    run = Run()
    with pytest.raises(TypeError, match=r"AcceleratedOptimizer only passes on.*accelerator.prepare\(\)"):
        ProjectedOptimizer(run.optimizer, MAXNORM, model=run.model)


# -- the Trainer of Transformers ----------------------------------------------------------------------------------


def trained(folder: Path, rules: Any = None, *, stop: int = 0, resume: Any = None, **options: Any) -> Any:
    """A model, and the steps that are counted; without rules, of a bare optimizer and projections by hand."""
    transformers: Any = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()

    class Clip(transformers.TrainerCallback):
        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            clip(model)

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
            control.should_save = control.should_training_stop = state.global_step == stop

    model = Network()
    optimizer: Any = optim.AdamW(model.parameters(), lr=0.05)
    callbacks: list[Any] = [Stop()] if stop else []
    if rules is None:
        clip(model)
        callbacks.append(Clip())
    else:
        optimizer = ProjectedOptimizer(optimizer, rules, model=model)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=4,
        per_device_train_batch_size=8,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
        **options,
    )
    scheduler = optim.lr_scheduler.StepLR(optimizer, 3, 0.8)
    trainer = transformers.Trainer(
        model, arguments, train_dataset=Points(), optimizers=(optimizer, scheduler), callbacks=callbacks
    )
    trainer.train(resume_from_checkpoint=resume)
    return model, optimizer.state_dict().get("projgrad")


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2, "bf16": True}], ids=str)
def test_given_to_the_trainer_it_is_the_bare_optimizer_with_the_projection(options: Any, tmp_path: Path) -> None:
    model, _ = trained(tmp_path, MAXNORM, **options)
    audit(model, MAXNORM)
    close(model, trained(tmp_path, **options)[0])


def test_a_run_that_the_trainer_resumes_goes_on_bit_for_bit(tmp_path: Path) -> None:
    options = {"gradient_accumulation_steps": 2}
    whole, steps = trained(tmp_path, COUNTED, **options)
    assert steps == {"step": 8}
    trained(tmp_path, COUNTED, stop=5, **options)
    checkpoint = tmp_path / "checkpoint-5"
    assert torch.load(checkpoint / "optimizer.pt", weights_only=True)["projgrad"] == {"step": 5}
    resumed, counted = trained(tmp_path, COUNTED, resume=str(checkpoint), **options)
    assert same(resumed, whole)
    assert counted == steps
