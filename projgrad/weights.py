"""The weights of a model as presets choose among them, and the rules for those that they choose."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from projgrad.axes import Axis, check_axis, numeric_axes
from projgrad.constraint import Constraint
from projgrad.precision import precision
from projgrad.rules import Parameter, Rules, Use, selects
from projgrad.tag import Tag, as_tag

__all__ = ["CONV", "DENSE", "DEPTHWISE", "EMBEDDING", "Known", "Patterns", "Weight", "Weights"]

CONV, DENSE, DEPTHWISE, EMBEDDING = "conv", "dense", "depthwise", "embedding"  # kinds of layers

Patterns = str | Sequence[str]
Known = Mapping[str, Axis] | None

_BIAS = re.compile(r".*bias|b(eta)?(_.*)?", re.IGNORECASE)  # bias_hh_l0, beta, b_dec


@dataclass(frozen=True, eq=False)
class Weight:
    """One use of a parameter.

    Args:
        parameter: which one.
        use: where.
        incoming: the axes of the weights that feed one unit, or why they are not known.
        kind: of its layer; "" where that is not known.
        channels_first: whether its layer has kernels of the form (out, in, *spatial), not (*spatial, in, out).
    """

    parameter: Parameter
    use: Use
    incoming: tuple[int, ...] | str
    kind: str
    channels_first: bool

    @property
    def name(self) -> str:
        """The name of this use."""
        return self.use.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parameter."""
        return self.parameter.shape

    @property
    def space(self) -> tuple[int, ...]:
        """The sizes in space of the kernel of a convolution."""
        return self.shape[2:] if self.channels_first else self.shape[:-2]

    @property
    def is_bias(self) -> bool:
        """Whether it is called as biases are."""
        last = _parts(self.name)[-1]
        # a matrix may well be called B; a stack of biases is not
        return _BIAS.fullmatch(last) is not None and (len(self.shape) < 2 or last.lower().endswith("bias"))

    def named(self, patterns: Patterns) -> bool:
        """Whether a pattern is that of its name, or of one of the parts of it, whatever the case."""
        return _match((self.name, *_parts(self.name)), patterns)

    def of_class(self, patterns: Patterns) -> bool:
        """Whether a pattern is that of the name of the class of its layer, whatever the case."""
        return self.use.layer is not None and _match((type(self.use.layer).__name__,), patterns)


