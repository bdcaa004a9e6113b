"""On a GPU, a projection waits for nothing: no set of the catalogue looks at values, or copies between devices.

There need not be a GPU for it. First, all is run on a CPU at whose values projgrad may not look, and each operation
that would wait is an error. Then on PyTorch's device "meta", which has no values and mixes with no other device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from projgrad.torch import ProjectedOptimizer, project_
from projgrad_backends.torch import namespace
from projgrad_backends.torch.namespace import TorchNamespace, xp
from tests.cases import all_cases

# What PyTorch computes with a library that it waits for, on a GPU. There is no other decomposition than these.
DRIVERS = {"aten::_linalg_svd", "aten::_linalg_eigh"}
DECOMPOSED = {"SpectralNorm", "NuclearNorm", "Rank", "Orthogonal", "PositiveSemidefinite", "Spectraplex", "Correlation"}

# A loop that would go on for long looks every 64 rounds, from 128 on, those of loops within it included: so to wait now
# and then costs less than all of its rounds.
LOOKS = {
    "Correlation",
    "Convex",
    "Concave",
    "TotalVariationBall",
    "DoublyStochastic",
    "Transport",
    "Polyhedron",
    "Intersection",
    "CappedSimplex",
}
LOOKS_IN_METRIC = {"SecondOrderCone", "GroupL1Ball", "L1InfBall", "tangent of Simplex"}

# of tensors, in Python; and those that copy numbers from the host
LOOKING = {"__bool__", "__float__", "__int__", "__index__", "__contains__", "__array__"}
LOOKING |= {"item", "tolist", "cpu", "cuda", "numpy", "equal", "allclose", "is_nonzero", "nonzero"}
COPYING = {"tensor", "as_tensor", "asarray"}
# in the dispatcher, where the shape of the result depends on the values, or the host gets one
WAITING = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::bincount",
    "aten::histc",
    "aten::repeat_interleave",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::_linalg_check_errors",
    "aten::linalg_eig",
    "aten::_linalg_eigvals",
    "aten::linalg_lstsq",
}
LOOP = TorchNamespace.iterate.__code__
CONSTANT = namespace._constant.__code__  # copies what a constraint holds to the device, once


class WaitError(AssertionError):
    """A GPU would be waited for."""


class _Python(TorchFunctionMode):
    """Sees what Python asks of tensors, or makes tensors of."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.__name__, kwargs or {}
        caller = sys._getframe(1).f_code
        if caller is CONSTANT or (caller is LOOP and name == "__bool__"):
            self.seen.loops += caller is LOOP
            with self.seen.exception():
                return func(*args, **kwargs)
        from_host = name in COPYING and not isinstance((*args, *kwargs.values())[0], torch.Tensor)
        if name in LOOKING or from_host:
            raise WaitError(name)
        return func(*args, **kwargs)


