"""What a constraint adds to a training step: projecting after it, against weights that are computed from parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations as theirs

import projgrad as pg
from benchmarks.harness import Candidate, Comparison
from projgrad.torch import ProjectedOptimizer

try:
    import geotorch
except ImportError:
    geotorch = None

Register = Callable[[nn.Linear], Any]
Ours = dict[str, pg.Constraint]
Peers = dict[str, Register | None]
BATCH = 64
STEPS = 10  # that are made before


def comparisons(quick: bool = False) -> Iterator[Comparison]:
    """Forward, backward and a step of Adam, for three linear layers, in which all weights are constrained alike."""
    width = 16 if quick else 512
    for title, constraints, peers, goals in _jobs(width // 16):
        candidates = [_projected(name, constraint, width) for name, constraint in constraints.items()]
        candidates.append(_bare("no constraint", None, width))
        candidates += [_bare(name, register, width) for name, register in peers.items() if register]
        size = sum(p.nbytes for p in _model(width).parameters())
        limits = {c.name: 1.0 for c in candidates if c.name in goals}
        title = f"{title}, 3 x Linear({width}, {width})"
        yield Comparison(title, candidates, ["projgrad", "no constraint"], size, limits)


def _jobs(rank: int) -> Iterator[tuple[str, Ours, Peers, tuple[str, ...]]]:
    """What the weights are, how projgrad and others make them so, and which of these it should be quicker than."""
    yield (
        "orthogonal weights",
        {"projgrad": pg.Orthogonal(), "projgrad, newton_schulz": pg.Orthogonal(method="newton_schulz")},
        {
            "torch, orthogonal (exp)": lambda layer: theirs.orthogonal(layer, orthogonal_map="matrix_exp"),
            "torch, orthogonal (Cayley)": lambda layer: theirs.orthogonal(layer, orthogonal_map="cayley"),
            "torch, orthogonal (Householder)": lambda layer: theirs.orthogonal(layer, orthogonal_map="householder"),
            "geotorch, orthogonal": geotorch and (lambda layer: geotorch.orthogonal(layer, "weight")),
        },
        (
            "torch, orthogonal (exp)",
            "torch, orthogonal (Cayley)",
            "torch, orthogonal (Householder)",
            "geotorch, orthogonal",
        ),
    )
    # torch's divides by an estimate of the norm, which is neither exact nor the nearest point; "gram" is more like it
    yield (
        "spectral norm of at most 1",
        {"projgrad": pg.SpectralNorm(1.0), "projgrad, gram": pg.SpectralNorm(1.0, method="gram", steps=4)},
        {"torch, spectral_norm (a power step)": theirs.spectral_norm},
        (),
    )
    yield (
        "rows of norm 1",
        {"projgrad": pg.UnitNorm(axis=1)},
        {
            "torch, weight_norm": _unit_rows,
            "geotorch, sphere": geotorch and (lambda layer: geotorch.sphere(layer, "weight")),
        },
        ("torch, weight_norm", "geotorch, sphere"),
    )
    yield (
        f"rank of at most {rank}",
        {"projgrad": pg.Rank(rank)},
        {"geotorch, low_rank": geotorch and (lambda layer: geotorch.low_rank(layer, "weight", rank))},
        ("geotorch, low_rank",),
    )


def _model(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(part for _ in range(3) for part in (nn.Linear(width, width), nn.ReLU())))


def _unit_rows(layer: nn.Linear) -> None:
    theirs.weight_norm(layer, dim=0)
    norms = layer.parametrizations["weight"].original0  # type: ignore[union-attr,index]
    norms.requires_grad_(False).fill_(1.0)


def _bare(name: str, register: Register | None, width: int) -> Candidate:
    model = _model(width)
    for layer in list(model):
        if register is not None and isinstance(layer, nn.Linear):
            register(layer)
    return _training(name, model, torch.optim.Adam([p for p in model.parameters() if p.requires_grad]))


def _projected(name: str, constraint: pg.Constraint, width: int) -> Candidate:
    model = _model(width)
    adam = torch.optim.Adam(model.parameters())
    return _training(name, model, ProjectedOptimizer(adam, {"*.weight": constraint}, model=model))


def _training(name: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> Candidate:
    width = model[0].in_features  # type: ignore[index]
    x = torch.randn((BATCH, width), generator=torch.Generator().manual_seed(1))

    def step() -> None:
        optimizer.zero_grad()
        (model(x) - x).square().mean().backward()
        optimizer.step()

    for _ in range(STEPS if width > 16 else 1):
        step()
    return Candidate(name, step)
