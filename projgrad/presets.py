"""Presets: the rules by which papers constrain a network, for the parameters of a given model.

A model is a torch module, a built Keras model, an nnx or equinox module, or a dict of JAX parameters (of flax linen,
what the optimizer gets). The rules go by the names of its parameters, with axes as numbers, so every wrapper takes
them:

    optimizer = projgrad.torch.ProjectedOptimizer(adam, pg.presets.maxnorm_dropout(model), model=model)

Nothing is guessed. Where a layer is not known (a class of your own, a bare array), presets take, where they need it,

- ``incoming``: name patterns, as in rules, to the axes of the weights that feed one unit: ``{"*.c_attn.weight": 0}``;
- ``but``: rules of your own, which win: what they select, the preset does not look at. None leaves it free.

Other arguments that are patterns are compared, whatever the case, with the name of a parameter and with every part of
it between dots or slashes. What is given replaces the patterns that an argument has by itself, if any.

A parameter with several names (tied weights) is held to what is asked of it under each of them: an embedding that is
the output head too is held as the head, by a rule with its first name.

All raise TypeError where the model is none of these, or a number or pattern is none; and ValueError where an argument
is out of range or names nothing, where a preset selects nothing, and, with the name of the parameter, where it cannot
know what the paper says of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np

from projgrad.axes import Axis, group_size
from projgrad.constraint import Constraint
from projgrad.layer_names import DECODERS, HIDDEN, MORPHOLOGICAL, THROUGH
from projgrad.roles import check_width, eegnet_layers, embedding_axes, positions
from projgrad.rules import Rules
from projgrad.schedule import Schedule
from projgrad.sets import Box, Extensive, MaxNorm, MinMaxNorm, NonNeg, SpectralNorm, UnitNorm
from projgrad.sets.morphology import non_positive
from projgrad.tag import Tag
from projgrad.weights import DENSE, EMBEDDING, Known, Patterns, Weight, Weights

__all__ = [
    "edm2",
    "eegnet",
    "icnn",
    "lipschitz",
    "maxnorm_dropout",
    "monotone",
    "morphology",
    "ngpt",
    "sae",
    "wgan",
]


def ngpt(
    model: Any,
    width: int | None = None,
    *,
    readers: Patterns = (),
    writers: Patterns = (),
    incoming: Known = None,
    but: Rules | None = None,
) -> dict[Any, Any]:
    """Every matrix of a transformer with vectors of norm 1 along the embedding dimension.

    Of tokens, queries, keys, values, the first layer of an MLP and the output head that is the axis of the inputs; of
    the projections that write back into the embedding space (of attention, the last of an MLP) that of the outputs. It
    is the one whose size is `width`; where both are of that size, the name of the layer tells, as most are called.
    Parameters of fewer than two dimensions are free.

    Args:
        model: the model.
        width: the size of the embedding; None for that of the embedding layers.
        readers: layers that read the embedding, where their names do not tell or tell wrong; the names of all others
            still tell.
        writers: the same for layers that write it.
        incoming: axes, as said above for all presets.
        but: rules that win, as said there.

    Raises:
        ValueError: no axis of a matrix has this size, or both have and the name does not tell; `width` is not told by
            the model; or as said above.

    Source: Loshchilov, Hsieh, Sun and Ginsburg, nGPT: normalized transformer with representation learning on the
    hypersphere, arXiv 2410.01131, 2024.
    """
    held = Weights("ngpt", model, but, incoming)
    reading = held.chosen("readers", readers, held.weights)
    writing = held.chosen("writers", writers, held.weights)
    width = check_width(held, width)

    def unit(weight: Weight) -> Constraint:
        if weight in reading and weight in writing:
            raise held.error(weight, "both readers= and writers= name it")
        reads = True if weight in reading else False if weight in writing else None
        return UnitNorm(axis=embedding_axes(held, weight, width, reads))

    return held.rules((w, unit(w)) for w in held.weights)


def edm2(model: Any, *, variance: bool = False, incoming: Known = None, but: Rules | None = None) -> dict[Any, Any]:
    """The weights of every unit of linear layers and convolutions with norm 1: forced weight normalisation.

    Args:
        model: the model.
        variance: keep them with variance 1, that is with norm ``sqrt(n)`` for n weights per unit, as the paper's code
            does; for layers that divide by that when they use them, which no built-in layer does.
        incoming: axes, as said above for all presets.
        but: rules that win, as said there.

    Biases, gains and embeddings are free.

    Source: Karras, Aittala, Lehtinen, Hellsten, Aila and Laine, Analyzing and improving the training dynamics of
    diffusion models, CVPR 2024 (arXiv 2312.02696), section 2.3.
    """
    held = Weights("edm2", model, but, incoming)

    def shell(weight: Weight) -> Constraint:
        axes = held.inputs(weight)
        norm = math.sqrt(group_size(weight.shape, axes))
        return MinMaxNorm(norm, norm, axis=axes) if variance else UnitNorm(axis=axes)

    return held.rules((w, shell(w)) for w in held.weights if w.kind != EMBEDDING)


def sae(
    model: Any,
    *,
    decoder: Patterns = DECODERS,
    tangent: str | None = "gradient",
    incoming: Known = None,
    but: Rules | None = None,
) -> dict[Any, Any]:
    """The decoder of a sparse autoencoder with dictionary vectors of norm 1: what one feature writes.

    The gradient loses its part along them before the optimizer gets it (see `projgrad.Tag`).

    Args:
        model: the model.
        decoder: the weights of the decoder.
        tangent: "gradient", "update", or None for neither, as `projgrad.optax.project` needs it.
        incoming: axes, as said above for all presets. A bare ``W_dec`` of shape (features, inputs) needs
            ``incoming={"W_dec": 0}``.
        but: rules that win, as said there.

    Source: Bricken et al., Towards monosemanticity, 2023, with the gradient; Gao et al., Scaling and evaluating sparse
    autoencoders, arXiv 2406.04093, 2024.
    """
    held = Weights("sae", model, but, incoming)
    chosen = held.chosen("decoder", decoder, held.weights, DECODERS)
    for w in chosen:
        if w.named(("encoder", "enc")):
            raise held.error(w, "it is called encoder as well: say by decoder= which is the decoder")
    return held.rules(((w, Tag(UnitNorm(axis=held.outputs(w)), tangent=tangent)) for w in chosen), "decoder")


def wgan(critic: Any, clip: float = 0.01, *, but: Rules | None = None) -> dict[Any, Any]:
    """Every parameter of a critic in ``[-clip, clip]``, biases and scales too, as in the paper's code.

    Args:
        critic: the model.
        clip: the bound, a positive number.
        but: rules that win, as said above for all presets.

    Source: Arjovsky, Chintala and Bottou, Wasserstein generative adversarial networks, ICML 2017, algorithm 1.
    """
    held = Weights("wgan", critic, but)
    held.positive("clip", clip)
    return held.rules((w, Box(-1.0 * clip, clip)) for w in held.all)  # which may be a schedule, that has no minus


def icnn(
    model: Any, *, hidden: Patterns = HIDDEN, through: Patterns = THROUGH, but: Rules | None = None
) -> dict[Any, Any]:
    """The weights from one hidden layer to the next non-negative, those from the input free: convex in the input.

    Every parameter but biases must be told to be one or the other, as forgetting one would make the network not convex.
    Its activations must be convex and not decreasing.

    Args:
        model: the model.
        hidden: the parameters that take the hidden layers, W_z in the paper, the last layer included.
        through: those that take the input (or the context of a partially convex network), W_y.
        but: rules that win, as said above for all presets.

    Source: Amos, Xu and Kolter, Input convex neural networks, ICML 2017, proposition 1.
    """
    held = Weights("icnn", model, but)
    inner = held.chosen("hidden", hidden, held.factors, HIDDEN)
    outer = held.chosen("through", through, held.factors, THROUGH)
    for w in held.factors:
        if (w in inner) == (w in outer):
            both = "both" if w in inner else "neither"
            raise held.error(w, f"{both} of hidden= and through= name it, which say what is non-negative and what free")
    return held.rules((w, NonNeg()) for w in inner)


def monotone(
    model: Any,
    *,
    increasing: Iterable[int] | None = None,
    decreasing: Iterable[int] = (),
    first: Patterns = (),
    incoming: Known = None,
    but: Rules | None = None,
) -> dict[Any, Any]:
    """All parameters but biases and embeddings non-negative: every output increases with every input.

    In the layer that takes the inputs, weights of the decreasing ones are at most 0, and of the others free. Scales, as
    those of a batch normalisation, are non-negative too. The activations must be increasing, and so must be all else:
    attention and layer normalisation are not.

    Args:
        model: the model.
        increasing: positions of the inputs with which the output is to increase; None for all not in `decreasing`.
        decreasing: of those with which it is to decrease.
        first: the weights that take the inputs, needed where these differ.
        incoming: axes, as said above for all presets.
        but: rules that win, as said there.

    Raises:
        TypeError: positions are not ints.
        ValueError: a position does not exist or is in both, or `first` is not given and needed; or as said above.

    Source: Archer and Wang, Application of the back propagation neural network algorithm with monotonicity
    constraints, Decision Sciences 24, 1993; Daniels and Velikova, Monotone and partially monotone neural networks,
    IEEE Transactions on Neural Networks 21, 2010.
    """
    held = Weights("monotone", model, but, incoming)
    falling, wanted = positions(decreasing), None if increasing is None else positions(increasing)
    starts = held.chosen("first", first, held.weights)
    if not starts and (falling or increasing is not None):
        raise ValueError(f"presets.monotone: say by first= which weights take the inputs: {held.names}")

    def signs(weight: Weight) -> Constraint:
        if weight not in starts or (wanted is None and not falling):
            if len(weight.shape) > 1:
                held.linear(weight)
            elif weight.of_class(("*layernorm*", "*groupnorm*", "*rmsnorm*", "*instancenorm*")):
                raise held.error(weight, f"{type(weight.use.layer).__name__} does not increase with its inputs")
            return NonNeg()
        axis, *more = held.inputs(weight)
        if more:
            raise held.error(weight, "its units have not one axis of inputs but several")
        n = weight.shape[axis]
        rising = set(range(n)) - falling if wanted is None else wanted
        if wrong := sorted((rising & falling) | ((rising | falling) - set(range(n)))):
            raise held.error(weight, f"it has {n} inputs, of which {wrong} do not exist, or increase and decrease")
        shape = [n if d == axis else 1 for d in range(len(weight.shape))]
        lower, upper = ([0.0 if i in ones else end for i in range(n)] for ones, end in ((rising, -inf), (falling, inf)))
        return Box(np.reshape(lower, shape), np.reshape(upper, shape))

    return held.rules((w, signs(w)) for w in held.factors if w.kind != EMBEDDING)


def eegnet(
    model: Any,
    *,
    spatial: Patterns | None = None,
    classifier: Patterns | None = None,
    spatial_norm: float = 1.0,
    classifier_norm: float = 0.25,
    incoming: Known = None,
    but: Rules | None = None,
) -> dict[Any, Any]:
    """Spatial filters with norms of at most 1, and the weights of each class with norms of at most 0.25.

    Args:
        model: the model.
        spatial: the depthwise convolution over the electrodes; None for the only depthwise convolution, or the one of
            them that is called spatial, or the one with a single weight along the axis of ordinary convolutions, which
            is time. That of a Keras `SeparableConv2D` is none of them.
        classifier: the last layer; None for the only dense one, or the one of them that is called a class(ifier).
        spatial_norm: the bound of the spatial filter, a positive number.
        classifier_norm: that of the last layer.
        incoming: axes, as said above for all presets.
        but: rules that win, as said there.

    Source: Lawhern, Solon, Waytowich, Gordon, Hung and Lance, EEGNet: a compact convolutional neural network for
    EEG-based brain-computer interfaces, Journal of Neural Engineering 15, 2018, table 2.
    """
    held = Weights("eegnet", model, but, incoming)
    held.positive("spatial_norm", spatial_norm)
    held.positive("classifier_norm", classifier_norm)
    filters, classes = eegnet_layers(held, spatial, classifier)
    bounds = [(w, spatial_norm) for w in filters] + [(w, classifier_norm) for w in classes]
    return held.rules((w, MaxNorm(most, axis=held.inputs(w))) for w, most in bounds)


def lipschitz(
    model: Any,
    constant: float = 1.0,
    *,
    conv: str = "bound",
    method: str = "svd",
    incoming: Known = None,
    but: Rules | None = None,
) -> dict[Any, Any]:
    """The n dense layers and convolutions, one after the other, with a Lipschitz constant of at most `constant` in all.

    The largest singular value of each is at most ``constant**(1 / n)``. The bound holds for the network in the l2 norm
    where all between them has a constant of at most 1, as relu and max-pooling without overlap have; sums of branches,
    attention and normalisation have not. Embeddings are free. A module used twice under one name counts once, and what
    `but` selects does not count.

    Args:
        model: the model.
        constant: the bound, a positive number.
        conv: a kernel, as the matrix of the weights of each output, has the singular value s. With p places in space,
            the convolution, padded by zeros or around, has at most ``sqrt(p) * s``, with any stride. "bound" bounds
            that, so that the constant holds; "reshaped" bounds s, as in the paper of 2017, and it need not.
        method: of `projgrad.SpectralNorm`.
        incoming: axes, as said above for all presets.
        but: rules that win, as said there.

    Source: Yoshida and Miyato, Spectral norm regularization, arXiv 1705.10941, 2017; Cissé, Bojanowski, Grave, Dauphin
    and Usunier, Parseval networks, ICML 2017, for convolutions; Gouk, Frank, Pfahringer and Cree, Regularisation of
    neural networks by enforcing Lipschitz continuity, Machine Learning 110, 2021, for projecting after each step.
    """
    if conv not in ("bound", "reshaped"):
        raise ValueError(f'presets.lipschitz: conv={conv!r} is neither "bound" nor "reshaped"')
    held = Weights("lipschitz", model, but, incoming)
    held.positive("constant", constant, ", as every layer gets its max_value from it")
    if isinstance(constant, Schedule):
        raise TypeError("presets.lipschitz: constant= takes a number, and no schedule, as its roots are needed")
    layers, whole = [w for w in held.factors if w.kind != EMBEDDING], SpectralNorm(constant, method=method)

    def ball(weight: Weight) -> Constraint:
        held.linear(weight)
        places = 1 if weight.kind == DENSE or conv == "reshaped" else math.prod(weight.space)
        layer = weight.use.layer
        mode = str(getattr(layer, "padding_mode", getattr(layer, "padding", ""))).lower()
        if places > 1 and mode in ("reflect", "replicate"):
            raise held.error(weight, f"the bound does not hold for a convolution padded by {mode!r}")
        radius = constant ** (1 / len(layers)) / math.sqrt(places)
        return replace(whole, max_value=radius, axis=(held.outputs(weight), held.inputs(weight)))

    return held.rules((w, ball(w)) for w in layers)


def morphology(
    model: Any,
    *,
    layers: Patterns = MORPHOLOGICAL,
    lower: float = -1.0,
    centred: bool = True,
    spatial: Axis = None,
    but: Rules | None = None,
) -> dict[Any, Any]:
    """Structuring functions between `lower` and 0, with 0 at the centre: dilations extensive, erosions anti-extensive.

    Args:
        model: the model.
        layers: the layers that add kernels and take the largest or smallest: parts of names, or names of their classes.
        lower: the least value, below 0; -inf for none.
        centred: False for kernels that are only non-positive.
        spatial: the spatial axes; None for the last two in torch and equinox, and the first two in Keras and flax.
        but: rules that win, as said above for all presets.

    Source: Serra, Image analysis and mathematical morphology, volume 2, 1988; Maragos and Schafer, Morphological
    filters, part I, IEEE Transactions on Acoustics, Speech and Signal Processing 35, 1987.
    """
    held = Weights("morphology", model, but)
    held.number("lower", lower, lambda number: number < 0, "must be below 0")
    held.axis("spatial", spatial)
    chosen = held.chosen("layers", layers, held.weights, MORPHOLOGICAL, classes=True)
    for w in chosen:
        if w.kind and w.use.layer is not None and not w.of_class(layers):
            raise held.error(w, f"it belongs to {type(w.use.layer).__name__}, which multiplies with it")

    def element(weight: Weight) -> Constraint:
        axes = ((-2, -1) if weight.channels_first else (0, 1)) if spatial is None else spatial
        return Extensive(lower, spatial=axes) if centred else non_positive(lower)

    return held.rules(((w, element(w)) for w in chosen), "layers")


def maxnorm_dropout(model: Any, c: float = 3.0, *, incoming: Known = None, but: Rules | None = None) -> dict[Any, Any]:
    """The weights that feed a unit, of each layer and convolution, with norms of at most c, which the paper has 3 to 4.

    Biases and embeddings are free. The paper says it of hidden units: ``but={"head.weight": None}`` leaves the output
    layer free, which a model does not tell.

    Args:
        model: the model.
        c: the bound, a positive number.
        incoming: axes, as said above for all presets.
        but: rules that win, as said there.

    Source: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, Dropout: a simple way to prevent neural
    networks from overfitting, Journal of Machine Learning Research 15, 2014, section 5.1.
    """
    held = Weights("maxnorm_dropout", model, but, incoming)
    held.positive("c", c)
    return held.rules((w, MaxNorm(c, axis=held.inputs(w))) for w in held.weights if w.kind != EMBEDDING)
