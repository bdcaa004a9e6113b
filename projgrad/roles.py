"""Which layers of a model a paper means, where it says something else of each: for `ngpt`, `eegnet`, `monotone`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from projgrad.axes import group_size
from projgrad.layer_names import ATTENDING, READERS, WRITERS
from projgrad.weights import CONV, DENSE, DEPTHWISE, EMBEDDING, Patterns, Weight, Weights, listed

__all__ = ["check_width", "eegnet_layers", "embedding_axes", "positions"]

Axes = tuple[int, ...]


def check_width(held: Weights, width: Any) -> int:
    """The size of the embedding, which is that of the embedding layers where it is not given.

    Raises:
        TypeError: it is no int.
        ValueError: it is not positive, or not given and there is no such layer, or there are several sizes.
    """
    if width is not None:
        if isinstance(width, bool) or not hasattr(width, "__index__"):
            raise TypeError(f"presets.{held.preset}: width={width!r} is not an int")
        held.positive("width", width)
        return int(width)
    layers = [w for w in held.weights if w.kind == EMBEDDING]
    layers = layers or [w for w in held.found if w.kind == EMBEDDING and not w.parameter.refused]  # the user's
    sizes = sorted({group_size(w.shape, held.inputs(w)) for w in layers})
    if len(sizes) != 1:
        known = f"{listed(layers)} have" if layers else "no layer is known as an embedding, which leaves"
        raise ValueError(
            f"presets.{held.preset}: {known} the widths {sizes}: say which, width=n for vectors of n entries between "
            f"the layers. The matrices are {listed(held.weights)}"
        )
    return sizes[0]


def embedding_axes(held: Weights, weight: Weight, width: int, reads: bool | None) -> Axes:
    """The axes of a matrix that are the embedding dimension.

    Args:
        held: the model.
        weight: the matrix.
        width: the size of the embedding.
        reads: whether the user says that the matrix reads the embedding, or that it writes it; None for neither.

    Raises:
        ValueError: none are of that size, or those of the inputs and of the outputs both are, and no name tells.
    """
    held.check(weight)
    if isinstance(weight.incoming, str):  # one axis of a matrix of any layout may tell
        axes = [(d,) for d, size in enumerate(weight.shape) if size == width]
        return axes[0] if len(axes) == 1 else held.inputs(weight)
    sides = [held.inputs(weight), held.outputs(weight)]
    if weight.of_class("multiheadattention") and weight.named("[kv]_proj_weight"):
        return sides[0]  # with kdim or vdim, keys and values read vectors of another size
    fitting = [axes for axes in sides if group_size(weight.shape, axes) == width]
    reading, writing = weight.named(READERS), weight.named(WRITERS)
    if reads is None and (weight.embeds or (weight.named(ATTENDING) and not writing)):
        reads = True  # whatever the other side is
    elif reads is None and len(fitting) == 2 and reading != writing:
        reads = reading
    if not fitting:
        raise held.error(weight, f"0 of its axes have the size {width} of the embedding dimension")
    if reads is None and len(fitting) == 2:
        raise held.error(weight, f"both its sides have the size {width}: name it in readers= or in writers=")
    side = fitting[0] if reads is None else sides[0] if reads else sides[1]
    if side not in fitting:
        does, which = ("reads", "inputs") if reads else ("writes", "outputs")
        size = group_size(weight.shape, side)
        raise held.error(
            weight, f"it {does} the embedding, whose size is {width}, but its {which} have the size {size}"
        )
    return side


def eegnet_layers(
    held: Weights, spatial: Patterns | None, classifier: Patterns | None
) -> tuple[list[Weight], list[Weight]]:
    """The spatial filters and the last layer of an EEGNet, without what rules of the user select.

    Of several depthwise convolutions, the spatial filter is the one that is called so, or the one that does not extend
    in time: along the axes along which ordinary convolutions, the temporal filters, do.

    Raises:
        ValueError: there is not one layer of each kind, with all that has to be said to tell them.
    """
    matrices = [w for w in held.found if w.is_matrix]  # the user's too: another one does not take their place
    time = {d for w in matrices if w.kind == CONV for d, size in enumerate(w.space) if size > 1}
    missing: list[str] = []

    def across(w: Weight) -> bool:
        return bool(time) and all(size == 1 for d, size in enumerate(w.space) if d in time)

    def chosen(argument: str, patterns: Patterns | None, kind: str, *signs: Callable[[Weight], bool]) -> list[Weight]:
        if patterns is not None:
            return held.chosen(argument, patterns, matrices)
        known = found = list({w.name: w for w in matrices if w.kind == kind}.values())
        if len(known) > 1:
            found = next((some for sign in signs if len(some := [w for w in known if sign(w)]) == 1), [])
        if len(found) != 1:
            missing.append(
                f"{len(found)} are taken for the {kind} layer of the paper, as those known to be {kind} are "
                f"{listed(known)}: say by {argument}= which it is"
            )
        return found

    filters = chosen("spatial", spatial, DEPTHWISE, lambda w: w.named("*spatial*"), across)
    classes = chosen("classifier", classifier, DENSE, lambda w: w.named("*class*"))
    if missing:
        for w in matrices:
            if not w.free:
                held.check(w)
            if isinstance(w.incoming, str) and len(w.shape) > 2:
                axes = tuple(range(len(w.shape)))
                axes = axes[1:] if w.channels_first else axes[:-1]
                missing.append(f"the axes of {w.name} are not known: if that is it, incoming={{{w.name!r}: {axes}}}")
        raise ValueError(f"presets.{held.preset}: of {listed(matrices)}, {'; '.join(missing)}")
    return [w for w in filters if not w.free], [w for w in classes if not w.free]


def positions(given: Any) -> set[int]:
    """The positions of inputs that `monotone` is given.

    Raises:
        TypeError: they are not a list of ints.
    """
    found: set[Any] = set(given) if isinstance(given, Iterable) else {None}
    if any(isinstance(i, bool) or not isinstance(i, (int, np.integer)) for i in found):
        raise TypeError(f"presets.monotone takes positions of inputs, a list of ints, not {given!r}")
    return {int(i) for i in found}