class _Dispatched(TorchDispatchMode):
    """Sees the operations that are carried out."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        self.seen.names.add(name)
        if self.seen.allowed:
            return func(*args, **kwargs)
        masks = args[1] if name.startswith("aten::index") and isinstance(args[1], list | tuple) else ()
        if name in WAITING:
            raise WaitError(name)
        if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in masks):
            raise WaitError(f"{name} with a mask")
        found = func(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, found)) if isinstance(x, torch.Tensor)]
        # one number of the host may be an operand, as it is sent along
        if len({x.device for x in tensors if x.ndim or name in ("aten::copy_", "aten::_to_copy")}) > 1:
            raise WaitError(f"{name} between devices")
        return found


@dataclass
class Seen:
    """What was done under `nothing_waits`."""

    names: set[str] = field(default_factory=set)
    loops: int = 0
    allowed: bool = False

    @contextmanager
    def exception(self) -> Iterator[None]:
        self.allowed = True
        yield
        self.allowed = False


@contextmanager
def nothing_waits() -> Iterator[Seen]:
    """Raise `WaitError` where a GPU would be waited for, other than in a long loop."""
    seen = Seen()
    with _Python(seen), _Dispatched(seen):
        yield seen


# -- what is done with every set -----------------------------------------------------------------------------------


def _project(constraint: Any, x: Any) -> Callable[[], Any]:
    return lambda: constraint.project(x)


def _in_place(constraint: Any, x: Any) -> Callable[[], Any]:
    return lambda: project_(x, constraint)


def _differentiate(constraint: Any, x: Any) -> Callable[[], Any]:
    x = x.requires_grad_()

    def run() -> Any:
        y = constraint.project(x)
        (y * y.detach()).sum().backward()
        return y.detach()

    return run


def _step(constraint: Any, x: Any, **options: Any) -> Callable[[], Any]:
    weights = [torch.nn.Parameter(x.clone()) for _ in range(3)]  # of one shape, which may be projected together
    for w in weights:
        w.grad = torch.linspace(0.5, 1.0, x.numel(), dtype=x.dtype, device=x.device).reshape(x.shape)
    rmsprop = torch.optim.RMSprop([{"params": weights, "constraint": constraint}], 1e-8, foreach=False)
    optimizer = ProjectedOptimizer(rmsprop, **options)
    with torch.no_grad():
        for w in weights:
            w.copy_(x)  # again outside

    def run() -> Any:
        optimizer.step()
        return weights[-1].detach()

    return run


WAYS: dict[str, Callable[[Any, Any], Callable[[], Any]]] = {
    "project": _project,
    "project_": _in_place,
    "step": _step,
    "step, recorded": partial(_step, record=True),
    "step in its metric": partial(_step, metric="optimizer"),
    "derivative": _differentiate,
}
STEPS = [way for way in WAYS if way.startswith("step")]


@dataclass(frozen=True)
class Sample:
    """A constraint, or a tag, with what it is tried on; alone, if it is no tag."""

    constraint: Any
    x: np.ndarray
    accuracy: float = 1.0

    @property
    def ways(self) -> list[str]:
        found = STEPS if isinstance(self.constraint, pg.Tag) else list(WAYS)
        metric = getattr(self.constraint, "in_metric", True)
        return [way for way in found if way != "step in its metric" or metric]


def samples() -> Iterator[Sample]:
    for case in all_cases():
        yield Sample(case.constraint, case.groups(0, case.shapes[-1]), case.accuracy)
    rng = np.random.default_rng(0)
    x, square = rng.standard_normal((100, 60)), rng.standard_normal((3, 3, 8, 6))
    for axis in (1, 0, None):
        yield from (Sample(c, x) for c in (pg.MaxNorm(1.0, axis=axis), pg.UnitNorm(axis=axis)))
        yield Sample(pg.MinMaxNorm(0.5, 1.0, axis=axis, rate=0.5), x)
    for constraint in (
        pg.NonNeg(),
        pg.NonPos(rate=0.5),
        pg.Box(-0.1, 0.1),
        pg.Box(np.linspace(-1.0, 0.0, 60).tolist(), 0.5),
        pg.LInfBall(0.5),
        pg.Mask(np.arange(60) % 2),
        pg.Quantized(0.1),
        pg.Quantized(grid=[-1.0, 0.0, 0.5]),
        pg.Slices({(0, 50): pg.UnitNorm(axis=1), (50, None): pg.Simplex(axis=1)}),
        pg.Joint(pg.MaxNorm(1.0, axis=1)),
        pg.Tag(pg.MaxNorm(pg.Schedule([(0, 1.0), (10, 2.0)]), axis=1), every=1),
        pg.Tag(pg.Simplex(axis=1), tangent="gradient"),
    ):
        yield Sample(constraint, x)
    yield from (Sample(c, square) for c in (pg.Extensive(), pg.StructuringElement(np.ones((3, 3)).tolist())))


EACH = [(sample, way) for sample in samples() for way in sample.ways]


def loops(sample: Sample, way: str) -> bool:
    """Whether there is a loop so long that it looks."""
    tag = sample.constraint
    kind = type(tag).__name__
    if getattr(tag, "tangent", None) in ("gradient", "update"):
        kind = f"tangent of {type(tag.constraint).__name__}"
    return kind in LOOKS or (way == "step in its metric" and kind in LOOKS_IN_METRIC)


def each(*quick: str, slow: tuple[str, ...] = tuple(WAYS)) -> Any:
    """Runs a test for every set in these ways, in the others only with "-m slow"."""
    pairs = [pair for pair in EACH if pair[1] in quick + slow]
    ids = [f"{sample.constraint!r}-{way}" for sample, way in pairs]
    marks = [() if way in quick else pytest.mark.slow for _, way in pairs]
    made = [pytest.param(*pair, id=i, marks=mark) for pair, i, mark in zip(pairs, ids, marks, strict=True)]
    return pytest.mark.parametrize(("sample", "way"), made)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """No loop has more than two rounds."""
    whole = TorchNamespace.iterate
    monkeypatch.setattr(TorchNamespace, "iterate", lambda xp, step, state, most: whole(xp, step, state, min(most, 2)))


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is treated as a GPU."""
    monkeypatch.setattr(TorchNamespace, "can_look", lambda self, x: False)
    monkeypatch.setattr(namespace, "_is_plain", lambda *tensors: False)


