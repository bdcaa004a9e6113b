"""Rules: which parameters have which constraint.

Each framework describes its parameters as `Parameter`s; `resolve` finds what holds for each, and raises for whatever is
ambiguous, before anything is changed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from projgrad.constraint import Constraint
from projgrad.function import as_constraint

__all__ = ["Parameter", "Rules", "Use", "resolve"]

Choice = Constraint | Callable[..., Any] | None
Rule = Choice | Mapping[str, Choice]
Rules = Mapping[Any, Rule]  # the keys are names or classes; a union would refuse dict[str, ...], as they are invariant


@dataclass(frozen=True)
class Use:
    """One place where a parameter is used: tied weights have several.

    Args:
        name: the full name, as the framework gives it.
        incoming: the axes of the weights that feed one unit, or the reason why there are none.
        layer: the layer it stands on, and `attribute` its name there.
        tag: the constraint that the layer was tagged with.
        aliases: other spellings of the name that a pattern may match.
    """

    name: str
    incoming: tuple[int, ...] | str
    layer: Any = None
    attribute: str = ""
    tag: Constraint | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parameter:
    """A parameter as the rules see it.

    Args:
        uses: where it is used.
        shape: its shape.
        dtype: of its numbers, as such or by name.
        refused: why it must not be constrained, if so.
        tags: constraints it was given elsewhere than on a layer, each with the words that say where.
    """

    uses: tuple[Use, ...]
    shape: tuple[int, ...]
    dtype: Any
    refused: str = ""
    tags: tuple[tuple[str, Constraint], ...] = ()

    @property
    def name(self) -> str:
        """The name of its first use."""
        return self.uses[0].name


def resolve(rules: Rules | None, parameters: Sequence[Parameter], *, unused: bool = False) -> dict[int, Constraint]:
    """What holds for each parameter, by its position: the last rule that selects it, or the tag of its layer.

    Args:
        rules: name patterns (`fnmatch`, ``*`` crosses separators) or layer classes to constraints; None for none.
        parameters: all parameters of the model.
        unused: accept rules that select nothing, where `parameters` are not all.

    Raises:
        TypeError: a rule is not of that form, or the parameter is not floating-point.
        ValueError: a rule selects nothing; tied weights, or a rule and a tag, disagree; a constraint does not fit.
    """
    pairs = list(_flatten({} if rules is None else rules))
    selected: set[int] = set()
    resolved: dict[int, Constraint] = {}
    for position, parameter in enumerate(parameters):
        found = list(_verdicts(pairs, parameter, selected))
        for source, constraint in found[1:]:
            if constraint != found[0][1]:
                tied = f" (tied: {', '.join(use.name for use in parameter.uses)})" if len(parameter.uses) > 1 else ""
                raise ValueError(
                    f"{parameter.name}{tied}: {found[0][0]} asks for {found[0][1]}, but {source} for {constraint}"
                )
        if found and found[0][1] is not None:
            resolved[position] = found[0][1]
    for i, (selector, attribute, _) in enumerate(pairs):
        if i not in selected and not unused:
            raise ValueError(_nothing(selector, attribute, parameters))
    return resolved


_Pair = tuple[str | type, str | None, Constraint | None]


def _verdicts(
    pairs: Sequence[_Pair], parameter: Parameter, selected: set[int]
) -> Iterator[tuple[str, Constraint | None]]:
    """All that is said of a parameter, and by what; notes in `selected` which of the pairs select it."""
    for use in parameter.uses:
        here = [i for i, (selector, attribute, _) in enumerate(pairs) if _selects(selector, attribute, use)]
        selected.update(here)
        if here:
            selector, attribute, constraint = pairs[here[-1]]
            yield f"the rule {_show(selector, attribute)}", _bind(constraint, use, parameter)
        if use.tag is not None:
            yield "the tag on its layer", _bind(use.tag, use, parameter)
    for source, tag in parameter.tags:
        yield source, _bind(tag, parameter.uses[0], parameter)


def _flatten(rules: Rules) -> Iterator[_Pair]:
    if not isinstance(rules, Mapping):
        raise TypeError(f"rules are a mapping of name patterns or layer classes to constraints, not {rules!r}")
    for selector, rule in rules.items():
        if isinstance(selector, type):
            if rule is None:
                yield selector, None, None
            elif isinstance(rule, Mapping):
                for attribute, choice in rule.items():
                    yield selector, attribute, None if choice is None else as_constraint(choice)
            else:
                raise TypeError(
                    f"the rule for {selector.__name__} must say which of its parameters it means: "
                    f'{selector.__name__}: {{"weight": {rule!r}}}'
                )
        elif isinstance(selector, str):
            if isinstance(rule, Mapping):
                raise TypeError(f"the rule {selector!r} is a name pattern, so it takes one constraint, not {rule!r}")
            yield selector, None, None if rule is None else as_constraint(rule)
        else:
            raise TypeError(f"a rule starts with a name pattern or a layer class, not {selector!r}")


def _selects(selector: str | type, attribute: str | None, use: Use) -> bool:
    if isinstance(selector, type):
        return isinstance(use.layer, selector) and (attribute is None or fnmatchcase(use.attribute, attribute))
    return any(fnmatchcase(name, selector) for name in (use.name, *use.aliases))


def _bind(constraint: Constraint | None, use: Use, parameter: Parameter) -> Constraint | None:
    if constraint is None:
        return None
    if parameter.refused:
        raise ValueError(f"{use.name}: {parameter.refused}")
    try:
        constraint.check_dtype(parameter.dtype)
        return constraint.bind(parameter.shape, use.incoming)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{use.name}, of shape {parameter.shape}, cannot have {constraint}: {error}") from None


def _show(selector: str | type, attribute: str | None) -> str:
    if isinstance(selector, str):
        return repr(selector)
    return selector.__name__ if attribute is None else f"{selector.__name__}[{attribute!r}]"


def _nothing(selector: str | type, attribute: str | None, parameters: Iterable[Parameter]) -> str:
    uses = [use for parameter in parameters for use in parameter.uses]
    if isinstance(selector, str):
        names, wanted = sorted({use.name for use in uses}), selector
    else:
        names = sorted({use.attribute for use in uses if isinstance(use.layer, selector)})
        wanted = attribute or ""
        if not names:
            names = sorted({type(use.layer).__name__ for use in uses if use.layer is not None})
            wanted = selector.__name__
    near = difflib.get_close_matches(wanted, names, n=4, cutoff=0.0)
    return f"the rule {_show(selector, attribute)} selects no parameter; the nearest: {', '.join(near) or '(none)'}"
