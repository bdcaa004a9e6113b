"""torchao: optimizers that keep their state in few bits, and weights in few bits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from torch import nn, optim
from torchao.float8 import convert_to_float8_training
from torchao.optim import AdamW4bit, AdamW8bit, AdamWFp8, _AdamW
from torchao.prototype.quantized_training import (
    bitnet_training,
    int8_mixed_precision_training,
    int8_weight_only_quantized_training,
)
from torchao.quantization import quantize_

from projgrad.torch import ProjectedOptimizer, audit, project_params

pytestmark = pytest.mark.usefixtures("one_thread")

RULES: dict[str, Any] = {"*.weight": pg.MaxNorm(0.3)}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64))


@torch.no_grad()
def clip(model: Any) -> None:
    for layer in (model[0], model[2]):
        norm = torch.linalg.vector_norm(layer.weight, dim=1, keepdim=True, dtype=torch.float64)
        layer.weight.mul_((0.3 / norm).clamp(max=1.0))


def train(model: Any, optimizer: Any, after: Any = lambda model: None) -> Any:
    random = torch.Generator().manual_seed(1)
    for _ in range(3):
        optimizer.zero_grad()
        x = torch.randn(8, 64, generator=random).to(model[0].weight.dtype)
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        after(model)
    return model


@pytest.mark.slow  # each is compiled
@pytest.mark.parametrize("kind", [AdamW8bit, AdamW4bit, AdamWFp8], ids=lambda kind: kind.__name__)
def test_a_step_is_that_of_the_low_bit_optimizer_and_then_the_projection(kind: Any) -> None:
    model, other = network(), network()
    optimizer = ProjectedOptimizer(kind(model.parameters(), lr=0.01), RULES, model=model)
    train(model, optimizer)
    clip(other)
    train(other, kind(other.parameters(), lr=0.01), clip)
    assert any(type(x) is not torch.Tensor for x in optimizer.state[model[0].weight].values())
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        # a state of few bits may be rounded to a neighbour
        assert float((p - q).abs().mean()) < 1e-5
    audit(model, RULES)


@pytest.mark.slow
def test_weights_that_are_rounded_at_random() -> None:
    model = network().bfloat16()
    optimizer = _AdamW(model.parameters(), lr=0.01, bf16_stochastic_round=True)
    audit(train(model, ProjectedOptimizer(optimizer, RULES, model=model)), RULES)
    assert model[0].weight.dtype == torch.bfloat16


def test_float8_layers_keep_their_weights_in_float32() -> None:
    model = convert_to_float8_training(network())
    assert type(model[0]) is not nn.Linear
    optimizer = ProjectedOptimizer(optim.SGD(model.parameters(), 0.1), RULES, model=model)
    assert [(entry.name, entry.constraint.axis) for entry in optimizer.plan] == [("0.weight", 1), ("2.weight", 1)]
    audit(model, RULES)


@pytest.mark.parametrize("make", [int8_mixed_precision_training, bitnet_training], ids=lambda make: make.__name__)
def test_weights_that_are_rounded_only_to_compute_are_constrained(make: Any) -> None:
    model, other = network(), network()
    for each in (model, other):
        quantize_(each, make())
    assert type(model[0].weight) is not nn.Parameter
    train(model, ProjectedOptimizer(optim.SGD(model.parameters(), 0.1), RULES, model=model))
    audit(model, RULES)
    clip(other)
    train(other, optim.SGD(other.parameters(), 0.1), clip)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        # what is rounded is rounded to a neighbour now and then
        assert float((p - q).abs().mean()) < 1e-4


@pytest.mark.parametrize("constraint", [pg.MaxNorm(0.3), pg.NonNeg(), pg.Simplex()], ids=repr)
def test_weights_that_are_kept_in_few_bits_are_refused(constraint: Any) -> None:
    model = network()
    quantize_(model, int8_weight_only_quantized_training())
    inner = optim.SGD(model.parameters(), 0.1)
    rules = {"*.weight": constraint, "*.bias": pg.NonNeg()}
    message = r"0.weight: Int8QuantizedTrainingLinearWeight, such as a quantized weight, cannot be projected.*None"
    with pytest.raises(TypeError, match=message):
        ProjectedOptimizer(inner, rules, model=model)
    with pytest.raises(TypeError, match=message):
        project_params(model, rules)
    optimizer = ProjectedOptimizer(inner, {**rules, "*.weight": None}, model=model)
    train(model, optimizer)
    assert bool((model[0].bias >= 0).all())


def test_their_metric_is_not_known() -> None:
    model = network()
    with pytest.raises(ValueError, match="AdamW8bit.*register_metric"):
        ProjectedOptimizer(AdamW8bit(model.parameters()), RULES, model=model, metric="optimizer")
