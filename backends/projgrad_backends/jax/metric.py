"""How an optax transformation scales every coordinate, found in its state after an update.

A state holds second moments, but not the numbers that go with them (`eps`, `b2`). Those are read from the closures of
the transformation's own update functions, in the order of the states, or, under `optax.inject_hyperparams`, from the
state. So they are the ones that the step really used; where they cannot be found, that is an error when the
transformation is initialised, and `register_metric` the way out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any, NamedTuple, TypeVar

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

    Examples:
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
    for state in _with_numbers(list(_states(new, old)), list(_updates(inner.update, params))):
        for i, h in state.weights(params, leaves, tagged).items():
            if i in wanted:
                if h is _UNKNOWN:
                    raise ValueError(f'{_entry_of(i, tagged)}: metric="optimizer", but {state.refusal}')
                h = jax.lax.stop_gradient(jnp.broadcast_to(jnp.real(wide(h)), leaves[i].shape))
                weights[i] = h if weights[i] is None else weights[i] * h
    return weights


# they treat all coordinates of a parameter alike
_UNSCALED = (
    *("AccumulateAvgUpdatesState", "AddNoiseState", "ApplyEvery", "DoGState", "DoWGState", "EmaState", "EmptyState"),
    *("MonitorState", "ProjectState", "RecordState", "ReduceLROnPlateauState", "ScaleByBacktrackingLinesearchState"),
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
    def refusal(self) -> str:
        return f"no way is known to tell how {self.name} scales: {_WAYS.format(name=self.name)}"

    @property
    def needs_numbers(self) -> bool:
        return _is_optax(self.new, FORMULAS)

    def weights(self, params: Any, leaves: Sequence[Any], tagged: Tagged) -> dict[int, Any]:
        """The weights by the position of the parameter; `_UNKNOWN` for what this state scales by nobody knows what."""
        by_user = _registered_for(self.new)
        if by_user is not None:
            made = by_user(self.new, params)
            return {} if made is None else _present(self._flat(made, params, tagged))
        if not self.needs_numbers:
            return self._held(params, leaves, tagged)
        formula = FORMULAS[self.name]
        after = [self._flat(getattr(self.new, field), params, tagged) for field in formula.fields]
        before = [self._flat(getattr(self.old, field), params, tagged) for field in formula.before]
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

    def _held(self, params: Any, leaves: Sequence[Any], tagged: Tagged) -> dict[int, Any]:
        """For an unknown state: the parameters that it holds something about, which are all if that cannot be told."""
        held: set[int] = set()
        for field in self.new if isinstance(self.new, tuple) else ():
            try:
                held |= set(_present(_spread(field, params, tagged)))
            except (TypeError, ValueError):
                continue
        return dict.fromkeys(held or range(len(leaves)), _UNKNOWN)

    def _flat(self, tree: Any, params: Any, tagged: Tagged) -> list[Any]:
        try:
            return _spread(tree, params, tagged)
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


@dataclasses.dataclass(frozen=True)
class _Signs:
    """`optax.scale_by_sign`, which has no state: the parameters that it is for, with what is masked skipped."""

    params: Any
    refusal = (
        "scale_by_sign has no metric to project in, as its steps have the sign of the gradient, but not its size: "
        'leave it at metric="euclidean"'
    )

    def weights(self, params: Any, leaves: Sequence[Any], tagged: Tagged) -> dict[int, Any]:
        try:
            return dict.fromkeys(_present(_spread(self.params, params, tagged)), _UNKNOWN)
        except (TypeError, ValueError):  # of another structure, as inside of optax.flatten
            return dict.fromkeys(range(len(leaves)), _UNKNOWN)


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


def _spread(tree: Any, params: Any, tagged: Tagged) -> list[Any]:
    """The leaves of a tree like the parameters, in which a whole part may be skipped; each for its parameter."""

    def fill(part: Any, below: Any) -> Any:
        return jax.tree.map(lambda _: part, below, is_leaf=is_skipped) if is_skipped(part) else part

    return tagged.treedef.flatten_up_to(jax.tree.map(fill, tree, params, is_leaf=is_skipped))


def _ordered(mapping: Mapping[Any, Any]) -> list[Any]:
    """The keys, in an order that JAX does not change."""
    return list(mapping) if isinstance(mapping, OrderedDict) else sorted(mapping, key=str)


# -- the numbers --------------------------------------------------------------------------------------------------


class _Update(NamedTuple):
    """An update function of optax: by what it was made, its numbers, and the parameters it is for."""

    maker: str
    numbers: Numbers
    params: Any


def _with_numbers(states: Sequence[_State | _Injected], updates: Sequence[_Update]) -> list[_State | _Signs]:
    """The states with the numbers of their transformations, which come in the same order; and those without a state."""
    kept = [update for update in updates if update.maker not in _SIGNS]
    takers = [state for state in states if state.needs_numbers]
    fit = len(takers) == len(kept) and all(_fits(*pair) for pair in zip(takers, kept, strict=True))
    nothing = _Update("", {}, None)
    given = iter(kept if fit else ())
    found: list[_State | _Signs] = [_Signs(update.params) for update in updates if update.maker in _SIGNS]
    for state in states:
        maker, numbers, params = next(given, nothing) if state.needs_numbers else nothing
        if isinstance(state, _Injected):
            if not fit:
                raise ValueError(_lost("optax.inject_hyperparams"))
            made = numbers["inner_factory"](**numbers["other_hps"], **state.numbers)
            found += _with_numbers(state.inside, list(_updates(made.update, params)))
        elif state.needs_numbers and not fit and _registered_for(state.new) is None:
            raise ValueError(_lost(state.name))
        else:
            found.append(dataclasses.replace(state, maker=maker, numbers=numbers))
    return found


def _fits(state: _State | _Injected, update: _Update) -> bool:
    if isinstance(state, _Injected):
        return update.maker == "inject_hyperparams"
    return update.maker in FORMULAS[state.name].by


def _updates(thing: Any, params: Any, path: tuple[int, ...] = ()) -> Iterator[_Update]:
    """The update functions of optax inside of `thing`, which is for these parameters, in order."""
    if id(thing) in path:
        return
    path = (*path, id(thing))
    if isinstance(thing, optax.GradientTransformation):
        yield from _updates(thing.update, params, path)
    elif isinstance(thing, MethodType):  # as of optax.MultiSteps
        inside = [x for x in vars(thing.__self__).values() if isinstance(x, optax.GradientTransformation)]
        yield from _updates(inside, params, path)
    elif isinstance(thing, functools.partial):
        yield from _updates([thing.func, *thing.args, *thing.keywords.values()], params, path)
    elif isinstance(thing, FunctionType):
        held = _held(thing)
        maker = thing.__qualname__.partition(".")[0] if thing.__module__.startswith("optax.") else ""
        if maker in MAKERS or maker in _SIGNS or (maker == "inject_hyperparams" and "inner_factory" in held):
            # some of the numbers may be those of a function that the update calls
            inner = {k: v for f in held.values() if isinstance(f, FunctionType) for k, v in _held(f).items()}
            yield _Update(maker, inner | held, params)
        elif maker == "masked" and held.keys() >= {"inner", "mask"}:
            yield from _updates(held["inner"], _masked(params, held["mask"]), path)
        elif maker == "partition" and held.keys() >= {"param_labels", "transforms"}:
            labels = held["param_labels"]
            labels = labels(params) if callable(labels) else labels
            for group in _ordered(held["transforms"]):
                mask = jax.tree.map(lambda label, group=group: label == group, labels)
                yield from _updates(held["transforms"][group], _masked(params, mask), path)
        else:
            yield from _updates(list(held.values()), params, path)
    elif hasattr(thing, "__wrapped__"):  # jax.jit
        yield from _updates(thing.__wrapped__, params, path)
    elif isinstance(thing, Mapping):
        for key in _ordered(thing):
            yield from _updates(thing[key], params, path)
    elif isinstance(thing, tuple | list):
        for part in thing:
            yield from _updates(part, params, path)


def _masked(params: Any, mask: Any) -> Any:
    leaves = jax.tree.leaves(mask)  # a tree of flags may be a module that can be called, too
    mask = mask(params) if leaves and all(map(callable, leaves)) else mask
    return jax.tree.map(lambda kept, part: part if kept else optax.MaskedNode(), mask, params)


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


def _lost(name: str) -> str:
    return (
        f'metric="optimizer": the transformation of {name} is not found inside of the one that was given, so its '
        f"numbers, such as eps, are not known: {_WAYS.format(name=name)}"
    )


def _entry_of(position: int, tagged: Tagged) -> str:
    entries: Iterable[PlanEntry] = tagged.plan
    return next(entry.name for entry in entries if position in entry.handles)
