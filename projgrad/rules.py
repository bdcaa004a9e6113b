"""Rules: which parameters have which constraint.

Each framework describes its parameters as `Parameter`s; `resolve` finds what holds for each, and raises for whatever is
ambiguous, before anything is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from projgrad.constraint import Constraint
from projgrad.joint import lay_out
from projgrad.plan import Plan, PlanEntry
from projgrad.storage import near
from projgrad.tag import OPTIMIZER, Joint, Tag, as_tag, check_metric_name

__all__ = ["Parameter", "Rules", "Use", "resolve", "selects"]

Choice = Constraint | Tag | Callable[..., Any] | None
Rule = Choice | Mapping[str, Choice]
Rules = Mapping[Any, Rule]  # the keys are names or classes; a union would refuse dict[str, ...], as they are invariant


@dataclass(frozen=True)
class Use:
    """One place where a parameter is used: tied weights have several.

    Args:
        name: the full name, as the framework gives it.
        incoming: the axes of the weights that feed one unit, or the reason why there are none.
        layer: the layer it stands on, and `attribute` its name there.
        tag: what the layer was tagged with.
        aliases: other spellings of the name that a pattern may match.
    """

    name: str
    incoming: tuple[int, ...] | str
    layer: Any = None
    attribute: str = ""
    tag: Tag | Constraint | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parameter:
    """A parameter as the rules see it.

    Args:
        uses: where it is used.
        shape: its shape.
        dtype: of its numbers, as such or by name.
        refused: why it must not be constrained, if so.
        tags: what it was given elsewhere than on a layer, each with the words that say where.
        handle: by which the framework finds it again.
    """

    uses: tuple[Use, ...]
    shape: tuple[int, ...]
    dtype: Any
    refused: str = ""
    tags: tuple[tuple[str, Tag | Constraint], ...] = ()
    handle: Any = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The name of its first use."""
        return self.uses[0].name


def resolve(
    rules: Rules | None, parameters: Sequence[Parameter], *, unused: bool = False, metric: str | None = None
) -> Plan:
    """What holds for the parameters: for each the last rule that selects it, or the tag of its layer.

    Args:
        rules: name patterns (`fnmatch`, ``*`` crosses separators) or layer classes to constraints; None for none.
        parameters: all parameters of the model.
        unused: accept rules that select nothing, where `parameters` are not all.
        metric: of tags that do not say which, as in `projgrad.Tag`.

    Returns:
        Entries with the handles of the parameters, in their order.

    Raises:
        TypeError: a rule is not of that form, or the parameter is not floating-point.
        ValueError: a rule selects nothing; tied weights, or a rule and a tag, disagree; a constraint does not fit; the
            nearest point in the metric of the optimizer is asked of one for which it is not implemented.
    """
    check_metric_name(metric, "resolve")
    pairs = list(_flatten({} if rules is None else rules))
    selected: set[int] = set()
    found: dict[Any, _Members] = {}
    for position, parameter in enumerate(parameters):
        verdicts = list(_verdicts(pairs, parameter, selected))
        for source, tag, _, key in verdicts[1:]:
            first = verdicts[0]
            if tag != first[1] or (isinstance(tag, Joint) and key != first[3]):
                tied = f" (tied: {', '.join(use.name for use in parameter.uses)})" if len(parameter.uses) > 1 else ""
                raise ValueError(f"{parameter.name}{tied}: {first[0]} asks for {first[1]}, but {source} for {tag}")
        _, tag, use, key = verdicts[0] if verdicts else ("", None, parameter.uses[0], None)
        if tag is not None:
            tag = _in_metric(tag, metric)
            joined = ("joint", key) if isinstance(tag, Joint) else position
            found.setdefault(joined, (tag, []))[1].append((use, parameter))
    for i, (selector, attribute, _) in enumerate(pairs):
        if i not in selected and not unused:
            raise ValueError(_nothing(selector, attribute, parameters))
    return Plan(_checked(_entry(tag, members)) for tag, members in found.values())


def selects(rules: Rules, parameter: Parameter) -> bool:
    """Whether one of the rules selects the parameter, under any of its names.

    Raises:
        TypeError: a rule is not of the form that `resolve` takes.
    """
    pairs = list(_flatten(rules))
    return any(_selects(selector, attribute, use) for selector, attribute, _ in pairs for use in parameter.uses)


_Pair = tuple[str | type, str | None, Tag | None]
_Verdict = tuple[str, Tag | None, Use, Any]  # what says so, what it says, of which use, and which rule it is
_Members = tuple[Tag, list[tuple[Use, Parameter]]]


