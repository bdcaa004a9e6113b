"""The weights of a model as presets choose among them, and the rules for those that they choose."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from heapq import nlargest
from math import inf
from typing import Any

from projgrad.axes import Axis, check_axis, numeric_axes
from projgrad.constraint import Constraint
from projgrad.precision import precision
from projgrad.rules import Parameter, Rules, Use, resolve, selects
from projgrad.schedule import Schedule, is_traced
from projgrad.tag import Tag, as_tag

__all__ = ["CONV", "DENSE", "DEPTHWISE", "EMBEDDING", "Known", "Patterns", "Weight", "Weights", "listed"]

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
        embeds: whether the parameter is that of an embedding layer, in this use or in another.
        free: whether rules of the user select it.
    """

    parameter: Parameter
    use: Use
    incoming: tuple[int, ...] | str
    kind: str
    channels_first: bool
    embeds: bool
    free: bool

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

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix or kernel, or what must not be constrained, or has no shape yet."""
        return not self.is_bias and (len(self.shape) > 1 or bool(self.parameter.refused))

    def named(self, patterns: Patterns) -> bool:
        """Whether a pattern is that of its name, or of one of the parts of it, whatever the case."""
        return _match((self.name, *_parts(self.name)), patterns)

    def like(self, pattern: str) -> float:
        """How much a pattern is like its name or a part of it, from 0 to 1."""
        names = (self.name, *_parts(self.name))
        return max(SequenceMatcher(None, pattern.lower(), name.lower()).ratio() for name in names)

    def of_class(self, patterns: Patterns) -> bool:
        """Whether a pattern is that of the name of the class of its layer, whatever the case."""
        return self.use.layer is not None and _match((type(self.use.layer).__name__,), patterns)


class Weights:
    """The floating-point parameters of a model, each as often as it is used, and what a preset asks of them.

    `found` has all of them, and `all` those that are left to the preset.

    Args:
        preset: the name of the preset, for errors.
        model: the model.
        but: rules of the user, and what they select is left out.
        incoming: what the user says of the axes, by pattern.

    Raises:
        TypeError: the model is of no known kind, or `but` is not of the form of rules.
        ValueError: `but` or `incoming` has what selects nothing or does not fit.
    """

    def __init__(self, preset: str, model: Any, but: Rules | None, incoming: Known = None) -> None:
        from projgrad_backends.models import described  # which alone looks for the frameworks

        for argument, said in (("but", but), ("incoming", incoming)):
            if said is not None and not isinstance(said, Mapping):
                raise TypeError(f"presets.{preset}: {argument}= takes a dict by names or patterns, not {said!r}")
        self.preset, self.but, self._incoming = preset, dict(but or {}), dict(incoming or {})
        parameters = described(model)
        try:
            resolve(self.but, parameters if self.but else [])  # raises what the wrapper would, later
        except (TypeError, ValueError) as error:
            raise _as_known(error)(f"presets.{preset}: but=: {error}") from None
        held = [p for p in parameters if p.refused or _is_floating(p.dtype)]
        self.found = [weight for parameter in held for weight in self._uses(parameter)]
        self.all = [weight for weight in self.found if not weight.free]
        used = [pattern for pattern in self._incoming if any(fnmatchcase(w.name, pattern) for w in self.all)]
        self._check_used("incoming", sorted(set(self._incoming) - set(used)), self.weights)

    def _uses(self, parameter: Parameter) -> Iterator[Weight]:
        from projgrad_backends.models import channels_first, kinds

        free = selects(self.but, parameter)
        kinds_of = [kinds(use, parameter.shape) for use in parameter.uses]
        embeds = any(EMBEDDING in found for found in kinds_of)
        for use, found in zip(parameter.uses, kinds_of, strict=True):
            incoming = parameter.refused or use.incoming
            for kind in found:
                weight = Weight(parameter, use, incoming, kind, channels_first(use), embeds, free)
                given = [axes for pattern, axes in self._incoming.items() if fnmatchcase(use.name, pattern)]
                yield self._given(weight, given[-1]) if given and not (parameter.refused or free) else weight

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
        """Of these, the matrices and kernels."""
        return [weight for weight in self.all if weight.is_matrix]

    def chosen(
        self, argument: str, patterns: Patterns, among: Sequence[Weight], usual: Patterns = (), *, classes: bool = False
    ) -> list[Weight]:
        """Those of `among` that an argument names.

        Args:
            argument: its name.
            patterns: what is given for it.
            among: the weights that it may name.
            usual: what it is where it is not given, of which not every pattern need name something.
            classes: whether patterns may be those of classes of layers too.

        Raises:
            TypeError: these are no patterns.
            ValueError: one of them names nothing.
        """
        given = [patterns] if isinstance(patterns, str) or not isinstance(patterns, Iterable) else list(patterns)
        if not all(isinstance(pattern, str) for pattern in given):
            raise TypeError(f"presets.{self.preset}: {argument}= takes a pattern or a list of them, not {patterns!r}")

        def named(weight: Weight, wanted: Patterns) -> bool:
            return weight.named(wanted) or (classes and weight.of_class(wanted))

        if patterns != usual:
            self._check_used(argument, [p for p in given if not any(named(w, p) for w in among)], among)
        return [weight for weight in among if named(weight, given)]

    def positive(self, argument: str, given: Any, why: str = "") -> None:
        """Raise TypeError or ValueError where an argument is not a positive finite number, at every step of a schedule.

        Args:
            argument: its name.
            given: the number.
            why: it must be that, to be added to the error.
        """
        self.number(argument, given, lambda number: 0 < number < inf, f"must be positive and finite{why}")

    def number(self, argument: str, given: Any, fits: Callable[[float], bool], must: str) -> None:
        """Raise TypeError or ValueError where an argument is not a number that fits, at every step of a schedule.

        Args:
            argument: its name.
            given: the number.
            fits: says whether it does.
            must: what is said where it does not.
        """
        if is_traced(given):
            return
        for value in [value for _, value in given.points] if isinstance(given, Schedule) else [given]:
            if isinstance(value, str | bool) or not hasattr(value, "__float__") or getattr(value, "shape", ()) != ():
                raise TypeError(f"presets.{self.preset}: {argument}={given!r} is not a number")
            if not fits(float(value)):
                raise ValueError(f"presets.{self.preset}: {argument}={given!r} {must}")

    def axis(self, argument: str, given: Any) -> None:
        """Raise TypeError or ValueError where an argument is not of the form of axes."""
        try:
            check_axis(given)
        except (TypeError, ValueError) as error:
            raise _as_known(error)(f"presets.{self.preset}: {argument}=: {error}") from None

    def check(self, weight: Weight) -> None:
        """Raise ValueError where this must not be constrained."""
        if weight.parameter.refused:
            raise self.error(weight, weight.parameter.refused)

    def inputs(self, weight: Weight) -> tuple[int, ...]:
        """The axes of the weights that feed one unit; raises ValueError where they are not known."""
        self.check(weight)
        if isinstance(weight.incoming, str):
            raise self.error(weight, _to_tell(weight))
        return weight.incoming

    def outputs(self, weight: Weight) -> tuple[int, ...]:
        """The other axes; raises ValueError where they are not known."""
        inputs = self.inputs(weight)
        return tuple(d for d in range(len(weight.shape)) if d not in inputs)

    def linear(self, weight: Weight) -> None:
        """Raise ValueError where this is not a weight that a linear layer multiplies with as it is."""
        if weight.kind not in (CONV, DENSE, DEPTHWISE):
            self.check(weight)
            told_by = f": {_to_tell(weight)}" if weight.is_matrix and isinstance(weight.incoming, str) else ""
            raise self.error(weight, f"it is not known as the weight of a dense layer or a convolution{told_by}")

    def error(self, weight: Weight, why: str, kind: type[TypeError | ValueError] = ValueError) -> Exception:
        """What to raise where the preset does not know what to do with a weight."""
        names = [use.name for use in weight.parameter.uses]
        tied = f" (tied: {', '.join(names)})" if len(names) > 1 and not weight.parameter.refused else ""
        ways = f"but={{{weight.name!r}: ...}} says what holds for it, and None leaves it free"
        return kind(f"presets.{self.preset}: {weight.name}{tied}, of shape {weight.shape}: {why}. {ways}")

    def rules(self, chosen: Iterable[tuple[Weight, Constraint | Tag]], told_by: str = "") -> dict[Any, Any]:
        """The rules for what is chosen, and then those of the user.

        Args:
            chosen: the weights and what holds for them.
            told_by: the argument that chose them, for the error.

        Raises:
            TypeError: a set has no numbers of the dtype of a parameter.
            ValueError: nothing is chosen, a set does not fit, or two uses of a parameter ask for different ones.
        """
        made: dict[Any, Any] = {}
        for weight, choice in chosen:
            tag = as_tag(choice)
            self.check(weight)
            if _is_frozen(weight.parameter.handle):
                raise self.error(weight, "it is frozen, and projecting it would change it")
            try:
                tag.constraint.check_dtype(weight.parameter.dtype)
                tag = replace(tag, constraint=tag.constraint.bind(weight.shape, weight.incoming))
            except (TypeError, ValueError) as error:
                raise self.error(weight, f"{tag}: {error}", _as_known(error)) from None
            # the name that a parameter has without its model too; in brackets, what a pattern takes for more
            key = re.sub(r"([*?[])", r"[\1]", weight.parameter.name)
            said = made.setdefault(key, tag.constraint if tag == Tag(tag.constraint) else tag)
            if as_tag(said) != tag:
                raise self.error(weight, f"as {weight.parameter.name} it has {said}, and as {weight.name} {tag}")
        if not made:
            how = f": say by {told_by}= which they are" if told_by else ""
            raise ValueError(f"presets.{self.preset} selects none of the parameters {self.names}{how}")
        return made | self.but

    def _check_used(self, argument: str, unused: Sequence[str], among: Sequence[Weight]) -> None:
        """Raise ValueError where patterns that select nothing are left, with the names that are most like them."""
        if unused:
            near = {w.name for pattern in unused for w in nlargest(4, among, key=lambda w: w.like(pattern))}
            names = list(dict.fromkeys(w.name for w in among))
            shown = ", ".join(name for name in names if name in near) or "(none)"
            rest = f", the nearest of {len(names)} names" if len(near) < len(names) else ""
            raise ValueError(f"presets.{self.preset}: {argument}= has {unused}, which select none of {shown}{rest}")

    def _given(self, weight: Weight, axis: Axis) -> Weight:
        """The weight with axes that the user gives."""
        try:
            axes = numeric_axes(check_axis(axis), len(weight.shape))
        except (TypeError, ValueError) as error:
            raise self.error(weight, f"incoming={axis!r}: {error}") from None
        return replace(weight, incoming=axes, kind=DENSE if len(weight.shape) == 2 else CONV)


def listed(weights: Iterable[Weight]) -> str:
    """Weights with their shapes, for errors."""
    return ", ".join(dict.fromkeys(f"{weight.name} {weight.shape}" for weight in weights)) or "(none)"


def _to_tell(weight: Weight) -> str:
    """Why the axes of a weight are not known, and how to tell them."""
    return f"{weight.incoming}. Here, incoming={{{weight.name!r}: axes}} tells them"


def _as_known(error: Exception) -> type[TypeError | ValueError]:
    """The class of an error as it is documented."""
    return TypeError if isinstance(error, TypeError) else ValueError


def _is_frozen(handle: Any) -> bool:
    """Whether this is a parameter of torch or a variable of Keras that no optimizer is to train."""
    return False in (getattr(handle, "requires_grad", True), getattr(handle, "trainable", True))


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
