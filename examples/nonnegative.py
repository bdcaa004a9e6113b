"""Weights and biases that are never negative, by projection or as a function of free ones.

    python examples/nonnegative.py

A network of 32 ReLU units learns half of scikit-learn's digits, all of them at every step. Its weights and biases are

- free, for comparison,
- projected: after every step, what is negative becomes 0. Any optimizer will do: Adam, `SignSteps`, which is written
  below, or SPG, which does what L-BFGS is used for. Projecting after the steps of L-BFGS itself is tried as well;
- or w = f(v) of free numbers v, with f = relu, softplus, square or exp: then the optimizer, Adam or L-BFGS, knows of no
  constraint, but sees another function.

All start from the same network, with the absolute values of the usual random weights. In the two rows "half zero" the
start is the usual one, and the negative half is 0 at first. "Stuck" are the weights that should grow and never will:
the loss falls where they do, and yet the gradient in v is exactly 0. Prints a table and draws what comes out.

Pixels are centred: were inputs, weights and biases all non-negative, no ReLU would ever be off and the network linear.
In the last layer, the sign costs nothing at all: softmax stays as it is when the same row is added to every class's.

Found (5 seeds): non-negative networks lose little, 0.971 ± 0.003 of the other digits projected under Adam instead of
0.978 ± 0.002. Any of the ways but relu gets there (square 0.968, `SignSteps` 0.970): relu leaves a fifth of the weights
stuck (0.962), and a third if half of them start at zero (0.946), which does no harm to projection (0.970). Projected
weights come with true zeros, about half of them; softplus, square and exp have none. L-BFGS itself must not be
projected, it goes anywhere (0.438); SPG works (0.965), but L-BFGS on squares needs fewer gradients here (46, not 60);
on exp it ends in NaN for one seed of five.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common  # type: ignore[import-not-found]
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import parametrize
from tqdm import tqdm

import projgrad as pg
from projgrad.torch import SPG, ProjectedOptimizer, violations

UNITS, RIDGE, TARGET = 32, 1e-4, 0.1  # hidden units; of the squared weights, in the loss; the loss to be reached
RULES = {"*.weight": pg.NonNeg(), "*.bias": pg.NonNeg()}
# w = f(v), and the v to start from
MAPS: dict[str, tuple[Callable, Callable]] = {
    "relu": (torch.relu, lambda w: w),
    "softplus": (nn.functional.softplus, lambda w: torch.log(torch.expm1(w))),
    "square": (torch.square, torch.sqrt),
    "exp": (torch.exp, torch.log),
}


class Case(NamedTuple):
    weights: str  # "free", "projected" or one of MAPS
    optimizer: str
    rate: float = 0.0
    half: bool = False  # whether half of the weights start at zero

    @property
    def label(self) -> str:
        return self.weights + ", half zero" * self.half


RATES = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]  # to try
# learning rates: those of RATES with the lowest mean loss at the end, by `--rates` (SignSteps: first lengths, to 0.1)
CASES = [
    Case("free", "Adam", 0.1),
    Case("projected", "Adam", 0.1),
    Case("relu", "Adam", 0.03),
    Case("softplus", "Adam", 0.1),
    Case("square", "Adam", 0.03),
    Case("exp", "Adam", 0.1),
    Case("projected", "Adam", 0.1, half=True),
    Case("relu", "Adam", 0.03, half=True),
    Case("projected", "SignSteps", 0.1),
    Case("projected", "SPG"),
    Case("projected", "L-BFGS"),
    Case("free", "L-BFGS"),
    *(Case(name, "L-BFGS") for name in MAPS),
]


class SignSteps(torch.optim.Optimizer):
    """Each weight steps against the sign of its gradient, farther while the sign stays, half as far when it turns."""

    def __init__(self, params: Any, lr: float = 0.01, longest: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "longest": longest})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["length"], state["sign"] = torch.full_like(weight, group["lr"]), torch.zeros_like(weight)
                sign = weight.grad.sign()
                agrees = sign * state["sign"]
                state["length"] *= 1 + 0.2 * (agrees > 0) - 0.5 * (agrees < 0)
                state["length"].clamp_(1e-6, group["longest"])
                state["sign"] = sign
                weight -= state["length"] * sign
        return loss


class Made(nn.Module):
    """Makes w = f(v), for `register_parametrization`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.make, self.start_from = MAPS[name]

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.make(latent)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return self.start_from(weight)


class Run(NamedTuple):
    """One training: gradients used so far and the loss there, what came out, and the weights of the hidden units."""

    counts: np.ndarray
    losses: np.ndarray
    accuracy: float
    seconds: float
    zero: float
    stuck: float
    hidden: np.ndarray
    importance: np.ndarray

    @property
    def reached(self) -> float:
        """Gradients until the loss is below TARGET; infinite if it never is."""
        below = self.losses <= TARGET
        return float(self.counts[below.argmax()]) if below.any() else np.inf