class Weights:
    """The floating-point parameters of a model that are left to a preset, each as often as it is used.

    Args:
        preset: the name of the preset, for errors.
        model: the model.
        but: rules of the user, and what they select is left out.
        incoming: what the user says of the axes, by pattern.

    Raises:
        TypeError: the model is of no known kind, or `but` is not of the form of rules.
        ValueError: `incoming` selects nothing, or has axes that do not exist.
    """

    def __init__(self, preset: str, model: Any, but: Rules | None, incoming: Known = None) -> None:
        from projgrad_backends.models import channels_first, described, kind  # which alone looks for the frameworks

        for argument, said in (("but", but), ("incoming", incoming)):
            if said is not None and not isinstance(said, Mapping):
                raise TypeError(f"presets.{preset}: {argument}= takes a dict by names or patterns, not {said!r}")
        self.preset, self.but, self._incoming = preset, dict(but or {}), dict(incoming or {})
        self.all: list[Weight] = []
        unused = set(self._incoming)
        for parameter in described(model):
            if not (parameter.refused or _is_floating(parameter.dtype)) or selects(self.but, parameter):
                continue
            for use in parameter.uses:
                weight = Weight(parameter, use, use.incoming, "", channels_first(use))
                given = [pattern for pattern in self._incoming if fnmatchcase(use.name, pattern)]
                unused -= set(given)
                if parameter.refused:
                    weight = replace(weight, incoming=parameter.refused)
                elif given:
                    weight = self._given(weight, self._incoming[given[-1]])
                else:
                    weight = replace(weight, kind=kind(use, weight.shape))
                self.all.append(weight)
        if unused:
            raise ValueError(f"presets.{preset}: incoming= has {sorted(unused)}, which select none of {self.names}")

    @property
    def names(self) -> str:
        """The names of the matrices and kernels."""
        return ", ".join(weight.name for weight in self.weights) or "(none)"

    @property
    def factors(self) -> list[Weight]:
        """All parameters but biases: what multiplies."""
        return [weight for weight in self.all if not weight.is_bias]

    @property
    def weights(self) -> list[Weight]:
        """Of these, the matrices and kernels, and what must not be constrained, or has no shape yet."""
        return [weight for weight in self.factors if len(weight.shape) > 1 or weight.parameter.refused]

    def check(self, weight: Weight) -> None:
        """Raise ValueError where this must not be constrained."""
        if weight.parameter.refused:
            raise self.error(weight, weight.parameter.refused)

    def inputs(self, weight: Weight) -> tuple[int, ...]:
        """The axes of the weights that feed one unit; raises ValueError where they are not known."""
        self.check(weight)
        if isinstance(weight.incoming, str):
            raise self.error(weight, f"{weight.incoming}. Here, incoming={{{weight.name!r}: axes}} tells them")
        return weight.incoming

    def outputs(self, weight: Weight) -> tuple[int, ...]:
        """The other axes; raises ValueError where they are not known."""
        inputs = self.inputs(weight)
        return tuple(d for d in range(len(weight.shape)) if d not in inputs)

    def linear(self, weight: Weight) -> None:
        """Raise ValueError where this is not a weight that a linear layer multiplies with as it is."""
        if weight.kind not in (CONV, DENSE, DEPTHWISE):
            self.check(weight)
            raise self.error(weight, "it is not known as the weight of a dense layer or a convolution")

    def error(self, weight: Weight, why: str) -> ValueError:
        """What to raise where the preset does not know what to do with a weight."""
        ways = f"but={{{weight.name!r}: ...}} says what holds for it, and None leaves it free"
        return ValueError(f"presets.{self.preset}: {weight.name}, of shape {weight.shape}: {why}. {ways}")

    def rules(self, chosen: Iterable[tuple[Weight, Constraint | Tag]]) -> dict[Any, Any]:
        """The rules for what is chosen, and then those of the user.

        Raises:
            ValueError: nothing is chosen, a set does not fit, or two uses of a parameter ask for different ones.
        """
        made: dict[Any, Any] = {}
        for weight, choice in chosen:
            tag = as_tag(choice)
            self.check(weight)
            if getattr(weight.parameter.handle, "requires_grad", True) is False:
                raise self.error(weight, "it is frozen (requires_grad=False), and projecting it would change it")
            try:
                tag = replace(tag, constraint=tag.constraint.bind(weight.shape, weight.incoming))
            except ValueError as error:
                raise self.error(weight, f"{tag}: {error}") from None
            # the name that a parameter has without its model too; in brackets, what a pattern takes for more
            key = re.sub(r"([*?[])", r"[\1]", weight.parameter.name)
            said = made.setdefault(key, tag.constraint if tag == Tag(tag.constraint) else tag)
            if as_tag(said) != tag:
                raise self.error(weight, f"as {weight.parameter.name} it has {said}, and as {weight.name} {tag}")
        if not made:
            raise ValueError(f"presets.{self.preset} selects none of the parameters {self.names}")
        return made | self.but

    def _given(self, weight: Weight, axis: Axis) -> Weight:
        """The weight with axes that the user gives."""
        try:
            axes = numeric_axes(check_axis(axis), len(weight.shape))
        except (TypeError, ValueError) as error:
            raise self.error(weight, f"incoming={axis!r}: {error}") from None
        return replace(weight, incoming=axes, kind=DENSE if len(weight.shape) == 2 else CONV)


def _is_floating(dtype: Any) -> bool:
    try:
        return bool(precision(dtype))
    except TypeError:
        return False


def _parts(name: str) -> list[str]:
    return re.split(r"[./]", name)


def _match(names: Iterable[str], patterns: Patterns) -> bool:
    given = (patterns,) if isinstance(patterns, str) else patterns
    return any(fnmatchcase(name.lower(), pattern.lower()) for name in names for pattern in given)
