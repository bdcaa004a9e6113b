"""Max-norm of a matrix in place: projgrad against the formula of Keras, `torch.renorm_` and code written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.harness import Candidate, Comparison, floors
from projgrad import MaxNorm
from projgrad.torch import project_

RADIUS = 1.0
LARGE = (4096, 4096)

# how many groups exceed the radius, of one and of all
SHARES = {"all exceed": 1, "one in twenty exceeds": 20, "none exceeds": 0}


@torch.no_grad()
def keras_formula(w: torch.Tensor, axis: int) -> torch.Tensor:
    """What Keras's constraint of this name computes, and the assignment that follows."""
    norms = torch.sqrt(torch.sum(torch.square(w), axis, keepdim=True))
    desired = torch.clamp(norms, 0, RADIUS)
    return w.copy_(w * (desired / (1e-7 + norms)))


@torch.no_grad()
def by_hand(w: torch.Tensor, axis: int, look: bool) -> torch.Tensor:
    """Short code in place: one reduction and one multiplication, which is left out where it changes nothing."""
    norms = torch.linalg.vector_norm(w, dim=axis, keepdim=True)
    if look and not bool((norms > RADIUS).any()):
        return w
    return w.mul_((RADIUS / norms).clamp_(max=1))


def comparisons(quick: bool = False) -> Iterator[Comparison]:
    """Large and small; groups along either axis; all, some or none of them exceeding the radius."""
    torch.manual_seed(0)
    for shape in ((256, 128) if quick else LARGE, (64, 64)):
        values = torch.randn(shape)
        for axis in (1, 0):
            for share in SHARES:
                yield _comparison(_start(values, axis, share), axis, share)


def _start(values: torch.Tensor, axis: int, share: str) -> torch.Tensor:
    """Groups of twice and of half the radius."""
    norms = torch.full((values.shape[1 - axis],), RADIUS / 2)
    if SHARES[share]:
        norms[:: SHARES[share]] = 2 * RADIUS
    return values / torch.linalg.vector_norm(values, dim=axis, keepdim=True) * norms.unsqueeze(axis)


def _comparison(start: torch.Tensor, axis: int, share: str) -> Comparison:
    w, constraint, large = start.clone(), MaxNorm(RADIUS, axis=axis), start.shape == LARGE

    def restore() -> None:
        w.copy_(start)

    calls: dict[str, Callable[[], object]] = {
        "projgrad": lambda: project_(w, constraint),
        "torch.renorm_": lambda: w.renorm_(2, 1 - axis, RADIUS),
        "vector_norm, mul_": lambda: by_hand(w, axis, look=False),
        "vector_norm, mul_ if any": lambda: by_hand(w, axis, look=True),
        "Keras formula": lambda: keras_formula(w, axis),
    }
    candidates = [Candidate(name, call, restore) for name, call in calls.items()]
    limits = {"torch.renorm_": 1.05 if SHARES[share] else 0.6, "Keras formula": 1 / 6} if large else {}
    if axis == 0:
        candidates.append(_of_rows(start, share))
        limits |= {"projgrad, rows": 1.5} if large and SHARES[share] < 2 else {}  # a few rows can be picked out
    # the least that any method must do: read all, and write all where groups exceed
    floor = "floor: read, write (mul_)" if SHARES[share] == 1 else "floor: read (sum)"
    groups = "rows (axis=1)" if axis == 1 else "columns (axis=0)"
    title = f"MaxNorm, {start.shape[0]} x {start.shape[1]} float32, {groups}, {share}"
    return Comparison(title, [*candidates, *floors(w)], ["projgrad", floor], start.nbytes, limits)


def _of_rows(start: torch.Tensor, share: str) -> Candidate:
    """The same work on rows of an array as large."""
    like = _start(start, 1, share)
    w, constraint = like.clone(), MaxNorm(RADIUS, axis=1)
    return Candidate("projgrad, rows", lambda: project_(w, constraint), lambda: w.copy_(like))
