"""The harness computes what it says, the benchmarks run, and projecting in place needs no memory to speak of."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import projgrad as pg
from benchmarks import convergence, root_steps
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.harness import (
    Candidate,
    Comparison,
    Elapsed,
    Result,
    Timing,
    goals,
    load,
    measure,
    overview,
    peak_memory,
    save,
    table,
)
from projgrad.torch import project_

QUICK = ("max_norm", "metric")  # the others take longer
DIFFERENCES = ("gpt2_step", "small_tensors")  # whose first time is that of a step less that of another


class FakeClock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, seconds: list[float], log: list[str]) -> Candidate:
        left = iter(seconds)

        def call() -> None:
            log.append(name)
            self.now += next(left)

        def restore() -> None:
            log.append("restore")
            self.now += 1000

        return Candidate(name, call, restore)


def test_goals_compare_the_first_candidate_with_the_others():
    clock = FakeClock()
    first, second = (clock.candidate(name, [seconds] * 3, []) for name, seconds in (("a", 3), ("b", 2)))
    third = Candidate("c", lambda: Elapsed(30.0))  # measures itself
    wanted = {"b": 1.5, "c": 0.05}
    result = measure(
        Comparison("t", [first, second, third], ["a"], 1, wanted), threads=1, rounds=2, warmup=1, clock=clock
    )
    assert result.goals == (("b", 1.5, 1.5), ("c", 0.05, 0.1))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in goals([result]).splitlines()[2:]]
    assert lines == [["t", "1", "b", "1.5", "1.5", "yes"], ["t", "1", "c", "0.05", "0.1", "no"]]
    other = measure(
        Comparison("u", [clock.candidate("a", [1, 1], [])], ["a"], 1), threads=1, rounds=1, warmup=1, clock=clock
    )
    assert goals([other]) == ""
    rows = overview([result, other]).splitlines()[2:]
    assert [row.split("|")[4:-1] for row in rows] == [[" 0.67 ", " 10.00 "], ["      ", "       "]]
    with pytest.raises(ValueError, match="d"):
        measure(Comparison("t", [third], ["c"], 1, {"d": 1.0}), threads=1, rounds=1, clock=clock)


def test_medians_and_ratios():
    clock = FakeClock()
    log: list[str] = []
    # the first call is the warm-up
    a = clock.candidate("a", [500, 1, 2, 9], log)
    b = clock.candidate("b", [500, 4, 4, 9], log)
    result = measure(Comparison("t", [a, b], ["a"], 1), threads=1, rounds=3, warmup=1, clock=clock)
    first, second = result.timings
    assert (first.median, second.median) == (2, 4)
    assert second.quartiles == (4, 6.5)
    assert first.ratios == {"a": 1}
    assert second.ratios == {"a": 2}  # the median of 4, 2 and 1; the ratio of the slow round counts for one
    assert log[::2] == ["restore"] * 8
    assert log[1::2] == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert "2.00" in table(result)
    assert overview([result]).splitlines()[-1].split("|")[1:-1] == [" t ", "       1 ", " 2e+03 ", " 2.00 "]


def test_results_of_other_numbers_of_threads_are_kept(tmp_path):
    here, path = {"cores": 2, "date": "2026-01-01"}, tmp_path / "b.json"
    one, two, three = (
        Result("t", n, 1, (Timing("a", 1.0 * n, (1.0, 1.0), {"a": 1.0}),), (("a", 2, 1.0),)) for n in (1, 2, 3)
    )
    save([two], path, here)
    save([one], path, here | {"date": "2026-01-02"})
    assert load(path) == (here | {"date": "2026-01-02"}, [one, two])
    again = replace(two, rounds=5)
    save([again, three], path, here)
    assert load(path) == (here, [one, again, three])
    save([three], path, here | {"cores": 4})  # another machine
    assert load(path) == (here | {"cores": 4}, [three])


@pytest.mark.parametrize(("references", "rounds"), [(["other"], 1), (["a"], 0)])
def test_nothing_to_measure(references, rounds):
    comparison = Comparison("t", [Candidate("a", lambda: None)], references, 1)
    with pytest.raises(ValueError, match="nothing to measure"):
        measure(comparison, threads=1, rounds=rounds)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BENCHMARKS]
)
def test_a_benchmark_runs(name, tmp_path, capsys):
    main([name, "--quick", "--threads", "1", "--rounds", "2", "--out", str(tmp_path)])
    saved = json.loads((tmp_path / f"{name}.json").read_text())
    assert saved["environment"]["versions"]["torch"]
    assert saved["results"]
    shown = capsys.readouterr().out
    page = (tmp_path / "README.md").read_text()
    for result in saved["results"]:
        assert f"{result['title']}; threads: 1; median of 2\n" in shown
        assert f"| {result['title']} " in page
        assert result["threads"] == 1
        differ = result["timings"][0] if name in DIFFERENCES else None
        assert all(t["median"] > 0 or t is differ for t in result["timings"])
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_and_the_plot_of_all_optimizers(tmp_path, capsys):
    pytest.importorskip("sklearn")
    threads = torch.get_num_threads()
    try:
        convergence.main(["--quick", "--problems", "box", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    ((problem, gaps),) = json.loads((tmp_path / "convergence.json").read_text())["gaps"].items()
    assert list(gaps) == list(convergence.OPTIMIZERS)
    assert f"| {problem} | " in capsys.readouterr().out
    assert (tmp_path / "convergence.png").read_bytes().startswith(b"\x89PNG")


def test_the_root_starts_near_without_the_last_one():
    pytest.importorskip("sklearn")
    last, found = root_steps.training(quick=True)
    steps = {name: np.concatenate(each) for name, each in found.items()}
    assert len(steps["projgrad, own start"]) > 500  # rows
    assert steps["projgrad, own start"].mean() < steps["Newton, last root"].mean() < steps["Newton, own start"].mean()
    assert steps["projgrad, own start"].max() <= 8
    for name, roots in root_steps.METHODS.items():
        assert steps[name].max() < root_steps.MOST  # all found, and the same ones
        root = next(islice(roots(last), root_steps.MOST, None))
        y = last.v * last.h / (last.h - last.least + root)
        np.testing.assert_allclose(np.where(last.outside, y, last.v), last.nearest, atol=2e-6)


IN_PLACE = [
    pg.MaxNorm(1.0, axis=1),
    pg.MaxNorm(1.0, axis=0),
    pg.MaxNorm(1.0, axis=None),
    pg.MaxNorm(1.0, axis=1, rate=0.5),
    pg.UnitNorm(axis=1),
    pg.UnitNorm(axis=0),
    pg.MinMaxNorm(40.0, 50.0, axis=1),
    pg.NonNeg(),
    pg.NonNeg(rate=0.5),
    pg.NonPos(),
    pg.Box(-0.1, 0.1),
    pg.Box(-0.1, math.inf),
    pg.from_dict({"type": "Box", "lower": [[0.1]], "upper": [[0.2]]}),
]


def _peaks(constraint, function, shape=(4096, 1024), dtype=torch.float32) -> float:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    w = start.clone()
    peak = peak_memory(Candidate("", lambda: function(w, constraint), lambda: w.copy_(start)))
    assert constraint.contains(start) is False
    return peak / start.nbytes


@pytest.mark.parametrize("constraint", IN_PLACE, ids=repr)
def test_no_parameter_sized_array_in_place(constraint):
    assert _peaks(constraint, project_) < 0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(100, 100), (256, 256), (2, 4000)])
@pytest.mark.parametrize("axis", [0, 1])
def test_no_parameter_sized_array_where_the_parameter_is_small(dtype, shape, axis):
    if shape[axis] > 2:  # with groups of two, the few numbers per group are as many as the entries
        assert _peaks(pg.MaxNorm(1.0, axis=axis), project_, shape, dtype) < 0.7


@pytest.mark.parametrize("constraint", [pg.MaxNorm(1.0, axis=1), pg.NonNeg()], ids=repr)
def test_the_memory_check_sees_the_functional_form(constraint):
    assert _peaks(constraint, lambda w, c: c.project(w)) > 0.99
    # also where the temporary does not outlive the call
    assert _peaks(constraint, lambda w, c: w.copy_(c.project(w))) > 0.99
