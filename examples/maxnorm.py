"""Max-norm on dense, convolutional and recurrent layers, with and without dropout, in PyTorch, JAX or Keras.

    python examples/maxnorm.py --framework torch|jax|keras
    python examples/maxnorm.py --layouts

Trains an MLP, a CNN and an LSTM (which reads an image row by row) on 500 handwritten digits, with max-norms of 3 (the
usual advice) and of 1 on kernels, recurrent kernels and biases of all layers but the last; prints a table of accuracies
and norms, and draws them. All frameworks start from the same weights. With `--layouts` it does not train: it loads the
same weights into each framework, in its own layout, and shows that `axis="incoming"` means the same in all. The
networks are in `maxnorm_torch.py`, `maxnorm_jax.py` (which needs flax, as `--layouts` does) and `maxnorm_keras.py`.

Found (torch, 2 seeds): a max-norm changes no accuracy beyond the noise. A radius of 3 is never reached in the MLP and
the CNN; in the LSTM it binds only the bias, whose forget gate starts with norm 8 (test accuracy without dropout 0.794,
and 0.825 without a constraint, with dropout 0.816 and 0.802: two seeds do not settle it). In JAX (2 seeds) and Keras
(one seed), all accuracies without a constraint and with a radius of 3 or 1 are within 0.035 of each other.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import chain, cycle
from pathlib import Path
from typing import Any, NamedTuple

import common  # type: ignore[import-not-found]
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

import projgrad as pg

# the shapes of the kernels, in Keras's layout: what feeds a unit, then the units
NETWORKS: dict[str, dict[str, tuple[int, ...]]] = {
    "MLP": {"first": (784, 256), "second": (256, 256), "output": (256, 10)},
    "CNN": {"first": (3, 3, 1, 16), "second": (3, 3, 16, 32), "output": (800, 10)},
    "LSTM": {"lstm": (28, 4 * 64), "output": (64, 10)},
}
EPOCHS = {"MLP": 25, "CNN": 12, "LSTM": 25}
DOORS = {"torch": "torch", "jax": "optax", "keras": "keras"}  # the frameworks, and the modules of projgrad
# how they call the weights that feed units, from outside or from the step before, and the biases
NAMES = {"torch": ("*.weight*", "*.bias*"), "jax": ("*/kernel", "*/bias"), "keras": ("*kernel", "*/bias")}
KINDS = {"kernel": "kernels", "recurrent_kernel": "recurrent", "bias": "biases"}
Weights = dict[str, np.ndarray]  # such as {"first/kernel": ..., "first/bias": ...}, in Keras's layout


class Run(NamedTuple):
    """One training: test accuracy per epoch, training accuracy at the end, the weights, the largest violation."""

    curve: list[float]
    train_accuracy: float
    weights: Weights
    violation: float


class Case(NamedTuple):
    """A radius, or None for no constraint, and the rate of dropout."""

    radius: float | None
    dropout: float

    @property
    def label(self) -> str:
        return ("none" if self.radius is None else f"MaxNorm({self.radius:g})") + ", dropout" * (self.dropout > 0)


Results = Mapping[str, Mapping[Case, Sequence[Run]]]  # by network


def rules_for(radius: float | None, framework: str, free_biases: bool = False) -> dict[str, Any]:
    """All layers but the last: the weights that feed a unit, and each bias as one vector, as in Keras."""
    if radius is None:
        return {}
    weights, biases = NAMES[framework]
    whole = None if free_biases else pg.MaxNorm(radius, axis=0)
    return {weights: pg.MaxNorm(radius), biases: whole, "output*": None}


def digits(training: int) -> list[np.ndarray]:
    """The images to train on, their digits, 2,000 others, and theirs."""
    x, y = common.mnist()
    test = slice(training, training + 2000)
    return [x[:training], y[:training], x[test], y[test]]


def initial(network: str, seed: int) -> Weights:
    """What Keras starts from: Glorot's uniform kernels, orthogonal recurrent ones, 1 in the bias of the forget gate."""
    rng, weights = np.random.default_rng(seed), {}
    for layer, shape in NETWORKS[network].items():
        limit = np.sqrt(6 / (np.prod(shape[:-2]) * (shape[-2] + shape[-1])))
        weights[f"{layer}/kernel"] = rng.uniform(-limit, limit, shape)
        weights[f"{layer}/bias"] = np.zeros(shape[-1])
        if layer == "lstm":
            units = shape[-1] // 4
            weights[f"{layer}/recurrent_kernel"] = np.linalg.qr(rng.normal(size=(4 * units, units)))[0].T
            weights[f"{layer}/bias"][units : 2 * units] = 1.0
    return {name: weight.astype("float32") for name, weight in weights.items()}