def data(seed: int) -> list[torch.Tensor]:
    """Half of the digits to train on, half to test on; the pixels are centred."""
    digits, order = load_digits(), np.random.default_rng(seed).permutation(1797)
    x, y = torch.tensor(digits.data[order] / 16, dtype=torch.float32), torch.tensor(digits.target[order])
    x = x - x[:898].mean(0)
    return [x[:898], y[:898], x[898:], y[898:]]


def network(case: Case) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(64, UNITS), nn.ReLU(), nn.Linear(UNITS, 10))
    if case.weights == "free":
        return model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter if case.half else parameter.abs())
    if case.weights in MAPS:
        for layer in layers(model):
            for name in ("weight", "bias"):
                parametrize.register_parametrization(layer, name, Made(case.weights))
    return model


def layers(model: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in model if isinstance(layer, nn.Linear)]


def optimizer_of(case: Case, model: nn.Module) -> Any:
    """What takes the steps; where the weights are projected, it is wrapped, whatever it is."""
    rules = RULES if case.weights == "projected" else {}
    params = model.parameters()
    if case.optimizer == "SPG":
        return SPG(params, rules, model=model, max_iter=10)
    inner: torch.optim.Optimizer
    if case.optimizer == "Adam":
        inner = torch.optim.Adam(params, lr=case.rate)
    elif case.optimizer == "SignSteps":
        inner = SignSteps(params, lr=case.rate)
    else:
        inner = torch.optim.LBFGS(params, max_iter=10, history_size=10, line_search_fn="strong_wolfe")
    return ProjectedOptimizer(inner, rules, model=model) if rules else inner


