"""Draws how layers store their weights, and which of them feed one unit.

    python docs/axes_pictures.py            # writes docs/pictures/*.svg

The shapes are those of real layers, and the coloured axes those that `axis="incoming"` resolves to for them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

HERE = Path(__file__).parent / "pictures"
ONE, REST = "#3f51b5", "#dfe3f5"
SIDE = 0.26  # of a square, in inches
GAP = 0.6  # between the small matrices of which an array of three or four dimensions is drawn


@dataclass(frozen=True)
class Weight:
    """What is drawn: a title, the array's shape, what its axes are, and those of `"incoming"`."""

    title: str
    shape: tuple[int, ...]
    means: Sequence[str]
    incoming: tuple[int, ...]

    @property
    def head(self) -> tuple[str, str, str]:
        """What stands above the picture."""
        layer, name = self.title.split("\n")
        return layer, f"{name} {self.shape}", f"incoming: axis {', '.join(map(str, self.incoming))}"

    def file(self, framework: str) -> Path:
        """Where the picture is."""
        return HERE / f"{framework}-{'-'.join(re.findall(r'[a-z]+[0-9]?d?', self.title.lower()))}.svg"


def torch_weights() -> list[Weight]:
    from torch import nn

    from projgrad_backends.torch.incoming import incoming

    def weight(title: str, layer: nn.Module, name: str, *means: str) -> Weight:
        array = layer.get_parameter(name)
        return Weight(f"{title}\n{name}", tuple(array.shape), means, _axes(incoming(layer, name, array)))

    return [
        weight("Linear(5, 3)", nn.Linear(5, 3), "weight", "out", "in"),
        weight("Conv2d(2, 3, 3)", nn.Conv2d(2, 3, 3), "weight", "out", "in", "height", "width"),
        weight("ConvTranspose2d(2, 3, 3)", nn.ConvTranspose2d(2, 3, 3), "weight", "in", "out", "height", "width"),
        weight("Embedding(6, 4)", nn.Embedding(6, 4), "weight", "words", "features"),
        weight("LSTM(4, 2)", nn.LSTM(4, 2), "weight_ih_l0", "4 gates x 2 units", "in"),
        weight("GRU(4, 2)", nn.GRU(4, 2), "weight_hh_l0", "3 gates x 2 units", "last state"),
        weight("MultiheadAttention(4, 2)", nn.MultiheadAttention(4, 2), "in_proj_weight", "q, k, v x 4", "in"),
    ]


def keras_weights() -> list[Weight]:
    from keras import layers

    from projgrad_backends.keras.incoming import incoming

    def weight(title: str, layer: Any, name: str, *means: str) -> Weight:
        return Weight(f"{title}\n{name}", tuple(getattr(layer, name).shape), means, _axes(incoming(layer, name)))

    def built(layer: Any, *shape: int) -> Any:
        layer.build((None, *shape))
        return layer

    lstm, gru = built(layers.LSTM(2), 5, 4), built(layers.GRU(2), 5, 4)
    attention = layers.MultiHeadAttention(2, 3)
    attention.build((None, 5, 4), (None, 5, 4))
    return [
        weight("Dense(3)", built(layers.Dense(3), 5), "kernel", "in", "out"),
        weight("Conv2D(3, 3)", built(layers.Conv2D(3, 3), 8, 8, 2), "kernel", "height", "width", "in", "out"),
        weight(
            "Conv2DTranspose(3, 3)",
            built(layers.Conv2DTranspose(3, 3), 8, 8, 2),
            "kernel",
            "height",
            "width",
            "out",
            "in",
        ),
        weight(
            "DepthwiseConv2D(3)",
            built(layers.DepthwiseConv2D(3, depth_multiplier=2), 8, 8, 2),
            "kernel",
            "height",
            "width",
            "channels",
            "multiplier",
        ),
        weight("Embedding(6, 4)", built(layers.Embedding(6, 4)), "embeddings", "words", "features"),
        weight("LSTM(2)", lstm.cell, "kernel", "in", "4 gates x 2 units"),
        weight("GRU(2)", gru.cell, "recurrent_kernel", "last state", "3 gates x 2 units"),
        weight("MultiHeadAttention(2, 3), query", attention.query_dense, "kernel", "in", "heads", "features"),
    ]


