"""What a report says of the parameters: shares, distances and norms that are known by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import projgrad as pg
from projgrad.boundary import on_boundary
from projgrad.namespace import Namespace, native
from projgrad.report import make_report
from projgrad.rules import Parameter, Use, resolve
from tests.cases import Case, all_cases
from tests.frameworks import JAX, KERAS, NUMPY, STRICT, TENSORFLOW, TORCH, Framework

# -- the boundary -------------------------------------------------------------------------------------------------

# a constraint, groups that are on its boundary, and groups that are not
POINTS: list[tuple[Any, Any, Any]] = [
    (pg.NonNeg(), [0.0], [1e-2, 5.0]),
    (pg.Box(-1.0, 0.1), [-1.0, 0.1], [0.0, 0.099]),
    (pg.Box(-math.inf, 0.1), [0.1], [-1e6, 0.0]),
    (pg.Quantized([-1.0, 0.0, 1.0]), [-1.0, 0.0, 1.0], []),
    (pg.MaxNorm(2.0, axis=-1), [[2.0, 0.0], [-1.2, 1.6]], [[1.9, 0.0], [0.0, 0.0]]),
    (pg.MinMaxNorm(1.0, 2.0, axis=-1), [[1.0, 0.0], [-1.2, 1.6]], [[1.1, 0.0], [0.9, 0.9]]),
    (pg.UnitNorm(axis=-1), [[1.0, 0.0], [0.6, -0.8]], []),
    (pg.Simplex(), [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], [[0.2, 0.3, 0.5], [0.01, 0.01, 0.98]]),
    (pg.Simplex(1e4), [[5e3, 5e3, 0.0]], [[2e3, 3e3, 5e3]]),
    (pg.L1Ball(), [[0.5, -0.5, 0.0], [0.3, 0.3, 0.4]], [[0.5, -0.4, 0.0], [0.0, 0.0, 0.0]]),
    (pg.SumTo(1.0), [], [[0.5, -0.5, 1.0], [0.0, 0.0, 1.0]]),
    (pg.Mask([1.0, 0.0, 1.0]), [], [[0.0, 2.0, 0.0]]),
    (pg.Monotone(), [[1.0, 1.0, 3.0], [2.0, 2.0, 2.0]], [[1.0, 2.0, 3.0], [-2.0, 0.0, 0.1]]),
    (pg.Cardinality(1), [[0.0, 2.0, 0.0]], []),
    (pg.SpectralNorm(1.0), [[[1.0, 0.0], [0.0, 0.5]]], [[[0.9, 0.0], [0.0, 0.5]]]),
    (pg.Orthogonal(), [[[0.0, 1.0], [1.0, 0.0]]], []),
    (pg.Symmetric(), [], [[[1.0, 2.0], [2.0, 0.0]]]),
    (pg.PositiveSemidefinite(), [[[1.0, 1.0], [1.0, 1.0]]], [[[2.0, 1.0], [1.0, 2.0]]]),
    (pg.MaxNorm(1.0, axis=-1) & pg.NonNeg(), [[0.6, 0.8], [0.0, 0.5]], [[0.5, 0.5]]),
]


@pytest.mark.parametrize("framework", [NUMPY, STRICT, TORCH], ids=repr)
def test_what_is_on_the_boundary(framework: Framework) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    for constraint, *both in POINTS:
        for there, groups in zip((True, False), both, strict=True):
            if len(groups):
                x, xp = native(framework.make(np.asarray(groups), "float32"))
                found = np.asarray(on_boundary(constraint, x, xp))
                assert found.all() if there else not found.any(), f"{constraint}: {groups}"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_in_long_groups_too_and_not_where_there_is_nan(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = 0.5 + rng.random((4, 2000))
    x[1, 7] = 0.0
    x /= x.sum(1, keepdims=True)
    x[3, 5] = np.nan
    ball = x / np.linalg.norm(x, axis=1, keepdims=True) * np.array([[1.0], [0.99], [1.0], [1.0]])
    for constraint, groups, expected in (
        (pg.Simplex(axis=1), x, [False, True, False, False]),
        (pg.MaxNorm(1.0, axis=1), ball, [True, False, True, False]),
    ):
        array, xp = native(groups.astype(dtype))
        if dtype != "float16" or not isinstance(constraint, pg.Simplex):  # in which it is no sum of 1
            assert on_boundary(constraint, array, xp).ravel().tolist() == expected


@pytest.mark.parametrize("case", [case for case in all_cases() if case.convex], ids=repr)
def test_it_is_where_the_set_ends(case: Case) -> None:
    rng = np.random.default_rng(0)
    shape = case.shapes[0]
    size = max(float(np.abs(case.oracle(rng.standard_normal(shape))).max()), 1.0)
    points = [
        case.oracle(scale * size * rng.standard_normal(shape)) for scale in (0.01, 0.1, 0.3, 1, 3) for _ in "1234"
    ]
    middle = np.mean(points, axis=0)
    far = case.oracle(10 * size * rng.standard_normal(shape))
    ends = case.distance(far + 0.01 * (far - middle)) > 1e-4 * size
    x, xp = native(np.stack([far, 0.9 * far + 0.1 * middle]).astype(np.float32))
    axes = tuple(range(1, x.ndim))
    found = on_boundary(case.constraint, case.constraint.project(x), xp)
    if case.constraint.group_axes(x.ndim):
        assert found.ravel().tolist() == [ends, False]
    else:
        assert found.any(axis=axes).tolist() == [ends, False]


# -- rows ---------------------------------------------------------------------------------------------------------

VALUES = {
    "layers.0.weight": np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 5.0], [6.0, 8.0]]),
    "layers.0.bias": np.array([0.0, 2.0, 0.0, -1.0]),
    "q_and_k": np.array([[1.0, 0.0], [0.0, 0.5], [7.0, 7.0], [7.0, 7.0]]),
    "a": np.array([[1.5], [0.0]]),
    "b": np.array([2.0, 1.0]),
    "forgotten": np.array([[1.0, np.inf]]),
}
RULES: dict[str, Any] = {
    "layers.0.weight": pg.MaxNorm(5.0, axis=1),
    "layers.0.bias": pg.NonNeg().every(10),
    "q_and_k": pg.Slices([pg.UnitNorm(axis=1), None]),
    "[ab]": pg.Joint(pg.MaxNorm(2.5, axis=1)),
}
TABLE = """\
parameter        shape   groups  on boundary  violation  before  moved  norms                  constraint
layers.0.weight  (4, 2)       4         75 %          5     0.5   0.25  0.5 to 10              MaxNorm(max_value=5.0, axis=1)
layers.0.bias    (4,)         4         75 %          1                 0 to 2                 Tag(NonNeg(), every=10)
q_and_k          (4, 2)       2        100 %        0.5                 0.5 to 1               Slices({(0, 2): UnitNorm(axis=1), (2, 4): None}, along=0)
a + b            (2, 2)       2         50 %          0                 1 to 2.5               Joint(MaxNorm(max_value=2.5, axis=1))
forgotten        (1, 2)                                                 nan        NOT FINITE  -"""  # noqa: E501


def report_of(framework: Framework) -> pg.Report:
    arrays = {name: framework.make(value, "float32") for name, value in VALUES.items()}
    known = [Parameter((Use(name, "no layer"),), x.shape, "float32", handle=name) for name, x in VALUES.items()]
    entries = {entry.names[0]: entry for entry in resolve(RULES, known)}
    held = [(entries.get(name, name), [arrays["a"], arrays["b"]] if name == "a" else [arrays[name]]) for name in VALUES]
    recorded = {"layers.0.weight": (framework.make(np.array(0.5), "float32"), 0.25)}
    return make_report([pair for pair in held if pair[0] != "b"], recorded=recorded)


@pytest.mark.parametrize("framework", [NUMPY, STRICT, TORCH, JAX, TENSORFLOW, KERAS], ids=repr)
def test_rows(framework: Framework) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    report = report_of(framework)
    assert str(report) == TABLE
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["layers.0.weight"] == {
        "shape": [4, 2],
        "constraint": "MaxNorm(max_value=5.0, axis=1)",
        "groups": 4,
        "on_boundary": 0.75,
        "violation": pytest.approx(5.0),
        "before": 0.5,
        "moved": 0.25,
        "norms": [pytest.approx(0.5), pytest.approx(10.0)],
        "finite": True,
    }
    assert plain["forgotten"]["norms"] == ["nan", "nan"]
    scalars = report.scalars()
    assert {name: scalars[name] for name in scalars if name.startswith("layers.0.bias")} == {
        "layers.0.bias/on_boundary": 0.75,
        "layers.0.bias/violation": 1.0,
        "layers.0.bias/norm_min": 0.0,
        "layers.0.bias/norm_max": 2.0,
        "layers.0.bias/finite": 1.0,
    }
    assert scalars["forgotten/finite"] == 0.0
    assert all(type(value) is float for value in scalars.values())


def test_a_schedule_empty_arrays_and_other_numbers() -> None:
    ball = pg.MaxNorm(pg.Schedule({0: 1.0, 10: 2.0}), axis=1)
    (entry,) = resolve({"x": ball}, [Parameter((Use("x", ""),), (2, 2), "float32")])
    x = np.array([[1.5, 0.0], [0.5, 0.0]], np.float32)
    assert [make_report([(entry, [x])], step=step)[0].on_boundary for step in (0, 5, 10)] == [0.5, 0.5, 0.0]
    with pytest.raises(ValueError, match="say which one"):
        make_report([(entry, [x])])
    (entry,) = resolve({"x": pg.MaxNorm(axis=1)}, [Parameter((Use("x", ""),), (0, 2), "float32")])
    empty, integers = make_report([(entry, [np.zeros((0, 2), np.float32)]), ("count", [np.array([3, 4])])])
    assert (empty.groups, empty.on_boundary, empty.violation, empty.norms) == (0, 0.0, 0.0, (0.0, 0.0))
    assert integers.norms == (5.0, 5.0)
    nested = pg.Slices({(0, 2): pg.Slices([pg.MaxNorm(1.0, axis=1), None]), (2, 3): pg.NonNeg()})
    (entry,) = resolve({"x": nested}, [Parameter((Use("x", ""),), (4, 2), "float32")])
    x = np.array([[3.0, 4.0], [9.0, 9.0], [0.0, -1.0], [9.0, 9.0]], np.float32)
    (row,) = make_report([(entry, [x])])
    assert (row.groups, row.on_boundary, row.violation, row.norms) == (3, 1.0, 4.0, (0.0, 5.0))
    assert str(make_report([])) == "Report: there is no parameter"


def test_numbers_come_to_the_host_together(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def host(xp: Any, x: Any) -> np.ndarray:
        calls.append(x.shape)
        return np.asarray(x)

    monkeypatch.setattr(Namespace, "host", host)
    report_of(NUMPY)
    assert calls == [(5 * 4 + 3 + 1,)]  # one of the two that were recorded is a number already


def test_a_picture_of_the_training(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = report_of(NUMPY)
    figure = pg.plot_reports([(3, report), (1, report), (2, report)], tmp_path / "reports.png")
    assert (tmp_path / "reports.png").read_bytes().startswith(b"\x89PNG")
    shown = {ax.get_title(loc="left"): ax.get_lines() for ax in figure.axes}
    before, _, share, _ = shown.values()
    assert [title.split()[0] for title in shown] == ["largest", "distance", "share", "norms"]
    assert list(before[0].get_xdata()) == [1, 2, 3]
    assert list(before[0].get_ydata()) == [0.5] * 3
    assert [line.get_label() for line in share] == ["layers.0.weight", "layers.0.bias", "q_and_k", "a + b"]
    assert [float(np.asarray(line.get_ydata())[0]) for line in share] == [0.75, 0.75, 1.0, 0.5]
    bare = report_of(NUMPY)[0]
    seen = [
        (0, pg.Report([replace(bare, before=None, moved=None)])),
        (1, pg.Report([replace(bare, before=None, moved=None, finite=False)])),
    ]
    figure = pg.plot_reports(seen)
    shown = {ax.get_title(loc="left"): ax.get_lines() for ax in figure.axes}
    assert [title.split()[0] for title in shown] == ["largest", "share", "norms"]
    (line,) = shown["share of groups on the boundary"]
    np.testing.assert_array_equal(np.asarray(line.get_ydata()), [0.75, np.nan])  # a gap rather than 0
    assert line.get_label() == "layers.0.weight (NOT FINITE)"
    with pytest.raises(ValueError, match="a parameter that is constrained"):
        pg.plot_reports([(0, make_report([("free", [np.ones(3)])]))])
