"""What the weights of Keras's layers are called, of which a .keras file has only the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["STATISTICS", "Layers"]

# In the order in which a layer saves them; each is there if the layer's option of the name after the colon is true.
_LINEAR = ("kernel", "bias:use_bias")
_RECURRENT = ("kernel", "recurrent_kernel", "bias:use_bias")
_SEPARABLE = ("depthwise_kernel", "pointwise_kernel", "bias:use_bias")
_NORMALISED = ("gamma:scale", "beta:center")
_NAMES = {
    **dict.fromkeys(("Dense", "EinsumDense"), _LINEAR),
    **{f"{kind}{n}D": _LINEAR for kind in ("Conv", "DepthwiseConv") for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": _LINEAR for n in (1, 2, 3)},
    **{f"SeparableConv{n}D": _SEPARABLE for n in (1, 2)},
    **dict.fromkeys(("LSTMCell", "GRUCell", "SimpleRNNCell"), _RECURRENT),
    **{f"ConvLSTM{n}DCell": _RECURRENT for n in (1, 2, 3)},
    "Embedding": ("embeddings",),
    "BatchNormalization": (*_NORMALISED, "moving_mean", "moving_variance"),
    "LayerNormalization": _NORMALISED,
    "GroupNormalization": _NORMALISED,
    "RMSNormalization": ("scale",),
    "PReLU": ("alpha",),
}
# the layers inside of one of these stand in the file under its attribute, with the options of the whole
_CELLS = ("LSTM", "GRU", "SimpleRNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
_ATTENTION = ("MultiHeadAttention", "GroupedQueryAttention")
_STATES = ("seed_generator",)
STATISTICS = ("moving_mean", "moving_variance")  # which are no parameters

_Layer = tuple[str, Mapping[str, Any]]  # class and options


class Layers:
    """The layers in the configuration of a model, by name.

    Args:
        config: the model's ``config.json``. Nothing in it is made.
    """

    def __init__(self, config: Any) -> None:
        self._named: dict[str, _Layer | None] = {}
        for kind, options in _layers(config):
            name = options["name"]
            same = name not in self._named or _like(self._named[name], (kind, options))
            self._named[name] = (kind, options) if same else None  # two different layers of one name
        self._outer: list[_Layer | None] = []

    def found(self, name: str, key: str, named: bool) -> _Layer | None:
        """The layer of this name, or in this attribute of the layer around it; None if it is not known."""
        outer = self._outer[-1] if self._outer else None
        if not named:
            return outer  # a list of layers
        if outer is not None and outer[0] in _CELLS and key == "cell":
            return f"{outer[0]}Cell", outer[1]
        if outer is not None and outer[0] in _ATTENTION and key.endswith("_dense"):
            return "EinsumDense", outer[1]
        return self._named.get(name)

    @contextmanager
    def inside(self, layer: _Layer | None) -> Iterator[None]:
        """While what is in this layer is looked for."""
        self._outer.append(layer)
        try:
            yield
        finally:
            self._outer.pop()

    def is_state(self, key: str) -> bool:
        """Whether what a layer has under this attribute is no weight."""
        return key in _STATES

    def variables(self, layer: _Layer | None, count: int) -> list[str]:
        """The names of the variables of a layer, in order; none where they are not known to be so many."""
        if layer is None:
            return []
        pairs = (name.partition(":") for name in _NAMES.get(layer[0], ()))
        names = [name for name, _, option in pairs if not option or layer[1].get(option, True)]
        return names if len(names) == count else []


def _layers(config: Any) -> Iterator[_Layer]:
    """All layers in a configuration, however deep; a class that is not Keras's own is ""."""
    if isinstance(config, list):
        for part in config:
            yield from _layers(part)
    elif isinstance(config, dict):
        options, module = config.get("config"), config.get("module")
        if isinstance(options, dict) and isinstance(options.get("name"), str) and isinstance(module, str):
            yield str(config.get("class_name")) if module.partition(".")[0] == "keras" else "", options
        for part in config.values():
            yield from _layers(part)


def _like(known: _Layer | None, other: _Layer) -> bool:
    if known is None or known[0] != other[0]:
        return False
    options = {name.partition(":")[2] for name in _NAMES.get(other[0], ())} | {"use_bias"}
    return all(known[1].get(option, True) == other[1].get(option, True) for option in options)
