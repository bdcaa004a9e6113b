"""What a constraint adds to a step of training in torch: to a large network, many small tensors, or none.

The first candidate is what the projection adds: a step with it less one without, measured one after the other, in turns
the one or the other first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any

import torch

import projgrad as pg
from benchmarks.harness import Candidate, Comparison, Elapsed, floors
from projgrad.torch import ProjectedOptimizer

RADIUS = 1.0
RATE = 1e-9  # of learning: so that no step changes which rows exceed

Named = list[tuple[str, torch.nn.Parameter]]


def gpt2_step(quick: bool = False) -> Iterator[Comparison]:
    """A step of Adam on tensors of the shapes of GPT-2, 124 M entries, every matrix in a max-norm."""
    torch.manual_seed(0)
    named = _gpt2(64, 500, 32, 2) if quick else _gpt2(768, 50257, 1024, 12)
    matrices = [x for _, x in named if x.ndim == 2]
    rules = {name: pg.MaxNorm(RADIUS, axis=1) for name, x in named if x.ndim == 2}
    flat = torch.ones(sum(x.numel() for x in matrices))
    for what, norm, least, most in (
        ("no row exceeds", RADIUS / 2, 0.07, 0.25),
        ("all rows exceed", 2 * RADIUS, 0.12, 0.45),
    ):
        for kind, limit in (("fused", most), ("default", least)):
            bare, inner = (torch.optim.Adam(named, lr=RATE, fused=kind == "fused") for _ in range(2))
            bare.step()
            inner.state = bare.state
            projected = ProjectedOptimizer(inner, rules)
            yield Comparison(
                f"GPT-2, {sum(x.numel() for _, x in named) / 1e6:.0f} M, {kind} Adam, {what}",
                [
                    *_extra(projected, bare, _scaled(matrices, norm)),
                    Candidate("by hand: renorm_ of each", _each(matrices, _renorm), _scaled(matrices, norm)),
                    *floors(flat),
                ],
                ["step without"],
                sum(x.nbytes for x in matrices),
                {"step without": limit},
            )
            bare.state.clear()


def small_tensors(quick: bool = False) -> Iterator[Comparison]:
    """A foreach step of SGD on 300 tensors of 64 x 64, each in a set."""
    torch.manual_seed(0)
    many = 10 if quick else 300
    flat = torch.ones(many * 64 * 64)
    for rule, norm, what in (
        (pg.MaxNorm(RADIUS, axis=1), 2 * RADIUS, "all rows exceed"),
        (pg.MaxNorm(RADIUS, axis=1), RADIUS / 2, "no row exceeds"),
        (pg.NonNeg(), 1.0, "half of the entries negative"),
        (pg.Simplex(RADIUS, axis=1), 1.0, "random"),
    ):
        for compiled in (False,) if quick else (False, True):
            named = _random((64, 64) for _ in range(many))
            tensors = [x for _, x in named]
            bare, inner = (torch.optim.SGD(named, lr=RATE, foreach=True) for _ in range(2))
            projected = ProjectedOptimizer(inner, {"*": rule}, compile=compiled)
            start = time.perf_counter()
            projected.step()
            seconds = time.perf_counter() - start
            candidates = _extra(projected, bare, _scaled(tensors, norm))
            if compiled:
                candidates.append(Candidate("first step, with compiling", lambda s=seconds: Elapsed(s)))  # type: ignore[misc]
            elif isinstance(rule, pg.MaxNorm):
                for name, call in {
                    "by hand: norm, mul_ of each": _each(tensors, _by_norm),
                    "by hand: renorm_ of each": _each(tensors, _renorm),
                    "by hand: stacked, foreach_mul_": lambda t=tensors: _stacked(t),  # type: ignore[misc]
                }.items():
                    candidates.append(Candidate(name, call, _scaled(tensors, norm)))
            goals = {"step without": 1.0 if compiled else 1.6} if isinstance(rule, pg.MaxNorm) else {}
            yield Comparison(
                f"{many} tensors of 64 x 64, SGD, {rule}, {what}{', compile=True' * compiled}",
                [*candidates, *floors(flat)],
                ["step without"],
                flat.nbytes,
                goals,
            )


def nothing_to_project(quick: bool = False) -> Iterator[Comparison]:
    """A step through `ProjectedOptimizer` with nothing to project: nothing tagged, or not yet due."""
    torch.manual_seed(0)
    for many, size in ((10, 64),) if quick else ((300, 64), (50, 512)):
        for rule, what in ((None, "nothing tagged"), (pg.Tag(pg.NonNeg(), every=10**9), "nothing due")):
            named = _random((size, size) for _ in range(many))
            for make, name in ((torch.optim.SGD, "SGD"), (torch.optim.Adam, "Adam")):
                bare, inner = (make(named, lr=RATE, foreach=True) for _ in range(2))
                bare.step()
                inner.state = bare.state  # the same memory
                projected = ProjectedOptimizer(inner, {"*": rule})
                yield Comparison(
                    f"{many} tensors of {size} x {size}, {name}, {what}",
                    [Candidate("projgrad", projected.step), Candidate("step without", bare.step)],
                    ["step without"],
                    sum(x.nbytes for _, x in named),
                    {"step without": 1.02} if rule is None else {},
                )


def _extra(projected: Any, bare: Any, restore: Callable[[], object]) -> list[Candidate]:
    """What the projection adds to a step, the step with it, and the one without."""
    first = cycle((True, False))

    def seconds(step: Callable[[], object]) -> float:
        restore()
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    def extra() -> Elapsed:
        if next(first):
            return Elapsed(seconds(projected.step) - seconds(bare.step))
        return Elapsed(-(seconds(bare.step) - seconds(projected.step)))

    return [
        Candidate("projgrad", extra),
        Candidate("step with", projected.step, restore),
        Candidate("step without", bare.step, restore),
    ]


def _gpt2(width: int, words: int, length: int, layers: int) -> Named:
    """Tensors of the shapes that GPT-2 has, with gradients."""
    shapes: list[tuple[int, ...]] = [(words, width), (length, width)]
    for _ in range(layers):
        shapes += [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,)]
        shapes += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return _random([*shapes, (width,), (width,)])


def _random(shapes: Any) -> Named:
    named = [(f"p{i}", torch.nn.Parameter(torch.randn(shape))) for i, shape in enumerate(shapes)]
    for _, x in named:
        x.grad = torch.randn(x.shape)
    return named


def _scaled(tensors: Sequence[torch.Tensor], norm: float) -> Callable[[], None]:
    @torch.no_grad()
    def restore() -> None:
        for x in tensors:
            x.mul_(norm / torch.linalg.vector_norm(x, dim=1, keepdim=True))

    return restore


def _each(tensors: Sequence[torch.Tensor], function: Callable[[torch.Tensor], object]) -> Callable[[], None]:
    @torch.no_grad()
    def call() -> None:
        for x in tensors:
            function(x)

    return call


def _renorm(x: torch.Tensor) -> None:
    x.renorm_(2, 0, RADIUS)


def _by_norm(x: torch.Tensor) -> None:
    x.mul_((RADIUS / torch.linalg.vector_norm(x, dim=1, keepdim=True)).clamp_(max=1))


@torch.no_grad()
def _stacked(tensors: Sequence[torch.Tensor]) -> None:
    norms = torch.linalg.vector_norm(torch.stack(list(tensors)), dim=2, keepdim=True)
    torch._foreach_mul_(list(tensors), (RADIUS / norms).clamp_(max=1).unbind())
