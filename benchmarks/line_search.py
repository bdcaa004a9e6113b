"""Minimising over sets to high accuracy: `python -m benchmarks.line_search`.

L-BFGS with a projection after its steps, the spectral projected gradient method in PyTorch and in optax, and SciPy's
L-BFGS-B where the set is a box: how far above the minimum each ends, and after how many evaluations.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import projgrad as pg
from benchmarks.harness import environment
from benchmarks.problems import Problem, digits, least_squares
from projgrad.torch import SPG, ProjectedOptimizer

TOLERANCE = 1e-7  # of the projected gradient


@dataclass(frozen=True)
class End:
    """Where a method ends: the point, and how often it evaluated the function and its gradient to get there."""

    x: np.ndarray
    evaluations: int


def nonnegative_least_squares() -> Problem:
    """30 equations, 20 unknowns."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((30, 20)), rng.standard_normal(30)
    return _least_squares("non-negative least squares", pg.NonNeg(), a, b)


def box_least_squares() -> Problem:
    """100 unknowns between -1 and 1, singular values from 1 to 1e-3."""
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.standard_normal(shape))[0] for shape in ((150, 100), (100, 100)))
    a = (u * np.geomspace(1, 1e-3, 100)) @ v.T
    b = a @ (1.5 * rng.standard_normal(100)) + 0.01 * rng.standard_normal(150)
    return _least_squares("box, least squares", pg.Box(-1.0, 1.0), a, b)


def _least_squares(name: str, constraint: pg.Constraint, a: np.ndarray, b: np.ndarray) -> Problem:
    def value(x: Any, xp: Any) -> Any:
        rest = xp.matmul(xp.asarray(a, dtype=x.dtype), x) - xp.asarray(b, dtype=x.dtype)
        return 0.5 * xp.sum(rest * rest)

    def gradient(x: np.ndarray) -> np.ndarray:
        return a.T @ (a @ x - b)

    return Problem(name, constraint, np.zeros(a.shape[1]), value, gradient, float(np.linalg.norm(a, 2) ** 2), 0.0)


def box_logistic() -> Problem:
    """Which tumours are benign, by 30 weights between -0.5 and 0.5; scikit-learn's breast cancer data."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    z = (data.data - data.data.mean(0)) / data.data.std(0) * (2 * data.target[:, None] - 1)
    count, ridge = len(z), 1e-4

    def value(w: Any, xp: Any) -> Any:
        scores = xp.matmul(xp.asarray(z, dtype=w.dtype), w)
        return xp.sum(xp.logaddexp(-scores, xp.zeros_like(scores))) / count + 0.5 * ridge * xp.sum(w * w)

    def gradient(w: np.ndarray) -> np.ndarray:
        made: np.ndarray = -z.T @ (1 / (1 + np.exp(z @ w))) / count + ridge * w
        return made

    curvature = float(0.25 * np.linalg.norm(z, 2) ** 2 / count) + ridge
    return Problem("box, logistic regression", pg.Box(-0.5, 0.5), np.zeros(30), value, gradient, curvature, 0.0)


def factorization() -> Problem:
    """A 40 x 30 matrix as the product of two non-negative ones, in one array; not convex."""
    rng = np.random.default_rng(3)
    v = np.abs(rng.standard_normal((40, 5))) @ np.abs(rng.standard_normal((5, 30)))
    v += 0.1 * np.abs(rng.standard_normal((40, 30)))

    def value(x: Any, xp: Any) -> Any:
        w, h = xp.reshape(x[:200], (40, 5)), xp.reshape(x[200:], (5, 30))
        rest = xp.matmul(w, h) - xp.asarray(v, dtype=x.dtype)
        return 0.5 * xp.sum(rest * rest)

    def gradient(x: np.ndarray) -> np.ndarray:
        w, h = x[:200].reshape(40, 5), x[200:].reshape(5, 30)
        rest = w @ h - v
        return np.concatenate([(rest @ h.T).ravel(), (w.T @ rest).ravel()])

    start = np.abs(rng.standard_normal(350))
    return Problem("non-negative factorization", pg.NonNeg(), start, value, gradient, np.inf, 0.0)


def problems() -> list[Problem]:
    """Boxes, and sets that couple entries."""
    return [
        nonnegative_least_squares(),
        box_least_squares(),
        box_logistic(),
        factorization(),
        least_squares(),
        *digits(),
    ]


def projected_gradient(problem: Problem, x: np.ndarray) -> float:
    """The largest entry of ``P(x - gradient) - x``: 0 at a stationary point."""
    return float(np.abs(problem.constraint.project(x - problem.gradient(x)) - x).max())


def by_torch(make: Callable[..., Any], problem: Problem, most: int) -> End:
    """Steps of a torch optimizer, until the projected gradient is small or the evaluations are used up."""
    w = torch.nn.Parameter(torch.tensor(problem.start))
    optimizer = make(w, problem.constraint)
    count = 0

    def closure() -> Any:
        nonlocal count
        count += 1
        optimizer.zero_grad()
        loss = problem.value(w, torch)
        loss.backward()
        return loss

    while count < most:
        before = w.detach().clone()
        optimizer.step(closure)
        end = w.detach().numpy()
        if not np.isfinite(end).all():
            w.data.copy_(before)
            break
        if projected_gradient(problem, end) <= TOLERANCE:
            break
    return End(w.detach().numpy(), count)


def _lbfgs(**options: Any) -> Callable[..., Any]:
    def make(w: Any, constraint: pg.Constraint) -> Any:
        return ProjectedOptimizer(torch.optim.LBFGS([("w", w)], **options), {"w": constraint})

    return make


def _spg(w: Any, constraint: pg.Constraint) -> Any:
    return SPG([("w", w)], {"w": constraint})


def by_optax(problem: Problem, most: int) -> End:
    """`projgrad.optax.spg`, compiled."""
    import jax
    import jax.numpy as jnp
    import optax

    import projgrad.optax

    with jax.enable_x64(True):
        tx = projgrad.optax.spg({"w": problem.constraint})
        params = projgrad.optax.project_params({"w": jnp.asarray(problem.start)}, {"w": problem.constraint})
        count = 0

        def loss(params: Any) -> Any:
            return problem.value(params["w"], jnp)

        @jax.jit
        def step(params: Any, state: Any) -> Any:
            value, grad = optax.value_and_grad_from_state(loss)(params, state=state)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
            return optax.apply_updates(params, updates), state

        state = tx.init(params)
        while count < most and not state.projected_gradient <= TOLERANCE:
            params, state = step(params, state)
            count += int(state.evaluations)
        return End(np.asarray(params["w"]), count + 1)


def by_scipy(problem: Problem, most: int) -> End | None:
    """SciPy's L-BFGS-B, where the set is a box."""
    from scipy.optimize import minimize

    bounds = _bounds(problem.constraint)
    if bounds is None:
        return None
    options = {"maxfun": most, "maxiter": most, "ftol": 0.0, "gtol": TOLERANCE}
    start = problem.start
    found = minimize(
        lambda x: (problem.value(x, np), problem.gradient(x)),
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[bounds] * start.size,
        options=options,
    )
    return End(found.x, found.nfev)