def jax_weights() -> list[Weight]:
    import equinox as eqx
    import jax
    from flax import nnx

    from projgrad_backends.jax.incoming import by_layer

    key, rngs = jax.random.key(0), nnx.Rngs(0)

    def weight(title: str, layer: Any, name: str, *means: str) -> Weight:
        held = getattr(layer, name)
        shape = tuple(held[...].shape if isinstance(held, nnx.Param) else held.shape)
        return Weight(f"{title}\n{name}", shape, means, _axes(by_layer(layer, name, len(shape))))

    attention = nnx.MultiHeadAttention(2, 4, 6, rngs=rngs)
    return [
        weight("nnx.Linear(5, 3)", nnx.Linear(5, 3, rngs=rngs), "kernel", "in", "out"),
        weight("nnx.Conv(2, 3, (3, 3))", nnx.Conv(2, 3, (3, 3), rngs=rngs), "kernel", "height", "width", "in", "out"),
        weight("nnx.Embed(6, 4)", nnx.Embed(6, 4, rngs=rngs), "embedding", "words", "features"),
        weight("nnx.MultiHeadAttention, query", attention.query, "kernel", "in", "heads", "features"),
        weight("equinox Linear(5, 3)", eqx.nn.Linear(5, 3, key=key), "weight", "out", "in"),
        weight("equinox Conv2d(2, 3, 3)", eqx.nn.Conv2d(2, 3, 3, key=key), "weight", "out", "in", "height", "width"),
        weight("equinox Embedding(6, 4)", eqx.nn.Embedding(6, 4, key=key), "weight", "words", "features"),
        weight("equinox LSTMCell(4, 2)", eqx.nn.LSTMCell(4, 2, key=key), "weight_ih", "4 gates x 2 units", "in"),
    ]


WEIGHTS = {"torch": torch_weights, "keras": keras_weights, "jax": jax_weights}


def _axes(found: tuple[int, ...] | str) -> tuple[int, ...]:
    if isinstance(found, str):
        raise ValueError(found)
    return found


def draw(weight: Weight, path: Path) -> None:
    """One square per number, those of the first unit dark; beyond two dimensions, a grid of matrices."""
    shape = (1,) * (4 - len(weight.shape)) + weight.shape
    fixed = [d + 4 - len(weight.shape) for d in range(len(weight.shape)) if d not in weight.incoming]
    high, wide = shape[2] + GAP, shape[3] + GAP
    right, bottom = shape[1] * wide - GAP, shape[0] * high - GAP
    fig = plt.figure(figsize=(right * SIDE, bottom * SIDE))
    ax = fig.add_axes((0, 0, 1, 1), frame_on=False)
    ax.set(xlim=(0, right), ylim=(bottom, 0), xticks=[], yticks=[])
    for index in product(*map(range, shape)):
        i, j, row, column = index
        colour = ONE if all(index[d] == 0 for d in fixed) else REST
        ax.add_patch(Rectangle((j * wide + column, i * high + row), 1, 1, facecolor=colour, edgecolor="white"))
    names = [f"axis {d}: {what}" for d, what in enumerate(weight.means)]
    inner, outer = names[-2:], names[:-2]
    ax.set_ylabel("\n".join([*outer[-2:-1], inner[0]]))
    ax.set_xlabel("\n".join([inner[1], *outer[-1:]]))
    ax.set_title("\n".join(weight.head), fontsize=10)
    fig.savefig(path, bbox_inches="tight", pad_inches=0.12, metadata={"Date": None, "Creator": None})
    plt.close(fig)


def main() -> None:
    """Draw all, and say which there are."""
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "projgrad", "font.size": 9}
    HERE.mkdir(exist_ok=True)
    for framework, weights in WEIGHTS.items():
        for weight in weights():
            draw(weight, weight.file(framework))
            print(f"![{weight.head[0]}](pictures/{weight.file(framework).name})")


if __name__ == "__main__":
    main()
