"""bfloat16 in files, which NumPy has not: what is inside, and what is projected, is as in a framework that has it."""

from __future__ import annotations

import numpy as np
import pytest

import projgrad as pg
from projgrad.files import open_weights, weights_file
from projgrad.files.bfloat16 import rounded, widened
from projgrad.saved import SavedWeights
from tests.cases import all_cases
from tests.test_portable import written
from tests.weights_files import header, run


def narrow(x):
    return rounded(np.asarray(x, "float32"))


def held(path, constraint, x):
    """The weights in a file of one array, under a constraint."""
    path.write_bytes(header(w=("BF16", narrow(x))))
    return SavedWeights.under("", open_weights(path), rules={"w": constraint})


def up(x):
    """The next number of bfloat16."""
    return widened(narrow(x) + np.uint16(1))


@pytest.mark.parametrize(
    ("constraint", "x", "y"),
    [
        (pg.Simplex(axis=0), [-0.002, 0.5, 0.5], [0.0, 0.5, 0.5]),
        (pg.Cardinality(1, axis=0), [1.0, 0.001, 0.0], [1.0, 0.0, 0.0]),
        (pg.SparseSimplex(1, axis=0), [1.0, 0.001, 0.0], [1.0, 0.0, 0.0]),
        (pg.Box(0.0, 1.0), [np.inf, 0.5], [1.0, 0.5]),
        (pg.Box(-1.984375, 1.984375), up([1.984375, -1.984375]), [1.984375, -1.984375]),
        (pg.UnitNorm(axis=0) & pg.Box(0.0, 0.6), [-0.002, 0.6, 0.6, 0.53], None),
    ],
)
def test_what_must_hold_exactly_does(tmp_path, capsys, constraint, x, y):
    found = held(tmp_path / "w.safetensors", constraint, x)
    assert found.outside(None)
    rules = written(tmp_path / "rules.json", [{"names": "w", "constraint": constraint.to_dict()}])
    assert run(capsys, "check", tmp_path / "w.safetensors", "--rules", rules)[0] == 1
    assert run(capsys, "project", tmp_path / "w.safetensors", tmp_path / "o.safetensors", "--rules", rules)[0] == 0
    new = open_weights(tmp_path / "o.safetensors").stored["w"].array
    if y is None:
        assert new.min() == 0
    else:
        np.testing.assert_array_equal(new, y)


def test_all_sets_are_as_in_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    import projgrad.torch  # noqa: F401

    compared = 0
    for case in (case for case in all_cases() if case.low):
        x = case.groups(0, case.shapes[0])
        found = held(tmp_path / "w.safetensors", case.constraint, x).projected()
        assert not found.outside(None), case
        again = held(tmp_path / "w.safetensors", case.constraint, found.changed["w"]).projected()
        np.testing.assert_array_equal(again.changed["w"], found.changed["w"])
        theirs = case.constraint.project(torch.tensor(widened(narrow(x))).bfloat16())
        for group in (*widened(narrow(x[-3:])), *theirs.float().numpy()[::4]):  # near the boundary, most of them
            ours = held(tmp_path / "w.safetensors", case.constraint, group[None])
            inside = case.constraint.contains(torch.tensor(group[None]).bfloat16())
            assert inside is not bool(ours.outside(None)), (case, group)
            compared += 1
    assert compared > 300


def test_an_array_is_widened_once_and_not_after_its_projection(tmp_path, capsys, monkeypatch):
    counted = []

    def counts(bits):
        counted.append(bits)
        return widened(bits)

    monkeypatch.setattr(weights_file, "widened", counts)
    found = held(tmp_path / "w.safetensors", pg.UnitNorm(axis=0), [1.0, 2.0]).projected()
    found.report()
    assert not found.outside(None)
    assert len(counted) == 1