def norms(weights: Weights, kind: str) -> np.ndarray:
    """The norms of all kernels, recurrent kernels or biases but the last layer's."""
    found = [np.zeros(0)]
    for name, weight in weights.items():
        layer, _, attribute = name.partition("/")
        if layer != "output" and attribute == kind:  # the last axis is that of the units, but a bias is one vector
            found.append(np.linalg.norm(weight.reshape(-1, 1 if kind == "bias" else weight.shape[-1]), axis=0))
    return np.concatenate(found)


def table(results: Results) -> str:
    """The results as a Markdown table; of the norms the largest."""
    rows = [["network", "constraint", "train", "test", *KINDS.values(), "violation"]]
    for network, cases in results.items():
        for case, runs in cases.items():
            largest = [np.concatenate([norms(run.weights, kind) for run in runs]) for kind in KINDS]
            rows.append(
                [
                    network,
                    case.label,
                    f"{np.mean([run.train_accuracy for run in runs]):.3f}",
                    common.spread([run.curve[-1] for run in runs]),
                    *(f"{values.max():.3f}" if len(values) else "" for values in largest),
                    "" if case.radius is None else f"{max(run.violation for run in runs):.0e}",
                ]
            )
    return common.table(rows)


def layouts(radius: float, networks: Sequence[str]) -> str:
    """The same weights in the layout of every framework: what is constrained along which axes, the largest norms."""
    image, gap = digits(1)[0], 0.0
    rows = [
        ["network", "weights", *(f"{framework}: shape, axis" for framework in DOORS), "largest norms after projection"]
    ]
    for network in networks:
        start = {name: 3 * weight + 0.1 for name, weight in initial(network, 0).items()}  # mostly outside
        shapes, largest, logits = {}, {}, []
        for framework, door in DOORS.items():
            backend, projgrad_door = import_module(f"maxnorm_{framework}"), import_module(f"projgrad.{door}")
            model, rules = backend.build(network, start, 0.0, 0), rules_for(radius, framework)
            projgrad_door.project_params(model, rules)
            logits.append(backend.logits(model, image))
            for row in projgrad_door.report(model, rules):
                if row.constraint:
                    name = backend.keras_name(row.name)
                    axis = row.constraint.rpartition("axis=")[2][:-1]
                    shapes[name, framework] = f"{row.shape}, {axis}"
                    largest[name, framework] = f"{row.norms[1]:.6f}"
        gap = max(gap, np.ptp(logits, axis=0).max() / np.abs(logits).max())
        for name in dict.fromkeys(name for name, _ in shapes):
            cells = [shapes.get((name, framework), "") for framework in DOORS]
            rows.append([network, name, *cells, " ".join(largest.get((name, framework), "") for framework in DOORS)])
    largest_gap = f"Largest difference of the logits between frameworks, relative to the largest: {gap:.0e}"
    return f"{common.table(rows)}\n\n{largest_gap}"


