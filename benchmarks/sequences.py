"""Isotonic regression: projgrad against fastprox, scikit-learn and SciPy, per row of a matrix and in one long row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Candidate, Comparison, floors
from benchmarks.peers import fastprox
from projgrad import Monotone
from projgrad.torch import project_


def comparisons(quick: bool = False) -> Iterator[Comparison]:
    """Sequences in which much is to be pooled, little, or all."""
    rng = np.random.default_rng(0)
    for shape in ((30, 40), (1, 1000)) if quick else ((4096, 1024), (1, 1_000_000)):
        noise = rng.standard_normal(shape)
        for name, start in (
            ("noise", noise),
            ("noise on a rise", noise + np.linspace(0, 10, shape[1])),
            ("falling", -np.sort(noise, axis=1)),
        ):
            yield _comparison(name, start.astype(np.float32))


def _comparison(name: str, start: np.ndarray) -> Comparison:
    constraint, x = Monotone(), torch.tensor(start)
    w = x.clone()

    def restore() -> None:
        w.copy_(x)

    candidates = [
        Candidate("projgrad", lambda: project_(w, constraint), restore),
        Candidate("projgrad, NumPy", lambda: constraint.project(start)),
        *fastprox(start, "fastprox.isotonic(x, axis=-1, threads={threads})", torch.get_num_threads()),
        *(Candidate(peer, lambda f=f: [f(row) for row in start]) for peer, f in _peers().items()),  # type: ignore[misc]
    ]
    limits = {"fastprox": 2.0, "scikit-learn": 1.0} if name == "noise" else {}
    goals = {peer: limit for peer, limit in limits.items() if any(c.name == peer for c in candidates)}
    rows = f"{start.shape[0]} x {start.shape[1]}" if start.shape[0] > 1 else f"one row of {start.shape[1]}"
    return Comparison(f"Monotone, {rows} float32, {name}", [*candidates, *floors(w)], ["projgrad"], start.nbytes, goals)


def _peers() -> dict[str, Callable[[np.ndarray], Any]]:
    found: dict[str, Callable[[np.ndarray], Any]] = {}
    try:
        from sklearn.isotonic import isotonic_regression as learned

        found["scikit-learn"] = learned
    except ImportError:
        pass
    try:
        from scipy.optimize import isotonic_regression as optimized

        found["SciPy"] = optimized
    except ImportError:
        pass
    return found
