"""The same layers in every framework, for the tests of presets: how they are made, named, laid out and projected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["LAYOUTS", "Layout"]


LARGE = 4


class Layout:
    """A framework, with the axes of its weights and the names of its parameters."""

    name = ""
    needs: tuple[str, ...] = ()
    leaf, embedding, prefix, separator = "kernel", "kernel", "", "/"
    into: int | tuple[int, ...] = 0  # of a dense weight, the axis of the inputs
    out_of: int | tuple[int, ...] = 1
    conv: tuple[int, ...] = (0, 1, 2)  # the weights of one output channel
    depthwise: tuple[int, ...] = (0, 1, 2)
    space = (0, 1)

    def __repr__(self) -> str:
        return self.name

    def names(self, *layers: str, leaf: str = "") -> list[str]:
        return [f"{self.prefix}{layer}{self.separator}{leaf or self.leaf}" for layer in layers]

    def model(self, **layers: tuple) -> Any:
        """A container of layers: ("dense", in, out), ("embed", n, width), ("conv", in, out, groups), ("morph", n).

        Their weights are large, so that they are outside of most sets.
        """
        raise NotImplementedError

    def plan(self, model: Any, rules: Any) -> Any:
        """What the wrapper of the framework makes of the rules."""
        raise NotImplementedError

    def projected(self, model: Any, rules: Any) -> dict[str, np.ndarray]:
        """All parameters by name, after the door has projected them."""
        raise NotImplementedError


class Torch(Layout):
    needs = ("torch",)
    name, leaf, embedding, separator = "torch", "weight", "weight", "."
    into, out_of, conv, depthwise, space = 1, 0, (1, 2, 3), (1, 2, 3), (2, 3)

    def model(self, **layers: tuple) -> Any:
        import torch
        from torch import nn

        class Dilation(nn.Module):
            def __init__(self, n: int) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(n, 3, 5, 5))

        torch.manual_seed(0)
        make: dict[str, Callable] = {
            "dense": nn.Linear,
            "embed": nn.Embedding,
            "conv": lambda n, m, groups: nn.Conv2d(n, m, (3, 1), groups=groups),
            "morph": Dilation,
        }
        model = nn.ModuleDict({name: make[kind](*sizes) for name, (kind, *sizes) in layers.items()})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(LARGE)
        return model

    def plan(self, model: Any, rules: Any) -> Any:
        import torch

        from projgrad.torch import ProjectedOptimizer

        return ProjectedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), rules, model=model).plan

    def projected(self, model: Any, rules: Any) -> dict[str, np.ndarray]:
        from projgrad.torch import project_params

        project_params(model, rules)
        return {name: p.detach().numpy() for name, p in model.named_parameters()}


class Keras(Layout):
    needs = ("keras",)
    name, embedding, depthwise = "keras", "embeddings", (0, 1)

    def model(self, **layers: tuple) -> Any:
        import keras

        keras.utils.set_random_seed(0)

        class Dilation2D(keras.layers.Layer):
            def build(self, shape):
                self.kernel = self.add_weight(shape=(5, 5, 3, shape[-1]), initializer="random_normal", name="kernel")

        def conv(name: str, n: int, m: int, groups: int) -> Any:
            if n == groups:
                return keras.layers.DepthwiseConv2D((3, 1), depth_multiplier=m // n, name=name)
            return keras.layers.Conv2D(m, (3, 1), groups=groups, name=name)

        make: dict[str, Callable] = {
            "dense": lambda name, n, m: (keras.layers.Dense(m, name=name), (None, n)),
            "embed": lambda name, n, m: (keras.layers.Embedding(n, m, name=name), (None, 1)),
            "conv": lambda name, n, m, groups: (conv(name, n, m, groups), (None, 9, 9, n)),
            "morph": lambda name, n: (Dilation2D(name=name), (None, 9, 9, n)),
        }

        class Net(keras.layers.Layer):
            def __init__(self) -> None:
                super().__init__(name="net")
                self.made = [make[kind](name, *sizes) for name, (kind, *sizes) in layers.items()]
                self.parts = [part for part, _ in self.made]

            def build(self, shape):
                for part, given in self.made:
                    part.build(given)

        net = Net()
        net.build(None)
        for variable in net.weights:
            variable.assign(LARGE * variable)
        return net

    def plan(self, model: Any, rules: Any) -> Any:
        import keras

        from projgrad.keras import ProjectedOptimizer

        return ProjectedOptimizer(keras.optimizers.SGD(), rules, model=model).plan

    def projected(self, model: Any, rules: Any) -> dict[str, np.ndarray]:
        import keras

        from projgrad.keras import project_params

        project_params(model, rules)
        return {v.path.removeprefix("net/"): np.asarray(keras.ops.convert_to_numpy(v)) for v in model.weights}


def filled(tree: Any) -> Any:
    """A pytree of arrays that have shapes only, which compiles nothing, with numbers in them."""
    import jax

    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: LARGE * rng.normal(size=x.shape).astype("float32"), tree)


class InJax(Layout):
    needs = ("jax", "optax")
    embedding = "embedding"

    def tree(self, model: Any) -> Any:
        return model

    def plan(self, model: Any, rules: Any) -> Any:
        from projgrad_backends.jax.tags import Tags

        return Tags(rules, None, None).of(self.tree(model))[1].plan  # without model=: the axes are numbers

    def projected(self, model: Any, rules: Any) -> dict[str, np.ndarray]:
        import jax

        from projgrad.optax import project_params

        arrays = jax.tree.map(np.asarray, self.tree(model))  # which have nothing to compile
        leaves = jax.tree_util.tree_leaves_with_path(project_params(arrays, rules))
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        return {name: np.asarray(leaf) for name, (_, leaf) in zip(names, leaves, strict=True)}


class Nnx(InJax):
    name, needs = "nnx", ("jax", "optax", "flax.nnx")

    def model(self, **layers: tuple) -> Any:
        from flax import nnx

        class Dilation(nnx.Module):
            def __init__(self, n: int, rngs: Any) -> None:
                self.kernel = nnx.Param(rngs.params.normal((5, 5, 3, n)))

        def conv(n: int, m: int, groups: int, rngs: Any) -> Any:
            return nnx.Conv(n, m, (3, 1), feature_group_count=groups, rngs=rngs)

        make: dict[str, Callable] = {"dense": nnx.Linear, "embed": nnx.Embed, "conv": conv, "morph": Dilation}

        class Net(nnx.Module):
            def __init__(self) -> None:
                rngs = nnx.Rngs(0)
                for name, (kind, *sizes) in layers.items():
                    setattr(self, name, make[kind](*sizes, rngs=rngs))

        net = nnx.eval_shape(Net)
        nnx.update(net, filled(nnx.state(net, nnx.Param)))
        return net

    def tree(self, model: Any) -> Any:
        from flax import nnx

        return nnx.to_pure_dict(nnx.state(model, nnx.Param))


class Equinox(InJax):
    needs = ("jax", "optax", "equinox")
    name, leaf, embedding, prefix = "equinox", "weight", "weight", "parts/"
    into, out_of, conv, depthwise, space = 1, 0, (1, 2, 3), (1, 2, 3), (2, 3)

    def model(self, **layers: tuple) -> Any:
        import equinox as eqx
        import jax

        class Dilation(eqx.Module):
            weight: jax.Array

            def __init__(self, n: int, key: Any) -> None:
                self.weight = jax.random.normal(key, (n, 3, 5, 5))

        class Net(eqx.Module):
            parts: dict[str, Any]

        key = jax.random.key(0)
        make: dict[str, Callable] = {
            "dense": eqx.nn.Linear,
            "embed": eqx.nn.Embedding,
            "conv": lambda n, m, groups, key: eqx.nn.Conv2d(n, m, (3, 1), groups=groups, key=key),
            "morph": Dilation,
        }
        return filled(
            eqx.filter_eval_shape(
                lambda: Net({name: make[kind](*sizes, key=key) for name, (kind, *sizes) in layers.items()})
            )
        )


class Linen(InJax):
    name, prefix = "linen", "params/"

    def model(self, **layers: tuple) -> Any:
        rng = np.random.default_rng(0)

        def array(*shape: int) -> np.ndarray:
            return LARGE * rng.normal(size=shape).astype("float32")

        make: dict[str, Callable] = {
            "dense": lambda n, m: {"kernel": array(n, m), "bias": array(m)},
            "embed": lambda n, m: {"embedding": array(n, m)},
            "conv": lambda n, m, groups: {"kernel": array(3, 1, n // groups, m), "bias": array(m)},
            "morph": lambda n: {"kernel": array(5, 5, 3, n)},
        }
        return {"params": {name: make[kind](*sizes) for name, (kind, *sizes) in layers.items()}}


LAYOUTS = (Torch(), Keras(), Nnx(), Equinox(), Linen())
