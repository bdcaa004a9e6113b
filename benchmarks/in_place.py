"""Norms and bounds in place: projgrad against short code written by hand, in the memory of the parameter too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.harness import Candidate, Comparison, floors
from projgrad import Box, Constraint, L2Ball, LInfBall, MinMaxNorm, NonNeg, UnitNorm
from projgrad.torch import project_

Hand = Callable[[torch.Tensor], object]

LARGE = 4096
NEAR = 1.1  # projgrad's time over that of the best code by hand


def norms(w: torch.Tensor, axis: int) -> torch.Tensor:
    """In float32 for the short types, whose own precision is too low."""
    short = w.dtype in (torch.float16, torch.bfloat16)
    return torch.linalg.vector_norm(w, dim=axis, keepdim=True, dtype=torch.float32 if short else None)


def squared(w: torch.Tensor, axis: int) -> torch.Tensor:
    """The other way to a norm, with an array as large as `w`: quicker along columns."""
    wide = w if w.dtype == torch.float64 else w.float()
    return wide.square().sum(axis, keepdim=True).sqrt_()


def comparisons(quick: bool = False) -> Iterator[Comparison]:
    """Every set on a matrix of which all rows, or half of the entries, are outside; norms in other types as well."""
    torch.manual_seed(0)
    n = 128 if quick else LARGE
    values = torch.randn(n, n)
    for axis in (1, 0):
        for name, constraint, hand in _shells(axis):
            yield _comparison(name, constraint, hand, values, axis)
    for name, constraint, hand in _bounds(n):
        yield _comparison(name, constraint, hand, values, None)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        for axis in (1, 0):
            for name, constraint, hand in _shells(axis):
                if name == "UnitNorm":
                    yield _comparison(name, constraint, hand, values.to(dtype), axis)


def _shells(axis: int) -> Iterator[tuple[str, Constraint, dict[str, Hand]]]:
    def scaled(low: float, high: float, norm: Callable[[torch.Tensor, int], torch.Tensor]) -> Hand:
        def scale(w: torch.Tensor) -> object:
            of_w = norm(w, axis)
            return w.mul_(of_w.clamp(low, high).div_(of_w))

        return scale

    for name, constraint, low, high in (
        ("UnitNorm", UnitNorm(axis=axis), 1.0, 1.0),
        ("MinMaxNorm(0.5, 1)", MinMaxNorm(0.5, 1.0, axis=axis), 0.5, 1.0),
        ("L2Ball(1)", L2Ball(1.0, axis=axis), 0.0, 1.0),
    ):
        hand = {"vector_norm, mul_": scaled(low, high, norms), "square, sum, mul_": scaled(low, high, squared)}
        if name == "UnitNorm":
            hand["vector_norm, div_"] = lambda w: w.div_(norms(w, axis))
        yield name, constraint, hand


def _bounds(n: int) -> Iterator[tuple[str, Constraint, dict[str, Hand]]]:
    lower, upper = -torch.rand(1, n) - 0.1, torch.rand(1, n) + 0.1
    yield "NonNeg", NonNeg(), {"clamp_": lambda w: w.clamp_(min=0), "relu_": lambda w: w.relu_()}
    yield "Box(-0.5, 0.5)", Box(-0.5, 0.5), {"clamp_": lambda w: w.clamp_(-0.5, 0.5)}
    yield "LInfBall(0.5)", LInfBall(0.5), {"clamp_": lambda w: w.clamp_(-0.5, 0.5)}
    yield "Box per column", Box(lower, upper), {"clamp_": lambda w: w.clamp_(lower, upper)}


def _comparison(
    name: str, constraint: Constraint, hand: dict[str, Hand], values: torch.Tensor, axis: int | None
) -> Comparison:
    start = values if axis is None else values / norms(values, axis).to(values.dtype) * 2
    w = start.clone()

    def restore() -> None:
        w.copy_(start)

    candidates = [Candidate("projgrad", lambda: project_(w, constraint), restore)]
    for of_hand, call in hand.items():
        candidates.append(Candidate(of_hand, torch.no_grad()(lambda call=call: call(w)), restore))
    groups = {1: ", rows (axis=1)", 0: ", columns (axis=0)", None: ""}[axis]
    kind = str(values.dtype).removeprefix("torch.")
    title = f"{name}, {start.shape[0]} x {start.shape[1]} {kind}{groups}"
    limits = dict.fromkeys(hand, NEAR) if len(values) == LARGE else {}
    references = ["projgrad", "floor: read, write (mul_)"]
    return Comparison(title, [*candidates, *floors(w)], references, start.nbytes, limits)
