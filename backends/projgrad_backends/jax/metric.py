"""How an optax transformation scales every coordinate, found in its state after an update.

A state holds second moments, but not the numbers that go with them (`eps`, `b2`). Those are read from the closures of
the transformation's own update functions, in the order of the states, or, under `optax.inject_hyperparams`, from the
state. So they are the ones that the step really used; where they cannot be found, that is an error when the
transformation is initialised, and `register_metric` the way out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from projgrad.plan import PlanEntry
from projgrad_backends.jax.parameters import is_skipped
from projgrad_backends.jax.scalings import FORMULAS, MAKERS, Numbers, wide
from projgrad_backends.jax.tags import Tagged

__all__ = ["register_metric", "weights_of"]

_F = TypeVar("_F", bound=Callable[..., Any])
_registered: dict[type, Callable[..., Any]] = {}


def register_metric(state: type) -> Callable[[_F], _F]:
    """Say by what a transformation scales each coordinate, for ``metric="optimizer"``.

    It decorates a function of the transformation's state after an update and the parameters. The function returns a
    pytree of the structure of the parameters with a positive array h for each, if the transformation turns a gradient g
    into g / h, up to a constant within each parameter; None for what is not scaled, or for all. It holds before that of
    projgrad, if there is one, and must be traceable. In a chain, the h of several transformations are multiplied.

    Args:
        state: the class of the state.

    Raises:
        TypeError: `state` is no class.

    Example:
        >>> @projgrad.optax.register_metric(ScaleByMineState)
        ... def scaling(state, params):
        ...     return jax.tree.map(lambda nu: jnp.sqrt(nu) + 1e-8, state.nu)
    """
    if not isinstance(state, type):
        raise TypeError(f"register_metric takes the class of a state, not {state!r}")

    def add(function: _F) -> _F:
        _registered[state] = function
        return function

    return add


def weights_of(
    inner: optax.GradientTransformation, new: Any, old: Any, params: Any, leaves: Sequence[Any], tagged: Tagged
) -> list[Any]:
    """The weights of the entries of every leaf after an update; None where there are none, or none are asked for.

    Args:
        inner: the transformation that made the update.
        new: its state after the update.
        old: its state before it.
        params: the parameters, and `leaves` theirs.
        tagged: what holds for them.

    Raises:
        ValueError: a transformation is not known, or its numbers are not found.
    """
    wanted = {i for entry in tagged.plan if entry.in_metric for i in entry.handles}
    weights: list[Any] = [None] * len(leaves)
    if not wanted:
        return weights
    for state in _with_numbers(list(_states(new, old)), list(_updates(inner.update)), "the transformation"):
        for i, h in state.weights(params, leaves, tagged).items():
            if i in wanted:
                if h is _UNKNOWN:
                    raise ValueError(_refusal(state.name, _entry_of(i, tagged)))
                h = jax.lax.stop_gradient(jnp.broadcast_to(jnp.real(wide(h)), leaves[i].shape))
                weights[i] = h if weights[i] is None else weights[i] * h
    return weights


# they treat all coordinates of a parameter alike
_UNSCALED = (
    *("AccumulateAvgUpdatesState", "AddNoiseState", "ApplyEvery", "DoGState", "DoWGState", "EmaState", "EmptyState"),
    *("MonitorState", "ProjectState", "ReduceLROnPlateauState", "ScaleByBacktrackingLinesearchState"),
    *("ScaleByDistanceOverGradientsState", "ScaleByNovogradState", "ScaleByOptimisticGradientState"),
    *("ScaleByScheduleState", "ScaleByZoomLinesearchState", "SnapshotState", "TraceState", "WrappedScheduleState"),
    "ZeroNansState",
)
_SIGNS = ("scale_by_sign",)
_UNKNOWN = object()


# -- states -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _State:
    """A state, after and before the update, with what its transformation was made of."""

    new: Any
    old: Any
    maker: str = ""
    numbers: Numbers | None = None

    @property
    def name(self) -> str:
        return type(self.new).__name__

    @property
    def needs_numbers(self) -> bool:
        return _is_optax(self.new, FORMULAS)

    def weights(self, params: Any, leaves: Sequence[Any], tagged: Tagged) -> dict[int, Any]:
        """The weights by the position of the parameter; `_UNKNOWN` for what this state scales by nobody knows what."""
        by_user = _registered_for(self.new)
        if by_user is not None:
            made = by_user(self.new, params)
            return {} if made is None else _present(self._flat(made, tagged))
        if not self.needs_numbers:
            return self._held(leaves, tagged)
        formula = FORMULAS[self.name]
        after = [self._flat(getattr(self.new, field), tagged) for field in formula.fields]
        before = [self._flat(getattr(self.old, field), tagged) for field in formula.before]
        count = getattr(self.new, formula.steps) if formula.steps in self.new._fields else None  # tuples have a count
        compute, found = formula.by[self.maker], {}
        for i in _present(after[-1]):
            moments = [wide(part[i]) for part in (*after, *before)]
            shape = (tuple(leaves[i].shape),) if formula.shape else ()
            try:
                h = compute(self.numbers or {}, count, *moments, *shape)
            except KeyError:
                raise ValueError(_lost(self.name)) from None
            # before the first step there are no moments yet
            found[i] = h if count is None else jnp.where(count > 0, h, jnp.ones_like(h))
        return found

    def _held(self, leaves: Sequence[Any], tagged: Tagged) -> dict[int, Any]:
        """For an unknown state: the parameters that it holds something about, which are all if that cannot be told."""
        held: set[int] = set()
        for field in self.new if isinstance(self.new, tuple) else ():
            try:
                held |= set(_present(tagged.treedef.flatten_up_to(field)))
            except (TypeError, ValueError):
                continue
        return dict.fromkeys(held or range(len(leaves)), _UNKNOWN)

    def _flat(self, tree: Any, tagged: Tagged) -> list[Any]:
        try:
            return tagged.treedef.flatten_up_to(tree)
        except (TypeError, ValueError):
            raise ValueError(
                f'metric="optimizer": {self.name} holds no tree like the parameters, as inside of optax.flatten: wrap '
                f"the transformation without it, or {_WAYS.format(name=self.name)}"
            ) from None


@dataclasses.dataclass(frozen=True)
class _Injected:
    """The state of `optax.inject_hyperparams`: its numbers, and the states inside."""

    numbers: Numbers
    inside: list[_State | _Injected]
    needs_numbers = True


def _states(new: Any, old: Any) -> Iterator[_State | _Injected]:
    """The states that matter, in order: those that scale in a known way, and those of which that is not known."""
    if _registered_for(new) is not None or _is_optax(new, FORMULAS):
        yield _State(new, old)
    elif hasattr(new, "hyperparams") and hasattr(new, "inner_state"):
        yield _Injected(new.hyperparams, list(_states(new.inner_state, old.inner_state)))
    elif _is_optax(new, _UNSCALED):
        return
    elif _mentions(new):
        for inside, before in _pairs(new, old):
            # what else is in the state of a wrapper are counts, and trees of arrays that scale nothing
            if _is_plain(new) or _is_state(inside) or _mentions(inside):
                yield from _states(inside, before)
    elif any(getattr(leaf, "ndim", 0) > 0 for leaf in jax.tree.leaves(new)):
        yield _State(new, old)


def _pairs(new: Any, old: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(new, Mapping):
        yield from ((new[key], old[key]) for key in _ordered(new))
    elif isinstance(new, tuple | list):
        yield from zip(new, old, strict=True)
    elif dataclasses.is_dataclass(new):
        yield from ((getattr(new, f.name), getattr(old, f.name)) for f in dataclasses.fields(new))


def _is_plain(state: Any) -> bool:
    return isinstance(state, Mapping | list) or type(state) is tuple


def _mentions(state: Any) -> bool:
    """Whether this is a known state, or there are states in it, rather than arrays only."""
    return _is_known(state) or any(_is_state(x) or _mentions(x) for x, _ in _pairs(state, state))


def _is_known(state: Any) -> bool:
    return _registered_for(state) is not None or _is_optax(state, (*FORMULAS, *_UNSCALED))


def _is_state(thing: Any) -> bool:
    name = type(thing).__name__
    record = hasattr(thing, "_fields") or dataclasses.is_dataclass(thing)
    return record and name.endswith("State") and name != "VariableState"


def _is_optax(state: Any, names: Iterable[str]) -> bool:
    kind = type(state)
    return kind.__name__ in names and (kind.__module__.partition(".")[0] in ("optax", "projgrad_backends"))


def _registered_for(state: Any) -> Callable[..., Any] | None:
    return next((_registered[kind] for kind in type(state).__mro__ if kind in _registered), None)


def _present(leaves: Sequence[Any]) -> dict[int, Any]:
    return {i: leaf for i, leaf in enumerate(leaves) if not is_skipped(leaf)}


def _ordered(mapping: Mapping[Any, Any]) -> list[Any]:
    return sorted(mapping, key=str)


# -- the numbers --------------------------------------------------------------------------------------------------


def _with_numbers(states: Sequence[_State | _Injected], updates: Sequence[Any], where: str) -> list[_State]:
    """The states with the numbers of their transformations, which come in the same order."""
    kept = [found for found in updates if found[0] not in _SIGNS]
    if len(kept) < len(updates) and not any(state.needs_numbers for state in states):
        raise ValueError(_refusal("scale_by_sign", where))
    takers = [state for state in states if state.needs_numbers]
    fit = len(takers) == len(kept) and all(_fits(*pair) for pair in zip(takers, kept, strict=True))
    nothing: tuple[str, Numbers] = ("", {})
    given = iter(kept if fit else ())
    found: list[_State] = []
    for state in states:
        maker, numbers = next(given, nothing) if state.needs_numbers else nothing
        if isinstance(state, _Injected):
            if not fit:
                raise ValueError(_lost("optax.inject_hyperparams"))
            made = numbers["inner_factory"](**numbers["other_hps"], **state.numbers)
            found += _with_numbers(state.inside, list(_updates(made.update)), where)
        elif state.needs_numbers and not fit and _registered_for(state.new) is None:
            raise ValueError(_lost(state.name))
        else:
            found.append(dataclasses.replace(state, maker=maker, numbers=numbers))
    return found


def _fits(state: _State | _Injected, update: tuple[str, Numbers]) -> bool:
    if isinstance(state, _Injected):
        return update[0] == "inject_hyperparams"
    return update[0] in FORMULAS[state.name].by


def _updates(thing: Any, path: tuple[int, ...] = ()) -> Iterator[tuple[str, Numbers]]:
    """The update functions of optax inside of `thing`, in order: by what they were made, and their numbers."""
    if id(thing) in path:
        return
    path = (*path, id(thing))
    if isinstance(thing, optax.GradientTransformation):
        yield from _updates(thing.update, path)
    elif isinstance(thing, MethodType):  # as of optax.MultiSteps
        inside = [x for x in vars(thing.__self__).values() if isinstance(x, optax.GradientTransformation)]
        yield from _updates(inside, path)
    elif isinstance(thing, functools.partial):
        yield from _updates([thing.func, *thing.args, *thing.keywords.values()], path)
    elif isinstance(thing, FunctionType):
        held = _held(thing)
        maker = thing.__qualname__.partition(".")[0] if thing.__module__.startswith("optax.") else ""
        if maker in MAKERS or maker in _SIGNS or (maker == "inject_hyperparams" and "inner_factory" in held):
            # some of the numbers may be those of a function that the update calls
            yield (
                maker,
                {k: v for f in held.values() if isinstance(f, FunctionType) for k, v in _held(f).items()} | held,
            )
        else:
            yield from _updates(list(held.values()), path)
    elif hasattr(thing, "__wrapped__"):  # jax.jit
        yield from _updates(thing.__wrapped__, path)
    elif isinstance(thing, Mapping):
        for key in _ordered(thing):
            yield from _updates(thing[key], path)
    elif isinstance(thing, tuple | list):
        for part in thing:
            yield from _updates(part, path)


def _held(function: FunctionType) -> dict[str, Any]:
    """What a function refers to that it was made with."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


# -- what to say --------------------------------------------------------------------------------------------------

_WAYS = 'say what it scales by with projgrad.optax.register_metric({name}), or leave it at metric="euclidean"'


def _refusal(name: str, where: str) -> str:
    return f'{where}: metric="optimizer", but no way is known to tell how {name} scales: {_WAYS.format(name=name)}'


def _lost(name: str) -> str:
    return (
        f'metric="optimizer": the transformation of {name} is not found inside of the one that was given, so its '
        f"numbers, such as eps, are not known: {_WAYS.format(name=name)}"
    )


def _entry_of(position: int, tagged: Tagged) -> str:
    entries: Iterable[PlanEntry] = tagged.plan
    return next(entry.name for entry in entries if position in entry.handles)
