"""Measuring callables against each other: interleaved, in one process, with medians, ratios and peak memory.

On a machine that does other things, times drift by more than the differences of interest. So all candidates of a
comparison run in turn, round after round, and a ratio is the median over the rounds of the ratio within a round.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from itertools import accumulate
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler would announce itself on every use

__all__ = [
    "Candidate",
    "Comparison",
    "Elapsed",
    "Result",
    "Timing",
    "environment",
    "floors",
    "goals",
    "load",
    "measure",
    "on_cores",
    "overview",
    "peak_memory",
    "save",
    "table",
]


class Elapsed(float):
    """The seconds that a call took, for one that measures itself, as in another process."""


@dataclass(frozen=True)
class Candidate:
    """Something to measure.

    Args:
        name: in tables.
        call: what is timed; it must have finished when it returns. What returns an `Elapsed` is taken at its word.
        restore: called before every call and not timed, so that every call finds the same work to do.
    """

    name: str
    call: Callable[[], object]
    restore: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Comparison:
    """Candidates that do the same job, and those among them that the others are compared with.

    Args:
        title: what the job is.
        candidates: all with the same job.
        references: names of candidates; every candidate gets its ratio to each.
        unit: bytes of the array that is worked on, in which peak memory is given.
        goals: names of candidates, with the multiple of their time that the first candidate should take at most.
    """

    title: str
    candidates: Sequence[Candidate]
    references: Sequence[str]
    unit: int
    goals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """One candidate's result: seconds per call (median, quartiles), ratios of times, and peak memory in units."""

    name: str
    median: float
    quartiles: tuple[float, float]
    ratios: dict[str, float]
    memory: float | None = None


@dataclass(frozen=True)
class Result:
    """What was measured in one comparison."""

    title: str
    threads: int
    rounds: int
    timings: tuple[Timing, ...]
    goals: tuple[tuple[str, float, float], ...] = ()  # against which candidate, the limit, and the ratio


def measure(
    comparison: Comparison,
    *,
    threads: int,
    rounds: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    memory: Callable[[Candidate], int | None] | None = None,
) -> Result:
    """Run all candidates in turn, `rounds` times, after `warmup` rounds that do not count.

    Args:
        comparison: what to measure.
        threads: stated in the result; setting them is up to the caller.
        rounds: how many calls of each are timed; every round starts with another candidate.
        warmup: how many rounds come first.
        clock: in seconds.
        memory: measures the peak extra bytes of one call, in a run of its own; None where it cannot.

    Raises:
        ValueError: a reference is no candidate, or there is nothing to measure.
    """
    candidates = list(comparison.candidates)
    names = [c.name for c in candidates]
    named = {*comparison.references, *comparison.goals}
    if rounds < 1 or not candidates or len(set(names)) < len(names) or not named <= set(names):
        raise ValueError(f"nothing to measure, or references and goals {sorted(named)} that are not among {names}")
    times: dict[str, list[float]] = {name: [] for name in names}
    for n in range(-warmup, rounds):
        turn = n % len(candidates)
        for candidate in candidates[turn:] + candidates[:turn]:
            candidate.restore()
            start = clock()
            made = candidate.call()
            elapsed = made if isinstance(made, Elapsed) else clock() - start
            if n >= 0:
                times[candidate.name].append(elapsed)
    timings = []
    for candidate in candidates:
        own = times[candidate.name]
        ratios = {r: _ratio(own, times[r]) for r in comparison.references}
        low, _, high = statistics.quantiles(own, n=4, method="inclusive") if len(own) > 1 else own * 3
        peak = None if memory is None else memory(candidate)
        share = None if peak is None else peak / comparison.unit
        timings.append(Timing(candidate.name, statistics.median(own), (low, high), ratios, share))
    first = times[names[0]]
    reached = tuple((name, limit, _ratio(first, times[name])) for name, limit in comparison.goals.items())
    return Result(comparison.title, threads, rounds, tuple(timings), reached)