def check(sample: Sample, way: str, x: Any) -> Any:
    """Do it with nothing that waits, except for what is listed above."""
    run = WAYS[way](sample.constraint, x)
    with nothing_waits() as seen:
        found = run()
    kind = type(sample.constraint).__name__
    assert (kind in DECOMPOSED) == bool(seen.names & DRIVERS), seen.names
    assert loops(sample, way) or not seen.loops
    return found


@each("project_", "step", "step in its metric")
def test_nothing_waits(sample: Sample, way: str, short: None, blind: None) -> None:
    x = torch.from_numpy(sample.x).float()
    assert check(sample, way, x).shape == x.shape


@each("project_")
def test_nothing_is_copied(sample: Sample, way: str, short: None) -> None:
    x = torch.empty(sample.x.shape, device="meta")
    assert check(sample, way, x).is_meta


@each(slow=("project_", "step in its metric", "derivative"))
def test_the_result_is_the_same_where_nothing_waits(sample: Sample, way: str, request: pytest.FixtureRequest) -> None:
    x = torch.from_numpy(sample.x)
    expected = WAYS[way](sample.constraint, x.clone())()
    request.getfixturevalue("blind")
    found = check(sample, way, x.clone())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=float(sample.accuracy * 1e-12 * x.abs().max()))


def rounds(most: int, within: int = 0) -> tuple[int, int]:
    """How many rounds a loop takes that is done from the start, with loops within it, and how often it looks."""
    made = 0

    def step(going: Any) -> tuple[Any]:
        nonlocal made
        made += 1
        if within:
            TorchNamespace.iterate(xp, lambda going: (going,), (going,), within)
        return (going,)

    with nothing_waits() as seen:
        xp.iterate(step, (torch.zeros(3, dtype=torch.bool),), most)
    return made, seen.loops


def test_only_a_long_loop_looks(blind: None) -> None:
    assert rounds(100) == (100, 0)
    assert rounds(1000) == (128, 1)
    assert rounds(100, within=75) == (2, 1)  # after 152 rounds


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[0, 0].item(),
        lambda x: 1 if x.sum() > 0 else 0,
        lambda x: x[x > 0],
        lambda x: x.clone().masked_fill_(x > 0, 0.0)[x[:, 0] > 0],
        lambda x: torch.where(x > 0),
        lambda x: max(x[0, 0], x[0, 1]),
        lambda x: x.cpu(),
        lambda x: torch.linalg.solve(x.mT @ x, x[0]),
        lambda x: torch.tensor([1.0, 2.0]) + x[0],
        lambda x: x.to("meta"),
    ],
)
def test_the_check_sees_what_waits(function: Callable[[Any], Any]) -> None:
    x = torch.arange(1.0, 7.0).reshape(3, 2)
    with pytest.raises(WaitError), nothing_waits():
        function(x)
