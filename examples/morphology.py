"""Morphological networks: dilations of handwritten digits with constraints on their kernels, in PyTorch or Keras.

    python examples/morphology.py --framework torch|keras

A dilation is the largest sum of image and kernel over every window, where a convolution has the sum of products. The
first layer has eight kernels of 5 x 5; they are free, non-negative, non-positive, or non-positive with 0 at the centre,
which makes the dilation extensive: no pixel gets darker. The network, its 1,024 training images, its optimizer and its
schedules are those of the tutorial on constraints of the library morpholayers (for Keras); but after 40 epochs it ends,
where the tutorial's runs stopped early after 69 to 79 of its 100 (`--epochs 100`). Prints a table and a confusion
matrix; draws kernels, dilated images, errors and curves. The networks are in `morphology_torch.py` and
`morphology_keras.py`.

Found (torch, 2 seeds): no constraint raises the accuracy: free 0.936, non-negative 0.929, non-positive 0.927, extensive
0.923 (Keras, one seed: 0.942, 0.930, 0.932 and 0.934), where the tutorial's log has 0.926, 0.934, 0.929 and 0.929
(0.925, 0.927, 0.927 and 0.929 after 40 epochs); the best epoch is picked on the validation images, as there. With
`--epochs 100` all stop early, after 49 to 81, and it is no different: free 0.938 and 0.942, non-negative 0.939 and
0.926, of the first seed non-positive 0.931, extensive 0.926. What they give is a guarantee: extensive and non-negative
kernels darken no pixel (free 5 %, non-positive 35 %).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import common  # type: ignore[import-not-found]
import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import confusion_matrix
from tqdm import tqdm

import projgrad as pg

# what holds for the kernels, whose spatial axes depend on the framework
CASES: dict[str, Callable[[tuple[int, int]], Any]] = {
    "free": lambda spatial: None,
    "non-negative": lambda spatial: pg.NonNeg(),
    "non-positive": lambda spatial: pg.morphology.non_positive(),
    "extensive": lambda spatial: pg.Extensive(spatial=spatial),
}
# best validation accuracies that the tutorial logs, of one run each (for the first, its text says 0.9688)
TUTORIAL = {"free": 0.9255, "non-negative": 0.9343, "non-positive": 0.9293, "extensive": 0.9291}
COLOURS = ["#666666", "#0072B2", "#D55E00", "#009E73"]  # distinct to colour-blind eyes as well


class Run(NamedTuple):
    """One training: validation accuracy per epoch; of the last weights the kernels, what they make of the validation
    images, the digits found, and the largest violation."""

    curve: list[float]
    kernels: np.ndarray
    dilated: np.ndarray
    found: np.ndarray
    violation: float


Results = Mapping[str, Sequence[Run]]


def digits(training: int = 1024) -> list[np.ndarray]:
    """The images to train on, their digits, the others, and theirs."""
    x, y = common.mnist()
    return [x[:training], y[:training], x[training:], y[training:]]


def darker(run: Run, images: np.ndarray) -> float:
    """The share of pixels that a dilation made darker."""
    edge = run.kernels.shape[-1] // 2
    return float(np.mean(run.dilated < images[:, None, edge:-edge, edge:-edge]))


def table(results: Results, images: np.ndarray) -> str:
    """The results as a Markdown table."""
    rows = [["kernels", "best accuracy", "tutorial", "epochs", "smallest", "largest", "at 0", "darker", "violation"]]
    for label, runs in results.items():
        best = np.array([max(run.curve) for run in runs])
        kernels = np.array([run.kernels for run in runs])
        rows.append(
            [
                label,
                common.spread(best, 4),
                f"{TUTORIAL[label]:.4f}",
                " ".join(str(len(run.curve)) for run in runs),
                f"{kernels.min():.2f}",
                f"{kernels.max():.2f}",
                f"{np.mean(kernels == 0):.0%}",
                f"{np.mean([darker(run, images) for run in runs]):.1%}",
                "" if label == "free" else f"{max(run.violation for run in runs):.0e}",
            ]
        )
    return common.table(rows)


def draw(results: Results, images: np.ndarray, truth: np.ndarray, title: str, path: Path) -> None:
    """The curves above; below, for each constraint, the kernels of its first run, dilations and errors."""
    figure = plt.figure(figsize=(11, 13), layout="constrained")
    figure.suptitle(title)
    parts: Any = figure.subfigures(1 + len(results), 1, height_ratios=[3.2] + [2.4] * len(results))
    upper, *lower = parts.ravel()
    ax, original = upper.subplots(1, 2, width_ratios=[4, 1])
    original.imshow(images[0], cmap="gray")
    original.set_title(f"a {truth[0]} to dilate", fontsize=10)
    original.axis("off")
    for colour, (label, runs) in zip(COLOURS, results.items(), strict=True):
        for i, run in enumerate(runs):
            ax.plot(np.arange(1, len(run.curve) + 1), run.curve, color=colour, lw=1.2, label=None if i else label)
    ax.set(xlabel="epoch", ylabel="validation accuracy", ylim=(min(0.84, ax.get_ylim()[1] - 0.1), None))
    ax.grid(alpha=0.25)
    ax.legend(loc="lower right")

    span = max(float(np.abs(runs[0].kernels).max()) for runs in results.values())
    for part, colour, (label, runs) in zip(lower, COLOURS, results.items(), strict=True):
        kernels, dilated, errors = part.subplots(1, 3, width_ratios=[1.9, 1.9, 1])
        shown = kernels.imshow(common.mosaic(runs[0].kernels, 4), cmap="RdBu", vmin=-span, vmax=span)
        kernels.set_title(f"{label}: kernels", color=colour, fontsize=10)
        part.colorbar(shown, ax=kernels, location="left", shrink=0.8)
        dilated.imshow(common.mosaic(runs[0].dilated[0], 4, gap=2), cmap="gray")
        dilated.set_title(f"what they make of the {truth[0]}", fontsize=10)
        matrix = confusion_matrix(truth, runs[0].found, labels=range(10))
        np.fill_diagonal(matrix, 0)
        errors.imshow(matrix, cmap="Oranges", vmin=0, vmax=30)
        for row, column in np.argwhere(matrix):
            errors.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=5.5)
        errors.set_title(f"{matrix.sum()} of {len(truth)} wrong", fontsize=10)
        errors.set(xticks=range(10), yticks=range(10), xlabel="taken for", ylabel="digit")
        errors.tick_params(labelsize=7, length=0)
        for image in (kernels, dilated):
            image.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.parser("morphology", __doc__, "torch", "keras")
    parser.add_argument("--seeds", type=common.count, help="how often to repeat (default: 2; Keras 1)")
    parser.add_argument("--epochs", type=common.count, default=40, help="at most (tutorial: 100); training stops early")
    parser.set_defaults(images=5000)  # at most, to train on and to validate
    args = common.parse(parser, argv, seeds=1, epochs=2, images=256)
    seeds, epochs = args.seeds or (1 if args.framework == "keras" else 2), args.epochs
    data = [part[: args.images] for part in digits()]
    backend = import_module(f"morphology_{args.framework}")

    start, results = time.perf_counter(), {}
    with tqdm(total=len(CASES) * seeds * epochs, unit="epoch", smoothing=0.02) as bar:
        for label, case in CASES.items():
            bar.set_description(label)
            constraint = case(backend.SPATIAL)
            rules = {} if constraint is None else {backend.KERNEL: constraint}
            results[label] = [Run(*run) for run in backend.train(data, rules, seeds, epochs, bar.update)]
    seconds = time.perf_counter() - start

    _, _, images, truth = data
    repeats = f"{seeds} seed{'s' * (seeds > 1)}"
    print(f"\nDilations, {args.framework}, {seconds:.0f} s: best validation accuracy, mean ± deviation over {repeats};")
    print(f"{len(data[1])} images to train on, {len(truth)} to validate (tutorial: 10000, one run).\n")
    print(table(results, images))
    first = next(iter(results))
    print(f"\nConfusion matrix, {first}, first run (row: digit, column: taken for)")
    print(confusion_matrix(truth, results[first][0].found, labels=range(10)))
    draw(results, images, truth, f"Dilations of handwritten digits, {args.framework}, {repeats}", args.out)
    print(f"\nPicture: {args.out}")


if __name__ == "__main__":
    main()
