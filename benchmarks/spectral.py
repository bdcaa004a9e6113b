"""Matrices given by their singular values or eigenvalues: projgrad against clipping by a decomposition, and peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks.harness import Candidate, Comparison, floors
from benchmarks.peers import chop, fastprox
from projgrad import Constraint, NuclearNorm, Orthogonal, PositiveSemidefinite, SpectralNorm
from projgrad.torch import project_

Calls = dict[str, Callable[[torch.Tensor], object]]


def comparisons(quick: bool = False) -> Iterator[Comparison]:
    """Square matrices: few, all, or none of the values beyond the bound, just beyond it, and near the set."""
    n = 70 if quick else 1024
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    bulk = np.linalg.svd(rng.standard_normal((n, n)), compute_uv=False)
    bulk *= 0.9 / bulk[0]
    few = np.concatenate([np.linspace(1.5, 1.05, n // 32), bulk[n // 32 :]])
    after = (u * np.minimum(1.1 * bulk / 0.9, 1)) @ v.T + 1e-3 * np.sign(rng.standard_normal((n, n))) / n**0.5
    by_svd: Calls = {"SVD": clip}
    ball = SpectralNorm(1.0)
    jobs: list[tuple[str, Constraint, np.ndarray, Calls, str, float]] = [
        ("SpectralNorm, none above", ball, (u * bulk) @ v.T, by_svd, "SpectralNormBall(1.0)", 1 / 10),
        (f"SpectralNorm, {n // 32} values above", ball, (u * few) @ v.T, by_svd, "SpectralNormBall(1.0)", 1 / 8),
        ("SpectralNorm, all above", ball, (u * np.linspace(1.1, 2, n)) @ v.T, by_svd, "SpectralNormBall(1.0)", 1 / 2),
        ("SpectralNorm, after a step", ball, after, by_svd, "SpectralNormBall(1.0)", 1.0),
    ]
    half, close = n // 2, np.linspace(0.8, 1.02, n // 2)
    small = (np.linalg.qr(u[:half, :half])[0] * close) @ np.linalg.qr(v[:half, :half])[0].T
    jobs.append((f"SpectralNorm, {np.sum(close > 1)} values just above", ball, small, by_svd, "", 1.0))
    for off, goal in ((1e-3, 1 / 4), (1e-2, 1 / 4), (1e-1, 1.0)):
        jobs.append((f"Orthogonal, off by {off}", Orthogonal(), _near(u @ v.T, off, rng), {"SVD": polar}, "", goal))
    part = rng.standard_normal((n, n)) / n**0.5
    part = (part + part.T) / 2**0.5
    shifted = (u * (1.0 - np.concatenate([few[: n // 32], bulk[n // 32 :]]))) @ u.T
    for name, x in (("half negative", part), (f"{n // 32} negative", shifted), ("none negative", (u * bulk) @ u.T)):
        psd = PositiveSemidefinite()
        jobs.append((f"PositiveSemidefinite, {name}", psd, x, {"eigh": positive_part}, "PSD()", 1.0))
    radius = 0.2 * float(np.linalg.svd(part, compute_uv=False).sum())
    peers: Calls = {"SVD": lambda w: shrink(w, radius)} | _chop(radius) | _pyproximal(n, radius)
    jobs.append(("NuclearNorm", NuclearNorm(radius), part, peers, f"Spectral(fastprox.L1Ball({radius}))", 1.0))
    for name, constraint, start, calls, peer, goal in jobs:
        title = f"{name}, {len(start)} x {len(start)} float32"
        yield _comparison(title, constraint, start.astype(np.float32), calls, peer, goal)


def _near(x: np.ndarray, step: float, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(x + step * rng.standard_normal(x.shape) / len(x) ** 0.5)


def _comparison(
    title: str, constraint: Constraint, given: np.ndarray, calls: Calls, peer: str, goal: float
) -> Comparison:
    start = torch.tensor(given)
    w = start.clone()

    def restore() -> None:
        w.copy_(start)

    candidates = [Candidate("projgrad", lambda: project_(w, constraint), restore)]
    candidates += [Candidate(name, lambda call=call: call(w), restore) for name, call in calls.items()]  # type: ignore[misc]
    goals = dict.fromkeys(calls, 1.0) | {next(iter(calls)): goal}
    if peer:
        threads = torch.get_num_threads()
        others = fastprox(given, f"fastprox.{peer}.prox(x, threads={threads})", threads)
        candidates += others
        goals |= {other.name: 1.0 for other in others}
    return Comparison(title, [*candidates, *floors(w)], ["projgrad"], start.nbytes, goals)


@torch.no_grad()
def clip(w: torch.Tensor) -> torch.Tensor:
    """Singular values above 1 clipped, in place."""
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    return w.copy_((u * s.clamp_(max=1)) @ vt)


@torch.no_grad()
def polar(w: torch.Tensor) -> torch.Tensor:
    """All singular values set to 1, in place."""
    u, _, vt = torch.linalg.svd(w, full_matrices=False)
    return w.copy_(u @ vt)


@torch.no_grad()
def positive_part(w: torch.Tensor) -> torch.Tensor:
    """Negative eigenvalues set to 0, in place."""
    values, q = torch.linalg.eigh(w)
    return w.copy_((q * values.clamp_(min=0)) @ q.T)


@torch.no_grad()
def shrink(w: torch.Tensor, radius: float) -> torch.Tensor:
    """Singular values brought to a sum, by the formula for sorted numbers, in place."""
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    t = ((s.cumsum(0) - radius) / torch.arange(1, len(s) + 1)).max().clamp_(min=0)
    return w.copy_((u * (s - t).clamp_(min=0)) @ vt)


def _chop(radius: float) -> Calls:
    constraints = chop()
    if constraints is None:
        return {}
    ball = constraints.NuclearNormBall(radius)
    return {"chop": lambda w: ball.prox(w[None])}


def _pyproximal(n: int, radius: float) -> Calls:
    try:
        import pyproximal
    except ImportError:
        return {}
    ball = pyproximal.NuclearBall((n, n), radius)
    return {"pyproximal": lambda w: ball.prox(w.numpy().ravel(), 1.0)}
