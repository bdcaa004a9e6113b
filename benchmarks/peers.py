"""Peers that need another Python, each in a process of its own that does the same work in turn with the others.

The environment variable FASTPROX_PYTHON names a Python that has fastprox (which needs Python 3.12) and NumPy:

    python3.12 -m venv peers && peers/bin/pip install fastprox
    FASTPROX_PYTHON=peers/bin/python python -m benchmarks
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import IO, cast

import numpy as np

from benchmarks.harness import Candidate, Elapsed

__all__ = ["fastprox"]

# reads lines "restore" and "call", answers each with the seconds that it took
_WORKER = """
import sys, time
import numpy as np
import fastprox
start = np.load(sys.argv[1])
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
    """A candidate that evaluates an expression of fastprox, np and the array x; none where there is no such Python."""
    python = os.environ.get("FASTPROX_PYTHON")
    if not python:
        return []
    path = Path(tempfile.mkdtemp()) / "x.npy"
    np.save(path, array)
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "FASTPROX_NUM_THREADS")}
    worker = subprocess.Popen(
        [python, "-c", _WORKER, str(path), expression],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **limits},
    )

    def ask(what: str) -> Elapsed:
        to, back = cast(IO[str], worker.stdin), cast(IO[str], worker.stdout)
        to.write(what + "\n")
        to.flush()
        answer = back.readline()
        if not answer:
            raise RuntimeError(f"fastprox could not do {expression}: see above")
        return Elapsed(answer)

    return [Candidate("fastprox", lambda: ask("call"), lambda: ask("restore"))]
