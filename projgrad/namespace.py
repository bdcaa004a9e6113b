"""Which framework an array belongs to, and the functions the sets call on it.

The sets call the Array API standard plus the few extensions that are methods of `Namespace`. `native` is the one place
where the core looks for a framework: only among those already imported, so that projgrad itself imports none.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import array_api_compat
import numpy as np

from projgrad.frozen import FrozenArray
from projgrad.precision import precision

__all__ = ["Array", "Namespace", "native"]

Array = Any  # an array of any framework; the standard has no common type to name

_PIECE = 2**17  # entries, for which new arrays come from memory that was just given back
_BLOCK = 32  # terms that are added one after the other; a longer sum goes block by block
# sums of squares between which no square that matters is lost, and what takes the groups of all others there
_ORDINARY = {"float32": (2.0**-60, 2.0**100, 2.0**84), "float64": (2.0**-500, 2.0**900, 2.0**600)}


class Namespace:
    """The Array API functions of one framework, with the extensions that projgrad needs."""

    #: a move is carried out in the memory of the array, part by part, and what it needs to know is then better found so
    in_place = False

    def __init__(self, module: Any) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def value(self, x: Any) -> Array:
        """The array itself, where a framework also has variables that hold one."""
        return x

    def upcast(self, x: Array) -> Array:
        """`x` in the dtype projgrad computes in: float32 for float16 and bfloat16, else its own."""
        name = precision(x.dtype).compute
        if self.is_complex(x) or str(x.dtype).endswith(name):
            return x
        return self.astype(x, getattr(self, name))

    def is_complex(self, x: Array) -> bool:
        """Whether the entries of `x` are complex."""
        return "complex" in str(x.dtype)

    def largest(self, dtype: Any) -> float:
        """The largest finite number of a real dtype."""
        return float(self.finfo(dtype).max)

    def constant(self, value: FrozenArray, like: Array) -> Array:
        """A frozen array with the dtype and device of `like`; a finite number stays finite."""
        device = array_api_compat.device(like)
        return self.asarray(self.finite(value, like.dtype), dtype=like.dtype, device=device)

    def finite(self, value: FrozenArray, dtype: Any) -> np.ndarray:
        """The numbers of `value`, the finite ones limited to what `dtype` can hold."""
        numbers, most = np.asarray(value), self.largest(dtype)
        return np.where(np.isfinite(numbers), np.clip(numbers, -most, most), numbers)

    def host(self, x: Array) -> np.ndarray:
        """`x` as an array of NumPy."""
        return np.asarray(x)

    def on_host(self, function: Callable[..., np.ndarray | None], *arrays: Array) -> Array | None:
        """``function(*arrays)`` on arrays of NumPy in the same memory; None where there are none, or it returns None.

        There are some where the arrays are in the memory of the host, and nothing traces what becomes of them.
        """
        return None

    def once(self, x: Array) -> Array:
        """`x`, a few numbers per group: compiled code is to work it out once, not for every entry that it goes with."""
        return x

    def carried_out(self, x: Array, find: Callable[[Array, Namespace], Any]) -> Array:
        """Where the move leads to that ``find(x, xp)`` makes, in a new array."""
        return find(x, self).apply(x, self)

    def stop_gradient(self, x: Array) -> Array:
        """`x`, held constant in differentiation."""
        return x

    def graft(self, value: Array, derivative: Array) -> Array:
        """`value`, bit for bit, with the derivative of another array of its shape."""
        return value

    def with_derivative(self, value: Array, x: Array, derivative: Callable[[Array], Array]) -> Array:
        """`value`, a constant, with a derivative with respect to `x`, which has its shape.

        Args:
            value: what a function gives at `x`.
            x: where.
            derivative: its derivative there, a linear map. It is called only where a derivative is asked for.
        """
        return value

    def can_look(self, x: Array) -> bool:
        """Whether Python may ask what `x` holds: it is not traced, nor (in PyTorch) on a device to be waited for."""
        return True

    def may_differentiate(self, x: Array) -> bool:
        """Whether a derivative with respect to `x` may be asked for."""
        return False

    def iterate(self, step: Callable[..., tuple[Array, ...]], state: tuple[Array, ...], most: int) -> tuple[Array, ...]:
        """``state = step(*state)`` again and again, as long as the first of `state`, an array of bools, has a True.

        Compiles, and has no derivative: call it under `stop_gradient`. What does not change belongs into a closure;
        `step` returns new arrays of the shapes and dtypes it was given.

        Args:
            step: one iteration.
            state: where to start; the first is an array of bools.
            most: the largest number of iterations. Where PyTorch would have to wait for a device to know, it only does
                so every 64 of them, from 128 on, with those of loops within this one.
        """
        for _ in range(most):
            if not bool(self.any(state[0])):
                break
            state = step(*state)
        return state

    def skips(self, x: Array) -> bool:
        """Whether `unless`, asked about `x` held constant, leaves out what is not needed."""
        return self.can_look(x)

    def unless(
        self, done: Array, function: Callable[..., Array], x: Array, *others: Array, known: tuple[Array, ...] = ()
    ) -> Array:
        """``function(x, *others)``, which is `x` if all of `done` is True: then it is left out, where that is quicker.

        Its derivative is by `x` only. Last, it is given what is `known` of `x`, or nothing, for a derivative.
        """
        if self.can_look(x) and not self.may_differentiate(x) and bool(self.all(done)):
            return x
        return function(x, *others, *known)

    def either(self, ok: Array, quick: Callable[[], Any], slow: Callable[[], Any]) -> Any:
        """``slow()``, or, where all of `ok` is True and that can be told without waiting for a device, ``quick()``.

        They return alike arrays, in the same order, and the same numbers where all of `ok` is True.
        """
        return quick() if self.can_look(ok) and bool(self.all(ok)) else slow()

    def branches(self, x: Array) -> bool:
        """Whether this is compiled code, and on a device where it does not have to wait for what `unless` asks."""
        return False

    def pieces(self, x: Array, axes: tuple[int, ...]) -> tuple[int, int] | None:
        """An axis other than `axes`, and the length that `x` is best cut to along it for groups one after the other.

        None where it is best left whole, as compiled code is.
        """
        return None

    def order_statistic(self, x: Array, index: int) -> Array:
        """What stands at `index` along the last axis of `x` when that is sorted, with length 1; it is a constant."""
        found = self.on_host(partial(_partitioned, index=index), x)
        return self.selected(x, index) if found is None else found

    def selected(self, x: Array, index: int) -> Array:
        """`order_statistic`, as the framework finds the largest entries."""
        count = x.shape[-1] - index
        return -self.least_of_largest(-x, index + 1) if count > index + 1 else self.least_of_largest(x, count)

    def least_of_largest(self, x: Array, count: int) -> Array:
        """The least of the `count` largest entries along the last axis, with length 1."""
        return self.min(self.top(x, count), axis=-1, keepdims=True)

    def highest(self, x: Array, count: int) -> Array:
        """The `count` largest entries along the last axis of a constant `x`, in no order."""
        found = self.on_host(partial(_highest, count=count), x)
        return self.top(x, count) if found is None else found

    def top(self, x: Array, count: int) -> Array:
        """`highest`, as the framework finds them."""
        return self.sort(x, axis=-1)[..., x.shape[-1] - count :]

    def all_finite(self, x: Array, axes: tuple[int, ...]) -> Array:
        """Whether all entries of every group along `axes` are finite; with length 1 in these."""
        return self.all(self.isfinite(x), axis=axes, keepdims=True)

    def solve(self, matrix: Array, right: Array) -> Array:
        """``matrix^-1 right`` of a batch, right with a last axis of its own; also inside `iterate`."""
        return self.linalg.solve(matrix, right)

    def is_below(self, x: Array, bound: Array) -> Array:
        """Whether no eigenvalue of symmetric matrices reaches a bound, which has length 1 in the last axes.

        It is so where a Cholesky factor exists, up to rounding. With one matrix that is not, a whole batch may count as
        such. Only the lower half of `x` is read. For an `x` that `skips`.
        """
        try:
            factor = self.linalg.cholesky(bound * self.eye(x.shape[-1], dtype=x.dtype) - x)
        except np.linalg.LinAlgError:
            factor = float("nan") * x
        return self.all(self.isfinite(factor), axis=(-2, -1), keepdims=True)

    def require(self, ok: Array, message: str) -> None:
        """Raise RuntimeError where an array of bools has a False; not in compiled code, nor to wait for a device."""
        if self.can_look(ok) and not bool(self.all(ok)):
            raise RuntimeError(message)

    def divide(self, x: Array, by: Array) -> Array:
        """`x / by`, real or complex `x` by real `by`."""
        if self.is_complex(x):  # complex division would square `by`
            return self.astype(self.real(x) / by, x.dtype) + self.astype(self.imag(x) / by, x.dtype) * 1j
        return x / by

    def times(self, x: Array, by: Array) -> Array:
        """`x * by`, real or complex `x` by real `by`."""
        return x * by

    def positive(self, x: Array) -> Array:
        """``max(x, 0)``, and NaN where `x` is; for an `x` that is a constant."""
        return self.maximum(x, self.zeros_like(x[..., :1]))

    def support(self, x: Array) -> Array:
        """Where entries, none of which is negative, are above 0: 1 there as a number, else 0."""
        return self.astype(x > 0, x.dtype)

    def accurate_sum(self, x: Array, axes: tuple[int, ...]) -> Array:
        """The sum over `axes`, kept as axes of length 1, with an error that grows as the logarithm of their length."""
        for axis in axes:
            x = self._sum_in_blocks(x, axis % len(x.shape))
        return x

    def _sum_in_blocks(self, x: Array, axis: int) -> Array:
        before, after = tuple(x.shape[:axis]), tuple(x.shape[axis + 1 :])
        while x.shape[axis] > _BLOCK:
            length = x.shape[axis]
            blocks = length // _BLOCK
            skip = (slice(None),) * axis
            rest = x[(*skip, slice(blocks * _BLOCK, length), ...)]
            # neighbours into different sums, which registers add side by side
            x = self.reshape(x[(*skip, slice(0, blocks * _BLOCK), ...)], (*before, _BLOCK, blocks, *after))
            x = self.sum(x, axis=axis)
            if length % _BLOCK:
                x = self.concat([x, self.sum(rest, axis=axis, keepdims=True)], axis=axis)
        return self.sum(x, axis=axis, keepdims=True)

    def sum_of_squares(self, x: Array, axes: tuple[int, ...]) -> Array:
        """That of every group of `x` along `axes`, which are kept with length 1; it may overflow or underflow."""
        return self.accurate_sum(self._squares(self.upcast(x)), axes)

    def is_ordinary(self, squares: Array) -> Array:
        """Which sums of squares have lost nothing that matters to overflow or underflow."""
        low, high, _ = _ORDINARY[precision(squares.dtype).compute]
        return (squares > low) & (squares < high)

    def norm(self, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
        """The l2 norm of every group of `x` along `axes` as two factors, `m` and `u`, with ``norm = m * u``.

        Neither factor overflows or underflows, although their product and the squares of the entries may; nor does
        ``1 / m``. A group with an infinity or NaN has the norm NaN. A group of subnormal numbers counts as zeros, which
        it is on devices that flush these, and since a direction as short has no finite derivative. Both factors keep
        `axes` with length 1; the derivative is that of ``m * u``, and 0 for a group of zeros.
        """
        m, u = self.of_norm(x, axes, self.sum_of_squares(x, axes), lambda m, u: (m, u))
        return m, u

    def of_norm(
        self, x: Array, axes: tuple[int, ...], squares: Array, then: Callable[..., tuple[Array, ...]]
    ) -> tuple[Array, ...]:
        """What `then` makes of the factors that `norm` gives, where the `sum_of_squares` is known.

        Compiled code computes it once, and not again for every entry that takes it, as it comes out of a branch.
        """
        x = self.upcast(x)
        p = precision(x.dtype)
        power = _ORDINARY[p.compute][2]
        fixed = self.stop_gradient(squares)
        ordinary, one = self.is_ordinary(fixed), self.ones_like(fixed)

        def quick() -> tuple[Array, ...]:
            n = self.sqrt(self.where(ordinary, squares, 1.0))  # where both are computed, with a finite derivative
            m = self.stop_gradient(n)
            return then(m, n / m)

        def slow() -> tuple[Array, ...]:
            scale = self.where(ordinary, one, self.where(fixed < 1, power * one, one / power))
            # not x * scale: XLA would take the square of the scale, which is infinite, out of a sum of constants
            small, large = self.times(x, power), self.times(x, 1 / power)
            scaled = self._squares(self.where(ordinary, x, self.where(fixed < 1, small, large)))
            held = self.stop_gradient(scaled)
            largest = self.max(held, axis=axes, keepdims=True) if axes else held
            total = self.where(largest < (p.tiny * scale) ** 2, 0.0, self.accurate_sum(scaled, axes))
            zero = total == 0
            n = self.where(self.isfinite(total), self.sqrt(self.where(zero, 1.0, total)), float("nan"))
            m = self.stop_gradient(n) / scale  # the norm itself, where that is no extreme number
            m = self.where(m < 1 / p.tiny, self.where(m > p.tiny, m, p.tiny), 1 / p.tiny)
            m = self.where(zero, 1.0, m)
            return then(m, self.where(zero, 0.0, n / (m * scale)))

        found: tuple[Array, ...] = self.either(ordinary, quick, slow)
        return found

    def _squares(self, x: Array) -> Array:
        return self.real(x) ** 2 + self.imag(x) ** 2 if self.is_complex(x) else x * x


class EagerNamespace(Namespace):
    """A framework that makes a new array of what each operation returns."""

    def pieces(self, x: Array, axes: tuple[int, ...]) -> tuple[int, int] | None:
        size, free = math.prod(x.shape), [d for d in range(len(x.shape)) if d not in axes]
        if size < 2 * _PIECE or not free or not self.can_look(x) or self.may_differentiate(x):
            return None
        along = max(free, key=lambda d: x.shape[d])
        step = max(1, _PIECE * x.shape[along] // size)
        return (along, step) if step < x.shape[along] else None


class HostNamespace(EagerNamespace):
    """NumPy and what follows it, which would warn where a norm overflows to infinity as it should."""

    def on_host(self, function: Callable[..., np.ndarray | None], *arrays: Array) -> Array | None:
        return function(*arrays) if all(isinstance(x, np.ndarray) for x in arrays) else None

    def norm(self, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
        with np.errstate(over="ignore"):
            return super().norm(x, axes)

    def accurate_sum(self, x: Array, axes: tuple[int, ...]) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return super().accurate_sum(x, axes)

    def times(self, x: Array, by: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return x * by

    def divide(self, x: Array, by: Array) -> Array:
        with np.errstate(over="ignore"):
            return super().divide(x, by)


_namespaces: dict[type, Namespace] = {}


def native(x: Any) -> tuple[Array, Namespace]:
    """The array behind `x` (the value of a variable, or `x` itself) and the namespace that computes on it.

    Raises:
        TypeError: `x` is not an array of a supported framework.
    """
    if _is(x, "keras", "Variable"):
        x = x.value
    if type(x) not in _namespaces:
        _namespaces[type(x)] = _find(x)
    xp = _namespaces[type(x)]
    return xp.value(x), xp


def _find(x: Any) -> Namespace:
    # the one place where the core looks for a framework
    xp: Namespace
    if _is(x, "torch.distributed.tensor", "DTensor"):
        # what looks at its values may send messages that the other processes do not wait for
        raise TypeError(
            "a DTensor is spread over processes: project it with projgrad.torch.project_(x, constraint), or all of a "
            "model with project_params(), in all processes; violations() and audit() check them"
        )
    if _is(x, "torch", "Tensor"):
        from projgrad_backends.torch.namespace import xp
    elif _is(x, "jax", "Array"):
        from projgrad_backends.jax.namespace import xp
    elif _is(x, "tensorflow", "Tensor") or _is(x, "tensorflow", "Variable"):
        from projgrad_backends.tensorflow.namespace import xp
    elif array_api_compat.is_array_api_obj(x):
        return HostNamespace(array_api_compat.array_namespace(x))
    else:
        raise TypeError(
            f"projgrad projects arrays and tensors of NumPy, PyTorch, JAX, TensorFlow or Keras, not {type(x).__name__}"
        )
    return xp


def _is(x: Any, framework: str, kind: str) -> bool:
    return isinstance(x, getattr(sys.modules.get(framework), kind, ()))


def _partitioned(x: np.ndarray, index: int) -> np.ndarray:
    return np.partition(x, index, axis=-1)[..., index : index + 1]


def _highest(x: np.ndarray, count: int) -> np.ndarray:
    first = x.shape[-1] - count
    return np.partition(x, first, axis=-1)[..., first:].copy()  # so that the rest is given back