def draw(results: Results, title: str, path: Path) -> None:
    """Test accuracies above, the norms of the weights below."""
    radii = list(dict.fromkeys(case.radius for cases in results.values() for case in cases))
    some = cycle(["#0072B2", "#D55E00", "#009E73", "#CC79A7"])
    colours = dict(zip(radii, chain(["#777777"], some), strict=False))
    figure, axes = plt.subplots(2, len(results), figsize=(12, 7.5), layout="constrained", squeeze=False)
    figure.suptitle(title)
    jitter = np.random.default_rng(0)
    for (network, cases), upper, lower in zip(results.items(), *axes, strict=True):
        best = 0.0
        for i, (case, runs) in enumerate(cases.items()):
            colour, curve = colours[case.radius], np.mean([run.curve for run in runs], axis=0)
            free = (
                {"lw": 4, "alpha": 0.5} if case.radius is None else {"lw": 1.4}
            )  # seen below the others where they agree
            style = (0, (3, 2)) if case.dropout else "-"
            upper.plot(range(1, 1 + len(curve)), curve, ls=style, color=colour, label=case.label, **free)
            best = max(best, curve.max())
            for shift, (kind, marker) in zip((-0.25, 0, 0.25), zip(KINDS, "o^s", strict=True), strict=True):
                found = np.concatenate([norms(run.weights, kind) for run in runs])[:400]
                place = i + shift + jitter.uniform(-0.1, 0.1, len(found))
                size = 5 if kind == "bias" else 2.5
                label = KINDS[kind] if i == 0 else None
                lower.plot(place, found, marker, ms=size, mew=0, alpha=0.5, color=colour, label=label)
        for radius in radii[1:]:
            lower.axhline(radius, color=colours[radius], lw=0.8, ls=":")
        upper.set(title=network, xlabel="epoch", ylabel="test accuracy", ylim=(best - 0.12, best + 0.01))
        names = ["none" if case.radius is None else f"{case.radius:g}" for case in cases]
        ticks = [name + "\ndropout" * (case.dropout > 0) for name, case in zip(names, cases, strict=True)]
        lower.set_xticks(range(len(cases)), ticks, fontsize=8)
        lower.set(xlabel="max-norm", ylabel="norms at the end", yscale="log")
        for ax in (upper, lower):
            ax.grid(alpha=0.25)
    for ax in axes[:, -1]:
        ax.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.parser("maxnorm", __doc__, *NAMES)
    parser.add_argument("--radius", nargs="+", type=float, default=[3.0, 1.0], metavar="R", help="default: 3 1")
    parser.add_argument("--dropout", type=float, default=0.5, help="the rate where there is dropout")
    parser.add_argument("--free-biases", action="store_true", help="constrain no biases")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="default: all")
    parser.add_argument("--seeds", type=common.count, help="how often to repeat (default: 2; Keras 1)")
    parser.add_argument("--epochs", type=common.count, help="default: 25; CNN 12")
    parser.add_argument("--layouts", action="store_true", help="compare the frameworks instead, without training")
    parser.set_defaults(images=2000)  # at most, to train on and to test on
    args = common.parse(parser, argv, seeds=1, epochs=2, images=200)
    if args.layouts:
        print(layouts(args.radius[-1], args.networks))
        return
    seeds = args.seeds or (1 if args.framework == "keras" else 2)
    epochs = {network: args.epochs or EPOCHS[network] for network in args.networks}
    data = [part[: args.images] for part in digits(500)]
    train = import_module(f"maxnorm_{args.framework}").train
    cases = [Case(radius, dropout) for radius in (None, *args.radius) for dropout in (0.0, args.dropout)]
    rules = {case: rules_for(case.radius, args.framework, args.free_biases) for case in cases}  # errors come before

    start = time.perf_counter()
    results: dict[str, dict[Case, list[Run]]] = {}
    with tqdm(total=sum(epochs.values()) * len(cases) * seeds, unit="epoch", smoothing=0.02) as bar:
        for network in args.networks:
            starts = [initial(network, seed) for seed in range(seeds)]
            results[network] = {}
            for case in cases:
                bar.set_description(f"{network}, {case.label}")
                runs = train(network, starts, rules[case], case.dropout, data, epochs[network], bar.update)
                results[network][case] = [Run(*run) for run in runs]
    seconds = time.perf_counter() - start

    repeats = f"{seeds} seed{'s' * (seeds > 1)}"
    counts = f"{len(data[1])} digits to train on, {len(data[3])} to test"
    print(f"\n{counts}, {args.framework}, mean ± deviation over {repeats}, {seconds:.0f} s.\n")
    print(table(results))
    draw(results, f"Max-norm, {args.framework}, {repeats}: test accuracy and the norms at the end", args.out)
    print(f"\nPicture: {args.out}")


if __name__ == "__main__":
    main()
