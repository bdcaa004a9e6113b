"""Kernels of morphological layers."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

import projgrad as pg
from projgrad import morphology
from tests.frameworks import FRAMEWORKS, Framework, same

DISK = {  # of square kernels, as they are drawn in textbooks
    1: ["#"],
    3: [".#.", "###", ".#."],
    5: ["..#..", ".###.", "#####", ".###.", "..#.."],
    7: ["...#...", ".#####.", ".#####.", "#######", ".#####.", ".#####.", "...#..."],
}
DIAMOND = {
    1: ["#"],
    3: [".#.", "###", ".#."],
    5: ["..#..", ".###.", "#####", ".###.", "..#.."],
    7: ["...#...", "..###..", ".#####.", "#######", ".#####.", "..###..", "...#..."],
    4: ["..#.", ".###", "####", ".###"],  # the last row and column of the one of 5 are missing
}


def drawn(rows: list[str]) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


def kernel(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape) * 1.5


def test_the_presets_are_boxes(framework: Framework, dtype: str) -> None:
    x = framework.make(kernel(0, 3, 3, 2, 4), dtype)
    for made, lower, upper in (
        (morphology.non_positive(), -1, 0),
        (morphology.non_positive(-0.5), -0.5, 0),
        (morphology.zero_to_one(), 0, 1),
        (morphology.lattice(), -1, 1),
        (morphology.lattice(2.0), -2, 2),
    ):
        assert made == pg.Box(lower, upper)
        np.testing.assert_array_equal(
            framework.read(framework.project(made, x)), np.clip(framework.read(x), lower, upper)
        )


@pytest.mark.parametrize("size", [(3, 3), (5, 5), (1, 1), (4, 4), (2, 3), (1, 4)])
def test_extensive_kernels(framework: Framework, dtype: str, size: tuple[int, int]) -> None:
    values = kernel(1, *size, 2, 3)
    values[0, 0, 0, 0] = math.nan
    x = framework.make(values, dtype)
    expected = np.clip(framework.read(x), -1, 0)
    expected[size[0] // 2, size[1] // 2] = np.where(np.isnan(expected[size[0] // 2, size[1] // 2]), math.nan, 0)
    found = framework.project(pg.Extensive(), x)
    np.testing.assert_array_equal(framework.read(found), expected)
    assert same(framework.read(framework.project(pg.Extensive(), found)), framework.read(found))
    # the same of a kernel with the channels first
    moved = framework.make(np.transpose(values, (3, 2, 0, 1)), dtype)
    for spatial in ((2, 3), (-2, -1)):
        found = framework.project(pg.Extensive(spatial=spatial), moved)
        np.testing.assert_array_equal(framework.read(found), np.transpose(expected, (3, 2, 0, 1)))


def test_dilations_by_extensive_kernels_are_extensive() -> None:
    weights = pg.Extensive(-0.3, spatial=(0, 1))(kernel(2, 3, 3, 1, 1))[:, :, 0, 0]
    image = np.random.default_rng(3).random((8, 8))
    padded = np.pad(image, 1, constant_values=-np.inf)
    dilated = np.max([padded[i : i + 8, j : j + 8] + weights[i, j] for i in range(3) for j in range(3)], axis=0)
    assert (dilated >= image).all()


@pytest.mark.parametrize(("shape", "size"), [("disk", n) for n in DISK] + [("diamond", n) for n in DIAMOND])
def test_disks_and_diamonds(framework: Framework, dtype: str, shape: str, size: int) -> None:
    inside = drawn({"disk": DISK, "diamond": DIAMOND}[shape][size])[:, :, None, None]
    x = framework.make(kernel(4, size, size, 2, 3), dtype)
    for constraint, expected in (
        (pg.StructuringElement(shape), np.where(inside, np.clip(framework.read(x), -1, 1), -1)),
        (pg.StructuringElement(shape, -4.0, -math.inf, 0.0), np.where(inside, np.minimum(framework.read(x), 0), -4)),
        (pg.StructuringElement(inside[:, :, 0, 0], 0.0, -9, 9), np.where(inside, framework.read(x), 0)),
    ):
        y = framework.project(constraint, x)
        np.testing.assert_array_equal(framework.read(y), expected)
        # where adding to the entries outside and clipping, as morpholayers do, moves them again at every step
        assert same(framework.read(framework.project(constraint, y)), framework.read(y))
        assert constraint.contains(y)
        np.testing.assert_allclose(
            framework.read(constraint.violation(x)), np.abs(framework.read(x) - expected), rtol=1e-6, atol=1e-7
        )


def test_elements_of_other_sizes() -> None:
    x = np.zeros((3, 7, 1, 1))
    ellipse = pg.StructuringElement("disk", value=-1.0)(x)[:, :, 0, 0] == 0
    np.testing.assert_array_equal(ellipse, drawn(["...#...", "#######", "...#..."]))
    ball = pg.StructuringElement("disk", spatial=(0, 1, 2))(np.zeros((3, 3, 3))) == 0
    assert ball.sum() == 7
    line = pg.StructuringElement("diamond", spatial=0)(np.zeros((5, 2))) == 0
    assert line.all()


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f.gradient and f.compile], ids=repr)
@pytest.mark.parametrize("constraint", [pg.Extensive(), pg.StructuringElement("diamond")], ids=repr)
def test_derivatives_and_compiled_code(framework: Framework, constraint: pg.Constraint) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    assert framework.gradient is not None
    assert framework.compile is not None
    values = kernel(5, 3, 3, 2)
    values[1, 1] = 0.0
    values[0, 0] = -1.0
    held = np.zeros((3, 3, 1), bool)
    held[(1, 1) if isinstance(constraint, pg.Extensive) else ([0, 0, 2, 2], [0, 2, 0, 2])] = True
    free = ~held & (values >= -1) & (values <= (0 if isinstance(constraint, pg.Extensive) else 1))
    with framework.scope():
        x, w = framework.make(values, "float64"), framework.make(np.full((3, 3, 2), 2.0), "float64")
        np.testing.assert_array_equal(framework.read(framework.gradient(constraint.project, x, w)), 2 * free)
        compiled = framework.read(framework.compile(constraint.project)(x))
        assert same(compiled, framework.read(constraint.project(x)))


@pytest.mark.parametrize(
    "constraint",
    [
        pg.Extensive(),
        pg.Extensive(-math.inf, spatial=[2, 3], rate=0.5),
        pg.StructuringElement(),
        pg.StructuringElement("diamond", -3.0, -math.inf, math.inf, spatial=(-2, -1)),
        pg.StructuringElement([[0, 1], [1, 1]]),
    ],
    ids=repr,
)
def test_shown_saved_and_compared(constraint: pg.Constraint) -> None:
    twins = pg.from_dict(json.loads(json.dumps(constraint.to_dict()))), eval(repr(constraint), vars(pg))
    for twin in twins:
        assert twin == constraint
        assert hash(twin) == hash(constraint)
    assert constraint.bind((2, 2, 2, 2), "none") == constraint
    assert morphology.increasing is pg.Extensive


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: pg.Extensive(0.5), "lower"),
        (lambda: pg.Extensive(math.nan), "lower"),
        (lambda: pg.Extensive(spatial="hw"), "not known"),
        (lambda: pg.Extensive(spatial=(0, 0)), "twice"),
        (lambda: pg.Extensive().project(np.ones(3)), "axis 1 does not exist"),
        (lambda: pg.Extensive(spatial=(2, 3)).bind((3, 3), "none"), "axis 2 does not exist"),
        (lambda: pg.Extensive(rate=0), "rate"),
        (lambda: morphology.non_positive(0.5), "exceed"),
        (lambda: morphology.lattice(-1.0), "exceed"),
        (lambda: pg.StructuringElement("square"), "square"),
        (lambda: pg.StructuringElement(value=math.inf), "finite"),
        (lambda: pg.StructuringElement(lower=1.0, upper=0.0), "exceed"),
        (lambda: pg.StructuringElement(lower=math.nan), "lower"),
        (lambda: pg.StructuringElement([[1, 0]]).project(np.ones((3, 3))), "the kernel is"),
        (lambda: pg.StructuringElement(True).project(np.ones((3, 3))), "single number"),
        (lambda: pg.StructuringElement(spatial=(0, 4)).project(np.ones((3, 3))), "axis 4"),
    ],
)
def test_what_cannot_be_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        wrong()