def _ratio(over: Sequence[float], under: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Keep this process, with all of its threads and those of its children to come, on so many cores."""
    import torch

    before = torch.get_num_threads()
    try:
        _keep_on(sorted(_CORES)[:count])
        torch.set_num_threads(count)
        yield
    finally:
        _keep_on(_CORES)
        torch.set_num_threads(before)


def _keep_on(cores: Iterable[int]) -> None:
    for thread in Path("/proc/self/task").glob("*"):  # none where there is no such folder
        with suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(thread.name), cores)


_PACKAGES = ["projgrad", "numpy", "torch", "jax", "optax", "tensorflow-cpu", "keras"]
_PACKAGES += ["jaxopt", "scipy", "scikit-learn", "pyproximal", "geotorch", "chop-pytorch"]  # peers
_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}


def floors(x: Any) -> list[Candidate]:
    """What no method can beat on a torch tensor: a plain pass that reads it, and one that reads and writes it."""
    return [Candidate("floor: read (sum)", x.sum), Candidate("floor: read, write (mul_)", lambda: x.mul_(1.0))]


def peak_memory(candidate: Candidate) -> int | None:
    """The largest number of bytes that one call holds, at any moment, beyond what it started with (torch, on the CPU).

    Follows every allocation and release that torch reports to its profiler, so memory that is given back within the
    call counts too. None where torch does nothing: of other libraries it is not known.
    """
    from torch.profiler import ProfilerActivity, profile

    candidate.restore()
    candidate.call()  # what is made once and kept does not count
    candidate.restore()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        candidate.call()
    events = recorded.profiler.kineto_results.events()
    if not any(e.name().startswith("aten::") for e in events):
        return None
    changes = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return max(accumulate((e.nbytes() for e in changes), initial=0))


def table(result: Result) -> str:
    """A result as a Markdown table, with a row per candidate."""
    references = list(result.timings[0].ratios)
    rows = [["", "ms", *(f"/ {name}" for name in references), "peak memory"]]
    for t in result.timings:
        memory = "" if t.memory is None else f"{t.memory:.2f}"
        rows.append([t.name, f"{1e3 * t.median:.3g}", *(f"{t.ratios[name]:.2f}" for name in references), memory])
    return _markdown(rows)


def overview(results: Iterable[Result]) -> str:
    """Results as one Markdown table: the time of the first reference in ms, and the ratios of all others to it."""
    results = list(results)
    references = [next(iter(result.timings[0].ratios)) for result in results]
    first = references[0] if len(set(references)) == 1 else "first"
    others = dict.fromkeys(
        t.name for r, name in zip(results, references, strict=True) for t in r.timings if t.name != name
    )
    rows = [["", "threads", f"{first}, ms", *others]]
    for result, reference in zip(results, references, strict=True):
        timings = {t.name: t for t in result.timings}
        ratios = [f"{timings[n].ratios[reference]:.2f}" if n in timings else "" for n in others]
        rows.append([result.title, str(result.threads), f"{1e3 * timings[reference].median:.3g}", *ratios])
    return _markdown(rows)


def goals(results: Iterable[Result]) -> str:
    """What should be reached, and what is, as a Markdown table; empty where there are no goals."""
    rows = [["", "threads", "against", "goal", "reached", ""]]
    for result in results:
        for name, limit, ratio in result.goals:
            verdict = "yes" if ratio <= limit else "no"
            rows.append([result.title, str(result.threads), name, f"{limit:.3g}", f"{ratio:.3g}", verdict])
    return _markdown(rows) if len(rows) > 1 else ""


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in [rows[0], rule, *rows[1:]]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def environment() -> dict[str, Any]:
    """The machine and the versions."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
    }


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return ""


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def save(results: Sequence[Result], path: Path, about: dict[str, Any]) -> None:
    """Write results, with the machine and the versions `about`, as JSON.

    What the file has of other numbers of threads stays in it, if the machine, the versions and the commit are the same.
    """
    kept: list[Result] = []
    if path.exists():
        before, old = load(path)
        if before | {"date": None} == about | {"date": None}:
            kept = [r for r in old if r.threads not in {result.threads for result in results}]
    every = sorted([*kept, *results], key=lambda r: r.threads)
    path.write_text(json.dumps({"environment": about, "results": [asdict(r) for r in every]}, indent=1) + "\n")


def load(path: Path) -> tuple[dict[str, Any], list[Result]]:
    """What was saved: the machine and the versions, and the results."""
    saved = json.loads(path.read_text())
    results = []
    for entry in saved["results"]:
        timings = tuple(Timing(**t | {"quartiles": tuple(t["quartiles"])}) for t in entry["timings"])
        results.append(Result(**entry | {"timings": timings, "goals": tuple(map(tuple, entry["goals"]))}))
    return saved["environment"], results
