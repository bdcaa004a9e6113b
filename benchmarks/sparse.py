"""Few entries, or few rows, that are not 0: projgrad against libraries that have the sets, and code written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks.harness import Candidate, Comparison, floors
from projgrad import Cardinality, Constraint, GroupL1Ball, L1InfBall, SparseSimplex
from projgrad.torch import project_

Calls = dict[str, Callable[[torch.Tensor], object]]


def comparisons(quick: bool = False) -> Iterator[Comparison]:
    """Rows of a matrix, or the matrix as rows."""
    m, n = (30, 40) if quick else (4096, 1024)
    start = torch.tensor(np.random.default_rng(0).standard_normal((m, n)).astype(np.float32))
    for k in (n // 32, n // 2):
        yield _comparison(f"Cardinality({k})", Cardinality(k), start, _cardinality(k), _partition(n - k))
    k = n // 32
    yield _comparison(f"SparseSimplex({k})", SparseSimplex(k), start, _sparse_simplex(k), _partition(n - k))
    radius = float(0.1 * torch.linalg.vector_norm(start, dim=1).sum())
    passes: Calls = {"floor: vector_norm, mul_": lambda w: w.mul_(torch.linalg.vector_norm(w, dim=1, keepdim=True))}
    yield _comparison("GroupL1Ball", GroupL1Ball(radius), start, _group_l1(radius), passes)
    radius = float(0.1 * start.abs().amax(1).sum())
    yield _comparison("L1InfBall", L1InfBall(radius), start, {"sorting (Quattoni)": lambda w: l1_inf(w, radius)})


def _comparison(
    name: str, constraint: Constraint, start: torch.Tensor, peers: Calls, least: Calls | None = None
) -> Comparison:
    w = start.clone()

    def restore() -> None:
        w.copy_(start)

    calls: dict[str, Callable[[], object]] = {
        "projgrad": lambda: project_(w, constraint),
        "projgrad, NumPy": lambda: constraint.project(start.numpy()),
    }
    for peer, call in (peers | (least or {})).items():
        calls[peer] = lambda call=call: call(w)  # type: ignore[misc]
    candidates = [Candidate(peer, call, restore) for peer, call in calls.items()]
    title = f"{name}, {start.shape[0]} x {start.shape[1]} float32"
    return Comparison(title, [*candidates, *floors(w)], ["projgrad"], start.nbytes, dict.fromkeys(peers, 1.0))


def _partition(index: int) -> Calls:
    """The part that finds the largest entries."""
    return {"floor: np.partition": lambda w: np.partition(w.numpy(), index, axis=1)}


def _cardinality(k: int) -> Calls:
    @torch.no_grad()
    def by_hand(w: torch.Tensor) -> torch.Tensor:
        kept = w.abs().topk(k, dim=1, sorted=False).indices
        values = w.gather(1, kept)
        return w.zero_().scatter_(1, kept, values)

    return {"topk, scatter_": by_hand} | _per_row_of_pyproximal(k)


def _per_row_of_pyproximal(k: int) -> Calls:
    try:
        from pyproximal.projection import L0BallProj
    except ImportError:
        return {}
    project = L0BallProj(k)
    return {"pyproximal": lambda w: [project(row) for row in w.numpy()]}


def _sparse_simplex(k: int) -> Calls:
    @torch.no_grad()
    def by_hand(w: torch.Tensor) -> torch.Tensor:
        values, kept = w.topk(k, dim=1)
        return w.zero_().scatter_(1, kept, (values - threshold(values, 1.0)).clamp_(min=0))

    calls: Calls = {"topk, scatter_": by_hand}
    try:
        import jax
        from jaxopt.projection import projection_sparse_simplex
    except ImportError:
        return calls
    compiled = jax.jit(jax.vmap(lambda row: projection_sparse_simplex(row, k)))
    return calls | {"jaxopt, compiled": lambda w: compiled(w.numpy()).block_until_ready()}


def _group_l1(radius: float) -> Calls:
    @torch.no_grad()
    def by_hand(w: torch.Tensor) -> torch.Tensor:
        norms = torch.linalg.vector_norm(w, dim=1, keepdim=True)
        most = threshold(norms.sort(dim=0, descending=True).values.T, radius)
        return w.mul_((1 - most / norms).clamp_(min=0))

    return {"vector_norm, sort, mul_": by_hand}


def threshold(values: torch.Tensor, total: float) -> torch.Tensor:
    """The threshold of every row, in which the values fall."""
    count = torch.arange(1, values.shape[1] + 1)
    means = (values.cumsum(1) - total) / count
    last = (values > means).sum(1, keepdim=True) - 1
    return means.gather(1, last)


@torch.no_grad()
def l1_inf(w: torch.Tensor, radius: float) -> torch.Tensor:
    """By sorting all rows, and then all multipliers at which a cap passes an entry, or becomes 0."""
    m, n = w.shape
    a = w.abs()
    if float(a.amax(1).sum()) <= radius:
        return w
    falling = a.sort(dim=1, descending=True).values.double()
    sums, count = falling.cumsum(1), torch.arange(1, n + 1)
    # up to the multiplier ends[:, k], the cap of a row is (sums[:, k] - t) / (k + 1)
    ends = torch.cat([sums[:, :-1] - count[:-1] * falling[:, 1:], sums[:, -1:]], dim=1)
    slope, level = 1.0 / count, sums / count
    zero = torch.zeros(m, 1, dtype=torch.float64)
    slopes = torch.cat([slope.expand(m, n)[:, 1:], zero], dim=1) - slope
    levels = torch.cat([level[:, 1:], zero], dim=1) - level
    order = ends.flatten().argsort()
    slope_of_all = float(m) + torch.cat([zero[0], slopes.flatten()[order].cumsum(0)])
    level_of_all = level[:, 0].sum() + torch.cat([zero[0], levels.flatten()[order].cumsum(0)])
    reached = level_of_all[:-1] - slope_of_all[:-1] * ends.flatten()[order]
    piece = int((reached > radius).sum())
    t = (level_of_all[piece] - radius) / slope_of_all[piece]
    k = (ends <= t).sum(1, keepdim=True)
    caps = ((sums.gather(1, k.clamp(max=n - 1)) - t) / (k + 1)).masked_fill_(k == n, 0).float()
    return w.clamp_(-caps, caps)
