"""axis="incoming" per layer of PyTorch: the axes, and that they are the weights that feed one unit."""

from __future__ import annotations

from typing import Any

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch import nn

from projgrad.torch import violations

KNOWN = [
    (nn.Linear(3, 4), "weight", 1),
    (nn.Bilinear(3, 5, 4), "weight", (1, 2)),
    (nn.Conv1d(4, 6, 3), "weight", (1, 2)),
    (nn.Conv2d(4, 6, 3), "weight", (1, 2, 3)),
    (nn.Conv2d(4, 6, 3, groups=2), "weight", (1, 2, 3)),
    (nn.Conv3d(4, 6, 3), "weight", (1, 2, 3, 4)),
    (nn.ConvTranspose1d(4, 6, 3), "weight", (0, 2)),
    (nn.ConvTranspose2d(4, 6, 3), "weight", (0, 2, 3)),
    (nn.ConvTranspose3d(4, 6, 3), "weight", (0, 2, 3, 4)),
    (nn.Embedding(7, 3), "weight", 1),
    (nn.EmbeddingBag(7, 3), "weight", 1),
    (nn.RNN(3, 4, num_layers=2, bidirectional=True), "weight_ih_l0", 1),
    (nn.RNN(3, 4, num_layers=2, bidirectional=True), "weight_hh_l1_reverse", 1),
    (nn.LSTM(3, 4, proj_size=2), "weight_hr_l0", 1),
    (nn.LSTM(3, 4), "weight_hh_l0", 1),
    (nn.GRU(3, 4), "weight_ih_l0", 1),
    (nn.GRUCell(3, 4), "weight_ih", 1),
    (nn.MultiheadAttention(4, 2), "in_proj_weight", 1),
    (nn.MultiheadAttention(4, 2), "out_proj.weight", 1),
    (nn.MultiheadAttention(4, 2, kdim=3, vdim=5), "k_proj_weight", 1),
]

UNKNOWN = [
    (nn.Linear(3, 4), "bias"),
    (nn.LSTM(3, 4), "bias_ih_l0"),
    (nn.LayerNorm(4), "weight"),
    (nn.BatchNorm2d(4), "weight"),
    (nn.PReLU(), "weight"),
    (nn.MultiheadAttention(4, 2, add_bias_kv=True), "bias_k"),
    (nn.ConvTranspose2d(4, 6, 3, groups=2), "weight"),
]


def show(value: Any) -> str:
    return type(value).__name__ if isinstance(value, nn.Module) else str(value)


@pytest.mark.parametrize(("layer", "name", "axis"), KNOWN, ids=show)
def test_known_layers(layer: nn.Module, name: str, axis: Any) -> None:
    found = violations(layer, {name: pg.UnitNorm()})
    assert found == violations(layer, {name: pg.UnitNorm(axis=axis)})
    assert found[name] > 0


@pytest.mark.parametrize(("layer", "name"), UNKNOWN, ids=show)
def test_what_is_not_known_asks_for_axes(layer: nn.Module, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*give axes as numbers"):
        violations(layer, {name: pg.UnitNorm()})


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(3, 4), torch.ones(1, 3)),
        (nn.Conv2d(4, 6, 3, groups=2), torch.ones(1, 4, 3, 3)),
        (nn.ConvTranspose2d(4, 6, 2), torch.ones(1, 4, 1, 1)),
    ],
    ids=show,
)
def test_scaling_one_group_changes_one_unit(layer: Any, x: Any) -> None:
    # which outputs depend on which weights, found by changing a group of weights and looking
    axis: Any = next(axis for known, name, axis in KNOWN if type(known) is type(layer) and name == "weight")
    axes = (axis,) if isinstance(axis, int) else axis
    (unit_axis,) = set(range(layer.weight.ndim)) - set(axes)
    with torch.no_grad():
        before = layer(x)
        layer.weight.select(unit_axis, 2).mul_(2)
        changed = (layer(x) != before).flatten(2).any(-1) if before.ndim > 2 else layer(x) != before
    assert changed[0].nonzero().flatten().tolist() == [2]
