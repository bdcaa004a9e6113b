"""Models of any framework as presets see them: their parameters, and what kind of layer each stands on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from projgrad.rules import Parameter, Use
from projgrad.weights import CONV, DENSE, DEPTHWISE, EMBEDDING

__all__ = ["channels_first", "described", "kinds"]

# by framework and class, base classes included; of recurrent cells and attention, only the layers that they are made of
_KINDS = {
    "torch.Linear": DENSE,
    "torch._ConvNd": CONV,
    "torch.Embedding": EMBEDDING,
    "torch.EmbeddingBag": EMBEDDING,
    "transformers.Conv1D": DENSE,
    "flax.Linear": DENSE,
    "flax.LinearGeneral": DENSE,
    "flax.Einsum": DENSE,
    "flax.Conv": CONV,
    "flax.ConvTranspose": CONV,
    "flax.Embed": EMBEDDING,
    "equinox.Linear": DENSE,
    "equinox.Conv": CONV,
    "equinox.ConvTranspose": CONV,
    "equinox.Embedding": EMBEDDING,
    "keras.Dense": DENSE,
    "keras.EinsumDense": DENSE,
    "keras.BaseConv": CONV,
    "keras.BaseConvTranspose": CONV,
    "keras.BaseSeparableConv": CONV,
    "keras.BaseDepthwiseConv": DEPTHWISE,
    "keras.Embedding": EMBEDDING,
}


def described(model: Any) -> list[Parameter]:
    """The parameters of a model.

    Args:
        model: a torch module, a Keras layer or model, an nnx or equinox module, or a dict of JAX parameters.

    Raises:
        TypeError: it is none of these, or the dict has no arrays.
        ValueError: a Keras model that is not built.
    """
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    if keras is not None and isinstance(model, keras.layers.Layer):  # which may be a torch module as well
        from projgrad_backends.keras.parameters import described as in_keras

        return in_keras(model)
    if torch is not None and isinstance(model, torch.nn.Module):
        from projgrad_backends.torch.parameters import of_model

        return of_model(model)
    if isinstance(model, Mapping):
        return _of_dict(model)
    if "jax" in sys.modules:
        from projgrad_backends.jax.parameters import is_module, opened, parameters

        if is_module(model):
            return parameters(*opened(model, None), {})
    raise TypeError(
        "a preset takes a torch module, a Keras model, an nnx or equinox module, or a dict of JAX parameters (of flax "
        f"linen, what the optimizer gets), not {type(model).__name__}"
    )


def _of_dict(model: Mapping[Any, Any]) -> list[Parameter]:
    torch = sys.modules.get("torch")
    if torch is not None and any(isinstance(value, torch.Tensor) for value in model.values()):
        raise TypeError("a preset takes a torch module, and not a dict of its tensors, which does not tell the layers")
    if "jax" not in sys.modules:
        raise TypeError(
            "a preset takes a dict for the parameters of JAX (of flax linen, what the optimizer gets), and jax is not "
            "imported: import it first, or give the torch module or Keras model instead of a dict of its arrays"
        )
    if "params" in model and len(model) > 1:
        raise TypeError(f'a preset takes the parameters alone, model["params"], not all of {sorted(model)}')
    from projgrad_backends.jax.parameters import opened, parameters

    found = parameters(*opened(model, None), {})
    if not found:
        raise TypeError(f"a preset takes a dict with JAX or NumPy arrays in it, and {dict(model)!r} has none")
    return found


def channels_first(use: Use) -> bool:
    """Whether kernels of such a layer are (out, in, *spatial), as in torch and equinox, and not (*spatial, in, out)."""
    roots = _roots(use.layer)
    return "keras" not in roots and not roots.isdisjoint({"torch", "equinox"})


def kinds(use: Use, shape: tuple[int, ...]) -> tuple[str, ...]:
    """What kinds of layers compute with this weight as it is, of `projgrad.weights`; "" where that is not known."""
    kind = _kind(use, shape)
    if kind == EMBEDDING and use.attribute == "reverse_embeddings":  # the output head of Keras's ReversibleEmbedding
        return (DENSE,)
    return (EMBEDDING, DENSE) if kind == EMBEDDING and getattr(use.layer, "tie_weights", None) is True else (kind,)


def _kind(use: Use, shape: tuple[int, ...]) -> str:
    if isinstance(use.incoming, str):
        return ""
    if _roots(use.layer).isdisjoint({"torch", "keras", "flax", "equinox"}) or isinstance(use.layer, Mapping):
        # a tree of flax linen
        names = {"embedding": EMBEDDING, "kernel": DENSE if len(shape) == 2 else CONV}
        return names.get(use.name.rpartition("/")[2], "")
    classes = (f"{_root(known)}.{known.__name__}" for known in type(use.layer).__mro__)
    name = next((name for name in classes if name in _KINDS), "")
    found = _KINDS.get(name, "")
    # a stack of layers (vmapped, scanned) is no layer of a kind
    stacked = found == CONV and len(shape) != 2 + len(getattr(use.layer, "kernel_size", ()))
    if stacked or (found == DENSE and name.endswith(".Linear") and len(shape) != 2):
        return ""
    groups = getattr(use.layer, "groups", getattr(use.layer, "feature_group_count", 1))
    if found == CONV and groups > 1 and shape[1 if channels_first(use) else -2] == 1:
        return DEPTHWISE
    return found


def _roots(layer: Any) -> set[str]:
    """The packages that the classes of a layer come from."""
    return {_root(known) for known in type(layer).__mro__}


def _root(known: type) -> str:
    return known.__module__.partition(".")[0]