def _verdicts(pairs: Sequence[_Pair], parameter: Parameter, selected: set[int]) -> Iterator[_Verdict]:
    """All that is said of a parameter; notes in `selected` which of the pairs select it."""
    for use in parameter.uses:
        here = [i for i, (selector, attribute, _) in enumerate(pairs) if _selects(selector, attribute, use)]
        selected.update(here)
        if here:
            selector, attribute, tag = pairs[here[-1]]
            yield f"the rule {_show(selector, attribute)}", _bind(tag, use, parameter), use, here[-1]
        if use.tag is not None:
            yield "the tag on its layer", _bind(as_tag(use.tag), use, parameter), use, "layer"
    for source, given in parameter.tags:
        yield source, _bind(as_tag(given), parameter.uses[0], parameter), parameter.uses[0], source


def _bind(tag: Tag | None, use: Use, parameter: Parameter) -> Tag | None:
    """The tag with numeric axes; a joint one as it is, as its axes are those of an array that is not known yet."""
    if tag is None:
        return None
    if parameter.refused:
        raise ValueError(f"{use.name}: {parameter.refused}")
    try:
        tag.constraint.check_dtype(parameter.dtype)
        if isinstance(tag, Joint):
            return tag
        return replace(tag, constraint=tag.constraint.bind(parameter.shape, use.incoming))
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        hint = "; a later rule that is None leaves it free" if isinstance(error, TypeError) else ""
        raise kind(f"{use.name}, of shape {parameter.shape}, cannot have {tag}: {error}{hint}") from None


def _in_metric(tag: Tag, default: str | None) -> Tag:
    """The tag with the metric that holds, where None stands for the Euclidean one."""
    return replace(tag, metric=OPTIMIZER if (tag.metric or default) == OPTIMIZER else None)


def _checked(entry: PlanEntry) -> PlanEntry:
    """The entry, if what its options need is implemented for the set."""
    if entry.tag.tangent is not None:
        try:
            entry.constraint.check_tangent()
        except ValueError as error:
            raise ValueError(f"{entry.name} cannot have tangent={entry.tag.tangent!r}: {error}") from None
    if entry.in_metric:
        try:
            entry.constraint.check_metric(len(entry.shape))
        except ValueError as error:
            raise ValueError(f"{entry.name} cannot have metric={OPTIMIZER!r}: {error}") from None
    return entry


def _entry(tag: Tag, members: Sequence[tuple[Use, Parameter]]) -> PlanEntry:
    names = tuple(parameter.name for _, parameter in members)
    shapes = tuple(parameter.shape for _, parameter in members)
    handles = tuple(parameter.handle for _, parameter in members)
    if not isinstance(tag, Joint):
        return PlanEntry(names, shapes, tag, handles=handles)
    try:
        if len({str(parameter.dtype) for _, parameter in members}) > 1:
            shown = ", ".join(f"{parameter.name} is {parameter.dtype}" for _, parameter in members)
            raise ValueError(f"the parameters differ in their dtype ({shown})")
        given = [(parameter.name, parameter.shape, use.incoming) for use, parameter in members]
        constraint, layout = lay_out(tag.constraint, given)
    except ValueError as error:
        raise ValueError(f"{', '.join(names)} cannot have {tag}: {error}") from None
    return PlanEntry(names, shapes, replace(tag, constraint=constraint), layout, handles)


def _flatten(rules: Rules) -> Iterator[_Pair]:
    if not isinstance(rules, Mapping):
        raise TypeError(f"rules are a mapping of name patterns or layer classes to constraints, not {rules!r}")
    for selector, rule in rules.items():
        if isinstance(selector, type):
            if rule is None:
                yield selector, None, None
            elif isinstance(rule, Mapping):
                for attribute, choice in rule.items():
                    yield selector, attribute, None if choice is None else as_tag(choice)
            else:
                raise TypeError(
                    f"the rule for {selector.__name__} must say which of its parameters it means: "
                    f'{selector.__name__}: {{"weight": {rule!r}}}'
                )
        elif isinstance(selector, str):
            if isinstance(rule, Mapping):
                raise TypeError(f"the rule {selector!r} is a name pattern, so it takes one constraint, not {rule!r}")
            yield selector, None, None if rule is None else as_tag(rule)
        else:
            raise TypeError(f"a rule starts with a name pattern or a layer class, not {selector!r}")


def _selects(selector: str | type, attribute: str | None, use: Use) -> bool:
    if isinstance(selector, type):
        return isinstance(use.layer, selector) and (attribute is None or fnmatchcase(use.attribute, attribute))
    return any(fnmatchcase(name, selector) for name in (use.name, *use.aliases))


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
    return f"the rule {_show(selector, attribute)} selects no parameter; the nearest: {near(wanted, names)}"