def loss_of(model: nn.Sequential, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with parametrize.cached():
        ridge = RIDGE * sum(layer.weight.square().sum() for layer in layers(model))
        return nn.functional.cross_entropy(model(x), y) + ridge


def zero_and_stuck(model: nn.Sequential, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """The shares of weights that are 0, and of those that should grow while nothing moves them."""
    with parametrize.cached():
        weights = [getattr(layer, name) for layer in layers(model) for name in ("weight", "bias")]
        latents = list(model.parameters())  # in the same order
        gradients = torch.autograd.grad(loss_of(model, x, y), [*weights, *latents])
    w, by_weight, by_latent = (
        torch.cat([part.flatten() for part in parts]) for parts in (weights, gradients[:4], gradients[4:])
    )
    return (w == 0).float().mean().item(), ((by_weight < 0) & (by_latent == 0)).float().mean().item()


def train(case: Case, seed: int, gradients: int, tick: Callable[[int], object]) -> Run:
    """Train until that many gradients are used."""
    torch.manual_seed(seed)
    x, y, test_x, test_y = data(seed)
    model = network(case)
    optimizer = optimizer_of(case, model)
    used, seconds, curve = 0, 0.0, [(0, loss_of(model, x, y).item())]

    def closure() -> torch.Tensor:
        nonlocal used
        used += 1
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        return loss

    while used < gradients:
        before, start = used, time.process_time()
        optimizer.step(closure)
        seconds += time.process_time() - start
        with torch.no_grad():
            curve.append((used, loss_of(model, x, y).item()))  # where the step ended: projected, where it is
        tick(min(used, gradients) - before)
    if case.weights == "projected":
        assert not max(violations(model, RULES).values()) > 0  # NaN is where L-BFGS may end
    zero, stuck = zero_and_stuck(model, x, y)
    counts, losses = np.array(curve).T
    with torch.no_grad():
        accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
        hidden, output = (layer.weight.detach() for layer in layers(model))
    return Run(counts, losses, accuracy, seconds, zero, stuck, hidden.numpy(), output.norm(dim=0).numpy())


def table(results: dict[Case, list[Run]]) -> str:
    """The results as a Markdown table."""
    rows = [["weights", "optimizer", "test accuracy", "loss", f"gradients to {TARGET}", "CPU seconds", "zero", "stuck"]]
    for case, runs in results.items():
        needed = float(np.median([run.reached for run in runs]))
        losses = np.array([run.losses[-1] for run in runs])
        lost = int((~np.isfinite(losses)).sum())
        rows.append(
            [
                case.label,
                case.optimizer,
                common.spread([run.accuracy for run in runs]),
                f"{np.nanmean(losses):.3f}" + f", {lost} NaN" * (lost > 0),
                f"{needed:.0f}" if np.isfinite(needed) else "never",
                f"{np.mean([run.seconds for run in runs]):.1f}",
                f"{np.mean([run.zero for run in runs]):.0%}",
                f"{np.mean([run.stuck for run in runs]):.0%}",
            ]
        )
    return common.table(rows)


def scan(seeds: int, gradients: int, tick: Callable[[int], object]) -> str:
    """The mean loss at the end for every learning rate to try, as a Markdown table."""
    rows = [["weights", "optimizer", *(f"{rate:g}" for rate in RATES)]]
    for case in (case for case in CASES if case.rate):
        tried = [[train(case._replace(rate=r), seed, gradients, tick) for seed in range(seeds)] for r in RATES]
        losses = [np.mean([run.losses[-1] for run in runs]) for runs in tried]
        rows.append([case.label, case.optimizer, *(f"{loss:.4f}" for loss in losses)])
    return common.table(rows)


COLOURS = {
    "free": "#888888",
    "projected": "#0072B2",
    "relu": "#D55E00",
    "softplus": "#009E73",
    "square": "#CC79A7",
    "exp": "#E69F00",
}


def draw(results: dict[Case, list[Run]], gradients: int, path: Path) -> None:
    """The loss curves and how large the weights are above, the weights of some hidden units below."""
    figure = plt.figure(figsize=(13, 7.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 0.72]).ravel()
    first, second, sizes = upper.subplots(1, 3)
    second.sharey(first)
    grid = np.arange(1, gradients + 1)
    for case, runs in results.items():
        ax = second if case.optimizer in ("L-BFGS", "SPG") else first
        curves = [run.losses[np.searchsorted(run.counts, grid, side="right") - 1] for run in runs]
        other = case.half or (case.weights, case.optimizer) in {("projected", "SignSteps"), ("projected", "L-BFGS")}
        style = ":" if case.half else "--" if other else "-"
        label = case.label if case.optimizer in ("Adam", "L-BFGS") and not other else f"{case.label} ({case.optimizer})"
        ax.plot(grid, np.nanmedian(curves, axis=0), style, color=COLOURS[case.weights], lw=1.7, label=label)
    first.set(title="loss: steps of Adam and SignSteps", ylabel="training loss (median over the seeds)")
    second.set(title="loss: L-BFGS and SPG")
    for ax in (first, second):
        ax.set(xlabel="gradients used", xscale="log", yscale="log", ylim=(0.02, 40))
        ax.legend(fontsize=8, loc="upper center", ncol=2)
        ax.grid(alpha=0.25)

    edges = np.linspace(-8, 1, 46)
    for case, runs in results.items():
        if case.optimizer == "Adam" and case.weights != "free" and not case.half:
            weights = np.concatenate([run.hidden.ravel() for run in runs])
            logs = np.log10(np.maximum(weights[weights > 0], 1e-8))
            share = np.histogram(logs, edges)[0] / len(weights)
            sizes.stairs(share, edges, color=COLOURS[case.weights], lw=1.7)
            place = -9.4 + 0.35 * (list(COLOURS).index(case.weights) - 1)
            sizes.bar(place, np.mean(weights == 0), width=0.3, color=COLOURS[case.weights], label=case.weights)
    sizes.set(title="hidden weights at the end (Adam)", xlabel="weight", ylabel="share of the weights", yscale="log")
    sizes.set_xticks([-8.9, -6, -4, -2, 0], ["0", "1e-6", "1e-4", "0.01", "1"])
    sizes.legend(fontsize=8)
    sizes.grid(alpha=0.25)

    lower.suptitle(
        "what the most important hidden units look for: weights of the 64 pixels (blue: above 0, red: below)"
    )
    shown = [case for case in results if case.optimizer == "Adam" and (not case.half)]
    for ax, case in zip(lower.subplots(2, 3).ravel(), shown, strict=False):
        run = results[case][0]
        best = np.argsort(-run.importance * np.linalg.norm(run.hidden, axis=1))[:16]
        tiles = run.hidden[best].reshape(-1, 8, 8)
        tiles = tiles / np.abs(tiles).max((1, 2), keepdims=True)
        ax.imshow(common.mosaic(tiles, 8), cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
        ax.set_title(f"{case.label}: test accuracy {common.spread([r.accuracy for r in results[case]])}", fontsize=10)
        ax.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.parser("nonnegative", __doc__, "torch")
    parser.add_argument("--seeds", type=common.count, default=5)
    parser.add_argument("--gradients", type=common.count, default=400, help="how many each training may use")
    parser.add_argument("--rates", action="store_true", help=f"try the learning rates {RATES} instead")
    args = common.parse(parser, argv, seeds=1, gradients=20)
    torch.set_num_threads(1)  # arrays this small gain nothing from more
    trainings = len(RATES) * sum(case.rate > 0 for case in CASES) if args.rates else len(CASES)
    results: dict[Case, list[Run]] = {}
    with tqdm(total=trainings * args.seeds * args.gradients, unit="gradient", smoothing=0.02) as bar:
        if args.rates:
            found = scan(args.seeds, args.gradients, bar.update)
            print(f"\nLosses after {args.gradients} gradients, means over {args.seeds}, by learning rate:\n\n{found}")
            return
        for case in CASES:
            bar.set_description(f"{case.label}, {case.optimizer}")
            results[case] = [train(case, seed, args.gradients, bar.update) for seed in range(args.seeds)]
    print(f"\nDigits, {args.gradients} gradients, mean ± deviation over {args.seeds} seed{'s' * (args.seeds > 1)}.\n")
    print(table(results))
    draw(results, args.gradients, args.out)
    print(f"\nPicture: {args.out}")


if __name__ == "__main__":
    main()
