"""How much the hot paths do, in counts, which are stable where times are not: a path that gains work fails.

The counts are in `operation_counts.json`. After a change for the better, or one that is worth its price, they are
written anew by

    python -m tests.test_operation_counts

For PyTorch: the operations that are carried out; the passes, which are the numbers that these read and write, as a
multiple of those of the parameters; and the peak of the memory, in parameters. For JAX, of the compiled program, with
the bodies of loops counted once: the arrays of the parameter's size that it writes, the passes, and the memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")

import jax.numpy as jnp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.harness import Candidate, peak_memory
from projgrad.torch import ProjectedOptimizer, project_

TABLE = Path(__file__).with_name("operation_counts.json")
SLACK = 0.02  # of a count, as sums of another processor may take a round more
SHAPE = (1024, 1024)

Counts = dict[str, float]


# -- PyTorch -------------------------------------------------------------------------------------------------------


class Counter(TorchDispatchMode):
    """The operations that are carried out, and the numbers that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.numbers = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view and func._schema.name not in NO_WORK:
            self.operations += 1
            read = {(x.data_ptr(), held(x)) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
            written = [held(x) for x in tree_leaves(found) or args[:1] if isinstance(x, torch.Tensor)]
            self.numbers += sum(size for _, size in read) + sum(written)
        return found


NO_WORK = {"aten::empty", "aten::_local_scalar_dense", "aten::detach"}
NO_WORK |= {"profiler::_record_function_enter_new", "profiler::_record_function_exit"}


def held(x: Any) -> int:
    """How many numbers of the memory a tensor is made of: what it repeats counts once."""
    return math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)


def counted(candidate: Candidate, parameters: list[Any]) -> Counts:
    """What a call does that is not the first."""
    size = sum(x.numel() for x in parameters)
    memory = peak_memory(candidate) / sum(x.nbytes for x in parameters)
    candidate.restore()
    with Counter() as counter:
        candidate.call()
    return {"operations": counter.operations, "passes": counter.numbers / size, "memory": memory}


def wave(shape: tuple[int, ...]) -> Any:
    """Numbers between -1 and 1 with no order, the same everywhere."""
    return (torch.arange(math.prod(shape), dtype=torch.float64) ** 1.5).sin().reshape(shape).float()


def in_place(constraint: Any, factor: float = 1.0) -> Counts:
    start = factor * wave(SHAPE)
    w = start.clone()
    return counted(Candidate("", lambda: project_(w, constraint), lambda: w.copy_(start)), [w])


def eager(constraint: Any) -> Counts:
    x = wave(SHAPE)
    return counted(Candidate("", lambda: constraint.project(x)), [x])


def step(constraint: Any, count: int, shape: tuple[int, ...]) -> Counts:
    """A step of SGD, of which its own part is a single operation and three passes, with tensors that end outside."""
    parameters = [torch.nn.Parameter(wave(shape)) for _ in range(count)]
    for w in parameters:
        w.grad = torch.zeros_like(w)
    group = {"params": parameters, "constraint": constraint}
    optimizer = ProjectedOptimizer(torch.optim.SGD([group], 0.1, foreach=True))
    starts = [wave(shape) for _ in parameters]

    @torch.no_grad()
    def restore() -> None:
        torch._foreach_copy_(parameters, starts)

    return counted(Candidate("", optimizer.step, restore), parameters)


# -- JAX -----------------------------------------------------------------------------------------------------------


def compiled(constraint: Any) -> Counts:
    x = jnp.asarray(wave(SHAPE).numpy())
    program = jax.jit(constraint.project, donate_argnums=0).lower(x).compile()  # as weights are in a training step
    accessed, memory = program.cost_analysis()["bytes accessed"], program.memory_analysis().temp_size_in_bytes
    return {
        "arrays": arrays_written(program.as_text(), x.size),
        "passes": accessed / x.nbytes,
        "memory": memory / x.nbytes,
    }


INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.-]+ = \w+\[([\d,]+)\]\S* ([\w-]+)\(.*")
NOT_WRITTEN = {"parameter", "get-tuple-element", "bitcast"}


def arrays_written(program: str, size: int) -> int:
    """How many instructions of a compiled program make an array of at least this size."""
    # what is inside a fusion, a sum or a sort is not written
    inside = {name for line in program.splitlines() if " call(" not in line for name in INSIDE.findall(line)}
    found, counts = 0, False
    for line in program.splitlines():
        if line.endswith("{"):
            counts = line.split()[line.startswith("ENTRY")].lstrip("%") not in inside
        match = INSTRUCTION.match(line)
        if counts and match and math.prod(map(int, match[1].split(","))) >= size:
            found += match[2] not in NOT_WRITTEN
    return found


INSIDE = re.compile(r"(?:calls|to_apply)=%([\w.-]+)")


# -- what is counted -----------------------------------------------------------------------------------------------

PATHS: dict[str, Callable[[], Counts]] = {
    **{
        f"torch, in place: {name} over {what}, {state}": partial(in_place, constraint, factor)
        for axis, what in ((1, "rows"), (0, "columns"))
        for name, constraint, inside in (
            ("MaxNorm", pg.MaxNorm(1.0, axis=axis), 0.01),
            ("UnitNorm", pg.UnitNorm(axis=axis), None),
            ("MinMaxNorm", pg.MinMaxNorm(0.5, 1.0, axis=axis), 0.03),
        )
        for state, factor in (("all outside", 1.0), ("none outside", inside))
        if factor is not None
    },
    "torch, in place: NonNeg": partial(in_place, pg.NonNeg()),
    "torch, in place: Box": partial(in_place, pg.Box(-0.5, 0.5)),
    "torch, in place: Simplex over rows": partial(in_place, pg.Simplex(axis=1)),
    "torch: Simplex over rows": partial(eager, pg.Simplex(axis=1)),
    "torch: L1Ball over rows": partial(eager, pg.L1Ball(axis=1)),
    "torch: MaxNorm over rows": partial(eager, pg.MaxNorm(1.0, axis=1)),
    "torch: SGD step, 1 x 1024 x 1024, MaxNorm": partial(step, pg.MaxNorm(1.0, axis=1), 1, SHAPE),
    "torch: SGD step, 50 x 64 x 64, MaxNorm": partial(step, pg.MaxNorm(1.0, axis=1), 50, (64, 64)),
    "torch: SGD step, 50 x 64 x 64, NonNeg": partial(step, pg.NonNeg(), 50, (64, 64)),
    "jax, compiled: MaxNorm over rows": partial(compiled, pg.MaxNorm(1.0, axis=1)),
    "jax, compiled: NonNeg": partial(compiled, pg.NonNeg()),
    "jax, compiled: Simplex over rows": partial(compiled, pg.Simplex(axis=1)),
    "jax, compiled: L1Ball over rows": partial(compiled, pg.L1Ball(axis=1)),
}


def rounded(counts: Counts) -> Counts:
    return {name: round(number, 3) for name, number in counts.items()}


@pytest.mark.parametrize("path", PATHS)
def test_no_hot_path_does_more_than_before(path: str, one_thread: None) -> None:
    most, now = json.loads(TABLE.read_text())[path], rounded(PATHS[path]())
    gained = {name: f"{most[name]} -> {now[name]}" for name in now if now[name] > most[name] * (1 + SLACK) + 1e-3}
    assert not gained, f"{path} does more: {gained}; if that is worth it, write: python -m tests.test_operation_counts"


def test_the_table_is_that_of_the_paths() -> None:
    assert list(json.loads(TABLE.read_text())) == list(PATHS)


def test_what_is_counted() -> None:
    x, y = torch.ones(4, 8), torch.ones(8)
    with Counter() as counter:
        x.mul_(2.0)  # reads and writes 32
        x[1:].T.sum()  # a view, which is no work; reads 24, writes 1
        x + y.expand(4, 8)  # reads 32 and 8, writes 32
        x * x  # reads 32, writes 32
    assert (counter.operations, counter.numbers) == (4, 64 + 25 + 72 + 64)

    @jax.jit
    def twice(x: Any) -> Any:
        return jnp.sort(jnp.sort(x * 2 + 1) @ x) - 1  # two sorts, a product, and what is fused around these

    z = jnp.ones((64, 64))
    assert arrays_written(twice.lower(z).compile().as_text(), z.size) >= 4
    assert compiled(pg.NonNeg()) == {"arrays": 1, "passes": 2.0, "memory": 0.0}


def main() -> None:
    torch.set_num_threads(1)
    table = {path: rounded(count()) for path, count in PATHS.items()}
    lines = [f"  {json.dumps(path)}: {json.dumps(counts)}" for path, counts in table.items()]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(TABLE.read_text())


if __name__ == "__main__":
    main()
