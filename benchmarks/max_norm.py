"""Max-norm of a matrix in place: projgrad against the formula of Keras, `torch.renorm_` and code written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.harness import Candidate, Comparison
from projgrad import MaxNorm
from projgrad.torch import project_

RADIUS = 1.0


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
    """Large and small; groups along either axis; all or none of them exceeding the radius."""
    torch.manual_seed(0)
    for shape in ((256, 128) if quick else (4096, 4096), (64, 64)):
        start = torch.randn(shape)
        for axis in (1, 0):
            unit = start / torch.linalg.vector_norm(start, dim=axis, keepdim=True)
            yield _comparison(unit * 2 * RADIUS, axis, exceed=True)
            yield _comparison(unit * RADIUS / 2, axis, exceed=False)


def _comparison(start: torch.Tensor, axis: int, exceed: bool) -> Comparison:
    w, constraint = start.clone(), MaxNorm(RADIUS, axis=axis)

    def restore() -> None:
        w.copy_(start)

    calls: dict[str, Callable[[], object]] = {
        "projgrad": lambda: project_(w, constraint),
        "torch.renorm_": lambda: w.renorm_(2, 1 - axis, RADIUS),
        "vector_norm, mul_": lambda: by_hand(w, axis, look=False),
        "vector_norm, mul_ if any": lambda: by_hand(w, axis, look=True),
        "Keras formula": lambda: keras_formula(w, axis),
        "floor: read (sum)": lambda: w.sum(),
        "floor: write (mul_)": lambda: w.mul_(0.5),
    }
    # the least that any method must do: read all, and write all where groups exceed
    floor = "floor: write (mul_)" if exceed else "floor: read (sum)"
    groups = "rows (axis=1)" if axis == 1 else "columns (axis=0)"
    title = (
        f"MaxNorm, {start.shape[0]} x {start.shape[1]} float32, {groups}, {'all exceed' if exceed else 'none exceeds'}"
    )
    return Comparison(
        title, [Candidate(name, call, restore) for name, call in calls.items()], ["projgrad", floor], start.nbytes
    )
