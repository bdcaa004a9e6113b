"""Peers that need another Python, each in a process of its own that does the same work in turn with the others.

The environment variable FASTPROX_PYTHON names a Python that has fastprox (which needs Python 3.12) and NumPy:

    python3.12 -m venv peers && peers/bin/pip install fastprox
    FASTPROX_PYTHON=peers/bin/python python -m benchmarks
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from types import ModuleType
from typing import IO, Any, cast

import numpy as np

from benchmarks.harness import Candidate, Elapsed

__all__ = ["ask", "chop", "fastprox"]

# reads lines "restore" and "call", answers each with the seconds that it took
_WORKER = """
import os, sys, time
import numpy as np
import fastprox
start = np.load(sys.argv[1])
os.unlink(sys.argv[1])
x = start.copy()
f = eval("lambda fastprox, np, x: " + sys.argv[2])
for line in sys.stdin:
    begin = time.perf_counter()
    if line.strip() == "restore":
        x[...] = start
    else:
        f(fastprox, np, x)
    print(time.perf_counter() - begin, flush=True)
"""


def fastprox(array: np.ndarray, expression: str, threads: int = 1) -> list[Candidate]:
    """A candidate that evaluates an expression of fastprox, np and the array x; none where there is no such Python.

    In the expression, ``{threads}`` is their number.
    """
    python = os.environ.get("FASTPROX_PYTHON")
    if not python:
        return []
    expression = expression.replace("{threads}", str(threads))
    with tempfile.NamedTemporaryFile(suffix=".npy", delete=False) as file:
        np.save(file, array)
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "FASTPROX_NUM_THREADS")}
    worker = subprocess.Popen(
        [python, "-c", _WORKER, file.name, expression],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **limits},
    )

    def timed(what: str) -> Elapsed:
        return Elapsed(ask(worker, what, f"fastprox could not do {expression}"))

    return [Candidate("fastprox", lambda: timed("call"), lambda: timed("restore"))]


def ask(worker: subprocess.Popen[str], line: str, failure: str) -> str:
    """What a process that answers lines says to this one.

    Raises:
        RuntimeError: it has ended.
    """
    to, back = cast(IO[str], worker.stdin), cast(IO[str], worker.stdout)
    to.write(line + "\n")
    to.flush()
    answer = back.readline()
    if not answer:
        raise RuntimeError(f"{failure}: see above")
    return answer


def chop() -> Any:
    """chop's constraints, None where it is not installed; it imports torchvision, of which these need nothing."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms"):
        sys.modules.setdefault(name, ModuleType(name))
    try:
        import chop.constraints
    except ImportError:
        return None
    return chop.constraints