def _bounds(constraint: pg.Constraint) -> tuple[float, float] | None:
    if isinstance(constraint, pg.NonNeg):
        return 0.0, np.inf
    return (constraint.lower, constraint.upper) if isinstance(constraint, pg.Box) else None


def _in_torch(make: Callable[..., Any]) -> Callable[[Problem, int], End]:
    return lambda problem, most: by_torch(make, problem, most)


METHODS: dict[str, Callable[[Problem, int], End | None]] = {
    "LBFGS": _in_torch(_lbfgs()),
    "LBFGS, strong Wolfe": _in_torch(_lbfgs(line_search_fn="strong_wolfe")),
    "LBFGS, strong Wolfe, max_iter=1": _in_torch(_lbfgs(line_search_fn="strong_wolfe", max_iter=1, max_eval=25)),
    "SPG, PyTorch": _in_torch(_spg),
    "spg, optax": by_optax,
    "L-BFGS-B, SciPy": by_scipy,
}
PATIENCE = 2000  # evaluations of LBFGS, which stays where it is


def least(problem: Problem) -> float:
    """The minimum; where the problem is not convex, the value that L-BFGS-B ends with."""
    end = by_scipy(problem, 100_000)
    return problem.minimum() if end is None else float(problem.value(end.x, np))


def _figures(problem: Problem, end: End, minimum: float) -> dict[str, float]:
    return {
        "gap": (float(problem.value(end.x, np)) - minimum) / abs(minimum),
        "evaluations": end.evaluations,
        "projected_gradient": projected_gradient(problem, end.x),
    }


def table(results: dict[str, dict[str, dict[str, float] | None]]) -> str:
    """Relative gap, evaluations and projected gradient of each method as a Markdown table."""
    lines = [f"| | {' | '.join(METHODS)} |", f"| --- |{' ---: |' * len(METHODS)}"]
    for problem, found in results.items():
        cells = ["" if end is None else _cell(**end) for end in found.values()]
        lines.append(f"| {problem} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(gap: float, evaluations: float, projected_gradient: float) -> str:
    shown = "0" if abs(gap) < 1e-14 else f"{gap:.0e}"
    return f"{shown}, {evaluations:.0f}{'' if projected_gradient <= TOLERANCE else '+'}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.line_search", description=__doc__)
    parser.add_argument("--evaluations", type=int, default=10_000, help="the most that a method gets (default: 10000)")
    parser.add_argument("--problems", nargs="+", default=[""], help="parts of names of problems to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="few evaluations, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"), help="folder for the results")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    most = 100 if args.quick else args.evaluations
    results: dict[str, dict[str, dict[str, float] | None]] = {}
    for problem in problems():
        if not any(part in problem.name for part in args.problems):
            continue
        minimum, found = least(problem), results.setdefault(problem.name, {})
        for name, method in METHODS.items():
            with np.errstate(over="ignore", invalid="ignore"):  # LBFGS may go to infinity
                end = method(problem, min(most, PATIENCE) if name.startswith("LBFGS") else most)
                found[name] = None if end is None else _figures(problem, end, minimum)
            print(f"{problem.name}, {name}: {found[name]}", flush=True)
    print(f"\nRelative gap to the minimum, evaluations (+: and not at an end)\n\n{table(results)}")
    args.out.mkdir(parents=True, exist_ok=True)
    about = {"environment": environment(), "evaluations": most, "ends": results}
    (args.out / "line_search.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
