"""Rules in a TOML or JSON file, the same for all frameworks, and resolved plans in a JSON file.

A file of rules has a list of tables called ``rules``, in order. Each has ``names`` (a pattern, or a list of them) and a
``constraint``: a table with the name of the set as ``type`` and its arguments, as `Constraint.to_dict` gives them, or
the string ``"free"``. The options of `projgrad.Tag` may stand beside it, and ``joint = true`` makes it a
`projgrad.Joint`. Anything may be a table of values per framework instead, such as ``{torch = "*.weight", jax =
"*/kernel"}``. As TOML has no null, the string ``"none"`` means it (all axes).

Nothing is imported because a file says so: sets of your own must be registered by your program before it is read.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from projgrad.axes import INCOMING
from projgrad.constraint import Constraint
from projgrad.joint import Layout, all_axes
from projgrad.registry import encode, from_dict, is_function, registered_classes
from projgrad.storage import LIMIT, are_sizes, clipped, near, on_one_line, parse_json, read_text, replacing, short
from projgrad.tag import Joint, Tag

if TYPE_CHECKING:
    from projgrad.plan import Plan, PlanEntry

__all__ = ["FRAMEWORKS", "load_plan", "load_rules", "save_plan"]

FRAMEWORKS = ("torch", "jax", "keras", "tensorflow")
FREE, NONE = "free", "none"
_VERSION = 1
_OPTIONS = ("every", "metric", "tangent")


def load_rules(path: str | PathLike[str], framework: str | None = None) -> dict[str, Any]:
    """The rules in a TOML or JSON file, for any wrapper.

    Args:
        path: a file that ends in .toml or .json; its form is said in `projgrad.portable`.
        framework: "torch", "jax", "keras" or "tensorflow"; needed where the file has values per framework. A rule
            without a name for it is left out.

    Returns:
        Patterns to constraints, tags, or None for what is free, in the order of the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not of that form, names an unknown set or argument, or a set does not take what it is given.

    Examples:
        >>> optimizer = ProjectedOptimizer(adam, pg.load_rules("rules.toml", "torch"), model=model)
    """
    if framework is not None and framework not in FRAMEWORKS:
        raise ValueError(f"load_rules: framework={framework!r} is not known; it is one of {', '.join(FRAMEWORKS)}")
    path = Path(path)
    text = read_text(path)
    try:
        return _rules(_parsed(text, path.suffix.lower()), framework)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path}: {_reason(error)}") from None


def load_plan(path: str | PathLike[str]) -> Plan:
    """The plan that `Plan.save` saved, which is checked and compared without a model.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no plan, or one of another version of the format; a set is unknown or does not fit its shape.
    """
    from projgrad.plan import Plan

    path = Path(path)
    text = read_text(path)
    try:
        saved = _table(parse_json(text), "a plan", ("projgrad_plan", "entries"))
        if saved.get("projgrad_plan") != _VERSION:
            raise ValueError(
                f"it is no plan of the format {_VERSION}: its projgrad_plan={short(saved.get('projgrad_plan'))}"
            )
        plan = Plan(_load_entry(entry) for entry in _list(saved.get("entries"), "entries"))
        names = [name for entry in plan for name in entry.names]
        if len(set(names)) < len(names):
            raise ValueError("a parameter is there twice")
        return plan
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path}: {_reason(error)}") from None


def save_plan(plan: Plan, path: str | PathLike[str]) -> None:
    """Write `plan` as JSON, in the place of a file of that name."""
    saved = {"projgrad_plan": _VERSION, "entries": [_save_entry(entry) for entry in plan]}
    try:
        text = json.dumps(saved, indent=1, allow_nan=False).encode()
    except TypeError as error:
        raise ValueError(f"a plan whose numbers are arrays, as in compiled code, cannot be saved: {error}") from None
    if len(text) > LIMIT:
        raise ValueError(f"the plan takes {len(text)} bytes, and more than {LIMIT} would not be read again")
    path = Path(path)
    with replacing(path, overwrite=True, like=path if path.exists() else None) as out:
        out.write(text)


# -- rules ---------------------------------------------------------------------------------------------------------


def _parsed(text: str, suffix: str) -> Any:
    if suffix == ".json":
        return parse_json(text)
    if suffix == ".toml":
        return tomllib.loads(text)
    raise ValueError(f"rules are in a file that ends in .toml or .json, not {suffix!r}")


def _rules(given: Any, framework: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rules = _list(_table(given, "a file of rules", ("rules",)).get("rules", []), "rules")
    if not rules:
        raise ValueError("there is no rule, such as [[rules]] begins in TOML, in it")
    for i, rule in enumerate(rules):
        where = f"rule {i + 1}"
        rule = _table(rule, where, ("names", "constraint", "joint", *_OPTIONS))
        for needed in ("names", "constraint"):
            if needed not in rule:
                raise ValueError(f"{where} has no {needed!r}")
        try:
            names = _for(rule["names"], framework, f"{where}: names")
        except _OtherFrameworksError:
            continue
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{where}: names={short(names)} is neither a pattern nor a list of them")
        try:
            tag = _tag(rule, framework)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} ({_shown(names)}): {error}") from None
        if isinstance(tag, Joint) and len(names) > 1:
            raise ValueError(
                f"{where} ({_shown(names)}): with joint, names= is one pattern, which selects all parameters"
            )
        for name in names:
            if name in found:
                raise ValueError(f"{where}: another rule is for {short(name)} too")
            found[name] = tag
    if not found:
        raise ValueError(f"none of its rules has names for {framework}")
    return found


def _tag(rule: Mapping[str, Any], framework: str | None) -> Tag | Constraint | None:
    given = _for(rule["constraint"], framework, "constraint")
    options = {name: _plain(rule[name], framework, name) for name in _OPTIONS if name in rule}
    joint = _for(rule.get("joint", False), framework, "joint")
    if not isinstance(joint, bool):
        raise ValueError(f"joint={short(joint)} is neither true nor false")
    if given == FREE:
        if options or joint:
            raise ValueError("what is free has no options")
        return None
    constraint = _constraint(_plain(given, framework, "constraint"))
    if joint:
        return Joint(constraint, **options)
    return Tag(constraint, **options) if options else constraint


class _OtherFrameworksError(ValueError):
    """A table has values for other frameworks only."""


def _for(value: Any, framework: str | None, what: str) -> Any:
    """A value, or that of the framework where it is a table of them."""
    if not isinstance(value, dict) or not value or "type" in value:
        return value
    unknown = [key for key in value if key not in FRAMEWORKS]
    if unknown:
        name = short(unknown[0])
        hint = f"nearest to {name}: {near(unknown[0], FRAMEWORKS)}; a set needs a type, and a Schedule"
        raise ValueError(f"{what}: {name} is not one of the frameworks {', '.join(FRAMEWORKS)} ({hint})")
    if framework is None:
        which = " or ".join(value)
        raise ValueError(f"{what} differs by framework: say which one (framework=, or --framework), {which}")
    if framework not in value:
        raise _OtherFrameworksError(f"{what} has no value for {framework}, but for {', '.join(value)}")
    return value[framework]


def _plain(value: Any, framework: str | None, what: str) -> Any:
    """Plain data as `from_dict` takes it, for one framework."""
    value = _for(value, framework, what)
    if isinstance(value, dict):
        return {key: part if key == "type" else _plain(part, framework, key) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part, framework, what) for part in value]
    if value in ("None", "null"):
        raise ValueError(f'{what}={value!r}: write "{NONE}"')
    return None if value == NONE else value


# -- sets ----------------------------------------------------------------------------------------------------------


def _constraint(saved: Any) -> Constraint:
    """The constraint of plain data, with errors that have the nearest names."""
    if not isinstance(saved, dict) or "type" not in saved:
        example = '{type = "MaxNorm", axis = 0}'
        raise ValueError(f"a constraint is a table with a type, such as {example}, not {short(saved)}")
    _check_names(saved)
    try:
        made: Any = from_dict(saved)
    except TypeError as error:
        raise ValueError(str(error)) from None
    if not isinstance(made, Constraint):
        raise ValueError(f"{saved['type']} is not a constraint: options such as every stand beside it")
    return made


def _check_names(value: Any) -> None:
    """Raise ValueError where plain data has an unknown type or argument."""
    for part in value if isinstance(value, list) else ():
        _check_names(part)
    if not isinstance(value, dict):
        return
    known, kind = registered_classes(), value.get("type")
    if not isinstance(kind, str) or kind not in known:
        sets = [name for name, one in known.items() if issubclass(one, Constraint)]
        hint = f"; the nearest: {near(str(kind), sets)}"
        if isinstance(kind, str) and is_function(kind):
            hint = f', but a function: write {{type = "Function", function = "{kind}"}}'
        raise ValueError(f"no set is registered as {short(kind)}{hint}")
    arguments = [field.name for field in fields(known[kind])]
    for name, part in value.items():
        if name != "type" and name not in arguments:
            raise ValueError(f"{kind} has no argument {short(name)}; the nearest: {near(name, arguments)}")
        if name != "type":
            _check_names(part)


# -- plans ---------------------------------------------------------------------------------------------------------


def _save_entry(entry: PlanEntry) -> dict[str, Any]:
    if not all(map(_is_name, entry.names)):
        raise ValueError(f"{on_one_line(entry.name)} cannot be saved: its name could not be shown as it is")
    try:
        inside = encode(entry.constraint)
    except ValueError as error:
        raise ValueError(f"{entry.name} cannot be saved: {error}") from None
    saved: dict[str, Any] = {"names": list(entry.names), "shapes": [list(shape) for shape in entry.shapes]}
    saved |= {"constraint": inside, "joint": isinstance(entry.tag, Joint)}
    saved |= {name: getattr(entry.tag, name) for name in _OPTIONS}
    return saved | {"layout": None if entry.layout is None else encode(entry.layout.parts)}


def _load_entry(saved: Any) -> PlanEntry:
    from projgrad.plan import PlanEntry

    saved = _table(saved, "an entry", ("names", "shapes", "constraint", "joint", "layout", *_OPTIONS))
    names = tuple(_list(saved.get("names"), "names"))
    if not names or not all(map(_is_name, names)):
        raise ValueError(f"names={short(list(names))} are not those of parameters")
    try:
        shapes = tuple(_ints(shape) for shape in _list(saved.get("shapes"), "shapes"))
        if len(shapes) != len(names):
            raise ValueError(f"there are {len(names)} names and {len(shapes)} shapes for it")
        if saved.get("layout") is None and len(names) > 1:
            raise ValueError("several parameters in one set need a layout")
        layout = None if saved.get("layout") is None else _layout(shapes, _list(saved["layout"], "layout"))
        constraint = _constraint(saved.get("constraint"))
        if INCOMING in all_axes(constraint):
            raise ValueError('a plan has axes as numbers, and not "incoming"')
        constraint.check_shape(shapes[0] if layout is None else layout.shape)
        joint = saved.get("joint", False)
        if not isinstance(joint, bool):
            raise ValueError(f"joint={short(joint)} is neither true nor false")
        tag = (Joint if joint else Tag)(constraint, **{name: saved[name] for name in _OPTIONS if name in saved})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_shown(names)}: {error}") from None
    return PlanEntry(names, shapes, tag, layout)


def _layout(shapes: tuple[tuple[int, ...], ...], saved: list[Any]) -> Layout:
    parts = tuple(tuple(_ints(axes) for axes in _list(part, "layout")) for part in saved)
    if len(parts) != len(shapes) or len({len(part) for part in parts}) != 1 or not parts[0]:
        raise ValueError("its layout does not fit the number of its parameters")
    for part, shape in zip(parts, shapes, strict=True):
        if sorted(axis for axes in part for axis in axes) != list(range(len(shape))):
            raise ValueError(f"its layout has the axes {part} of the shape {shape}")
    units = {tuple(math.prod(s[d] for d in axes) for axes in p[:-1]) for p, s in zip(parts, shapes, strict=True)}
    if len(units) > 1:
        raise ValueError("its parameters differ in their number of units")
    return Layout(shapes, parts)


# -- the form of what is read --------------------------------------------------------------------------------------


def _table(value: Any, what: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is a table with {', '.join(known)}, not {short(value)}")
    for name in value:
        if name not in known:
            raise ValueError(f"{what} has no {short(name)}; the nearest: {near(name, known)}")
    return cast(dict[str, Any], value)


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} must be a list, not {short(value)}")
    return value


def _ints(value: Any) -> tuple[int, ...]:
    if not are_sizes(value):
        raise ValueError(f"{short(value)} is not a list of numbers from 0 on")
    return tuple(value)


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and on_one_line(name) == name


def _shown(names: Sequence[str]) -> str:
    return clipped(", ".join(names))


def _reason(error: Exception) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)
