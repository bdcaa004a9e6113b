"""Presets select in every framework what their papers say, along the axes that these mean."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import projgrad as pg
from projgrad import presets
from projgrad.tag import as_tag
from tests.preset_models import LAYOUTS, Layout


@pytest.fixture(params=LAYOUTS, ids=repr)
def at(request: pytest.FixtureRequest) -> Layout:
    for needed in request.param.needs:
        pytest.importorskip(needed)
    return request.param


def check(at: Layout, model: Any, rules: Any, expected: dict[str, Any]) -> dict[str, np.ndarray]:
    """The parameters after a projection, if the wrapper of the framework makes the expected plan of the rules."""
    before = {name: x.copy() for name, x in at.projected(model, {"*": pg.Box(-99, 99)}).items()}  # as they are
    assert {e.name: e.tag for e in at.plan(model, rules)} == {name: as_tag(tag) for name, tag in expected.items()}
    after = at.projected(model, rules)
    assert all(np.array_equal(before[name], after[name]) != (name in expected) for name in before)
    return after


def norms(x: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    return np.sqrt((x.astype("float64") ** 2).sum(axis))


ATTENTION = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), ("dense", 8, 8))
TRANSFORMER = {"embed": ("embed", 11, 8), **ATTENTION, "up": ("dense", 8, 32), "down": ("dense", 32, 8)}
READERS = ("q_proj", "k_proj", "v_proj", "up", "lm_head")


def test_ngpt_normalises_along_the_embedding_dimension(at: Layout) -> None:
    model = at.model(**TRANSFORMER, lm_head=("dense", 8, 11))
    embed, writers = at.names("embed", leaf=at.embedding), at.names("o_proj", "down")
    expected = dict.fromkeys(at.names(*READERS), pg.UnitNorm(axis=at.into))
    expected |= dict.fromkeys(writers, pg.UnitNorm(axis=at.out_of)) | dict.fromkeys(embed, pg.UnitNorm(axis=1))
    after = check(at, model, presets.ngpt(model), expected)
    for name, size in (("up", 32), ("down", 32), ("lm_head", 11)):  # as many vectors of 8 entries
        (weight,) = (after[full] for full in at.names(name))
        assert weight.size == 8 * size
        np.testing.assert_allclose(norms(weight, weight.shape.index(8)), np.ones(size), rtol=1e-6)
    np.testing.assert_allclose(norms(after[embed[0]], 1), np.ones(11), rtol=1e-6)
    np.testing.assert_allclose(norms(after[writers[0]], at.out_of), np.ones(8), rtol=1e-6)


def test_ngpt_asks_where_a_square_matrix_may_be_either(at: Layout) -> None:
    model = at.model(embed=("embed", 11, 8), mix=("dense", 8, 8))
    (mix,) = at.names("mix")
    for given, axis in (({"readers": "mix"}, at.into), ({"writers": ["*mix*"]}, at.out_of)):
        assert presets.ngpt(model, **given)[mix] == pg.UnitNorm(axis=axis)
    with pytest.raises(
        ValueError, match=rf"presets\.ngpt: {mix}, of shape \(8, 8\): both .* 8: .*readers= or in .*but="
    ):
        presets.ngpt(model)
    with pytest.raises(ValueError, match="0 of its axes have the size 7"):
        presets.ngpt(model, 7)
    model = at.model(up=("dense", 8, 32))
    with pytest.raises(ValueError, match=r"the widths \[\]: say which, width="):
        presets.ngpt(model)
    assert presets.ngpt(model, 8) == {at.names("up")[0]: pg.UnitNorm(axis=at.into)}


NET = {"conv": ("conv", 4, 6, 1), "conv_1": ("conv", 6, 6, 2), "head": ("dense", 5, 7), "table": ("embed", 9, 3)}


def expected_units(at: Layout, make: Any) -> dict[str, Any]:
    convs, heads = at.names("conv", "conv_1"), at.names("head")
    return {**dict.fromkeys(convs, make(at.conv)), **dict.fromkeys(heads, make(at.into))}


def test_edm2_normalises_the_weights_of_every_unit(at: Layout) -> None:
    model = at.model(**NET)
    after = check(at, model, presets.edm2(model), expected_units(at, lambda axes: pg.UnitNorm(axis=axes)))
    for name in at.names("conv", "conv_1"):
        np.testing.assert_allclose(norms(after[name], at.conv), np.ones(6), rtol=1e-6)
    np.testing.assert_allclose(norms(after[at.names("head")[0]], at.into), np.ones(7), rtol=1e-6)


def test_edm2_keeps_the_variance_of_weights_that_are_divided_in_use(at: Layout) -> None:
    model = at.model(**NET)
    after = at.projected(model, presets.edm2(model, variance=True))
    for name, axes, n in zip(at.names("conv", "conv_1", "head"), (at.conv, at.conv, at.into), (12, 9, 5), strict=True):
        np.testing.assert_allclose((after[name].astype("float64") ** 2).mean(axes), 1.0, rtol=1e-6)
        np.testing.assert_allclose(norms(after[name], axes), math.sqrt(n), rtol=1e-6)


def test_maxnorm_dropout_bounds_what_feeds_a_unit(at: Layout) -> None:
    model = at.model(**NET)
    after = check(at, model, presets.maxnorm_dropout(model, 0.3), expected_units(at, lambda a: pg.MaxNorm(0.3, axis=a)))
    for name in at.names("conv", "conv_1"):
        np.testing.assert_allclose(norms(after[name], at.conv), np.full(6, 0.3), rtol=1e-6)
    assert set(presets.maxnorm_dropout(model).values()) == {pg.MaxNorm(3.0, axis=a) for a in (at.conv, at.into)}


def test_sae_has_dictionary_vectors_of_norm_1_and_tangent_gradients(at: Layout) -> None:
    model = at.model(encoder=("dense", 4, 10), decoder=("dense", 10, 4))
    (name,) = at.names("decoder")
    expected = {name: pg.Tag(pg.UnitNorm(axis=at.out_of), tangent="gradient")}
    after = check(at, model, presets.sae(model), expected)
    np.testing.assert_allclose(norms(after[name], at.out_of), np.ones(10), rtol=1e-6)  # one per feature
    assert presets.sae(model, tangent=None) == {name: pg.UnitNorm(axis=at.out_of)}


def test_wgan_clips_every_parameter(at: Layout) -> None:
    model = at.model(conv=("conv", 4, 6, 1), head=("dense", 5, 7))
    names = at.names("conv", "head") + at.names("conv", "head", leaf="bias")
    rules = presets.wgan(model)
    assert {e.name: e.constraint for e in at.plan(model, rules)} == dict.fromkeys(names, pg.Box(-0.01, 0.01))
    after = at.projected(model, rules)
    assert sorted(after) == sorted(names)
    assert all(abs(x).max() <= np.float32(0.01) for x in after.values())
    assert presets.wgan(model, 0.1, but={"*head*": None})[names[0]] == pg.Box(-0.1, 0.1)


def test_icnn_has_hidden_weights_that_are_not_negative(at: Layout) -> None:
    widths = {"W_y0": ("dense", 3, 5), "W_z1": ("dense", 5, 5), "W_y1": ("dense", 3, 5), "W_z2": ("dense", 5, 1)}
    model = at.model(**widths, W_y2=("dense", 3, 1))
    after = check(at, model, presets.icnn(model), dict.fromkeys(at.names("W_z1", "W_z2"), pg.NonNeg()))
    assert after[at.names("W_z1")[0]].min() == 0
    last = at.model(**widths, out=("dense", 5, 1))
    with pytest.raises(ValueError, match=rf"icnn: {at.names('out')[0]}.* neither of hidden= and through= name it"):
        presets.icnn(last)
    assert sorted(presets.icnn(last, hidden=["W_z*", "out"])) == sorted(at.names("W_z1", "W_z2", "out"))
    with pytest.raises(ValueError, match="both of hidden= and through="):
        presets.icnn(model, hidden="W_*")


def test_monotone_has_no_negative_weight(at: Layout) -> None:
    model = at.model(conv=("conv", 4, 6, 1), head=("dense", 5, 7), table=("embed", 9, 3))
    after = check(at, model, presets.monotone(model), dict.fromkeys(at.names("conv", "head"), pg.NonNeg()))
    assert min(after[name].min() for name in at.names("conv", "head")) == 0


def test_monotone_in_some_inputs_only(at: Layout) -> None:
    model = at.model(first=("dense", 3, 6), out=("dense", 6, 1))
    first, out = at.names("first", "out")
    rules = presets.monotone(model, increasing=[0], decreasing=[2], first="first")
    assert rules[out] == pg.NonNeg()
    before = at.projected(model, {"*": pg.Box(-99, 99)})[first].copy()
    after = at.projected(model, rules)[first]
    before, after = (x if at.into == 0 else x.T for x in (before, after))  # a row per input
    np.testing.assert_array_equal(after[0], np.maximum(before[0], 0))
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_array_equal(after[2], np.minimum(before[2], 0))
    some = presets.monotone(model, decreasing=[1], first="first")[first]  # the others increase
    inf = math.inf
    shape = (3, 1) if at.into == 0 else (1, 3)
    assert some == pg.Box(np.reshape([0, -inf, 0], shape), np.reshape([inf, 0, inf], shape))
    with pytest.raises(ValueError, match=rf"which weights take the inputs: .*{first}"):
        presets.monotone(model, decreasing=[1])
    for wrong in ({"increasing": [3]}, {"decreasing": [-1]}, {"increasing": [0], "decreasing": [0]}):
        with pytest.raises(ValueError, match=rf"{first}.*it has 3 inputs, of which \[(3|-1|0)\]"):
            presets.monotone(model, **wrong, first="first")


EEGNET = {
    "conv": ("conv", 1, 4, 1),
    "spatial": ("conv", 4, 8, 4),
    "point": ("dense", 8, 8),
    "classify": ("dense", 8, 3),
}


def test_eegnet_bounds_spatial_filters_and_classes(at: Layout) -> None:
    model = at.model(**EEGNET)
    known = {} if at.name != "linen" else {"spatial": "spatial", "incoming": {"*spatial/kernel": (0, 1, 2)}}
    spatial, classes = at.names("spatial", "classify")
    expected = {spatial: pg.MaxNorm(1.0, axis=at.depthwise), classes: pg.MaxNorm(0.25, axis=at.into)}
    after = check(at, model, presets.eegnet(model, **known), expected)
    assert norms(after[spatial], at.depthwise).size == 8
    assert norms(after[spatial], at.depthwise).max() == pytest.approx(1.0)
    assert norms(after[classes], at.into).shape == (3,)
    assert norms(after[classes], at.into).max() == pytest.approx(0.25)


def test_eegnet_asks_which_of_several_layers_is_meant(at: Layout) -> None:
    model = at.model(spatial=("conv", 4, 8, 4), one=("dense", 8, 3), two=("dense", 8, 3))
    with pytest.raises(ValueError, match=r"presets\.eegnet: of .*one.*two.* 0 are taken for the dense .*classifier="):
        presets.eegnet(model, spatial="spatial")
    if at.name == "linen":  # whose tree does not tell what is depthwise
        with pytest.raises(ValueError, match="0 are taken for the depthwise layer"):
            presets.eegnet(model, classifier="two")
    else:
        assert at.names("two")[0] in presets.eegnet(model, classifier="two")
        several = at.model(a=("conv", 4, 8, 4), b=("conv", 4, 8, 4), head=("dense", 8, 3))
        with pytest.raises(ValueError, match="spatial="):
            presets.eegnet(several)
        assert at.names("b")[0] in presets.eegnet(several, spatial="b")


def test_lipschitz_shares_the_constant_among_the_layers(at: Layout) -> None:
    model = at.model(**NET)
    after = at.projected(model, presets.lipschitz(model, 0.125))  # 0.5 for each of three
    for name, out in zip(at.names("conv", "conv_1", "head"), (6, 6, 7), strict=True):
        inputs = (at.into,) if name in at.names("head") else at.conv
        (units,) = set(range(after[name].ndim)) - set(inputs)
        matrix = np.moveaxis(after[name], units, 0).reshape(out, -1)
        radius = 0.5 if name in at.names("head") else 0.5 / math.sqrt(3)  # kernels of 3 places
        assert np.linalg.norm(matrix, 2) == pytest.approx(radius, rel=1e-5)
    rules = presets.lipschitz(model, 0.125, conv="reshaped", method="gram")
    pairs = dict.fromkeys(at.names("conv", "conv_1"), at.conv) | dict.fromkeys(at.names("head"), at.into)
    units_of: dict[Any, int] = {(1, 2, 3): 0, (0, 1, 2): 3, 0: 1, 1: 0}
    assert rules == {k: pg.SpectralNorm(0.5, method="gram", axis=(units_of[a], a)) for k, a in pairs.items()}


def test_morphology_has_non_positive_kernels_with_centre_0(at: Layout) -> None:
    model = at.model(dilation=("morph", 2), conv=("conv", 4, 6, 1))
    (name,) = at.names("dilation")
    spatial = tuple(d - 4 if d > 1 else d for d in at.space)  # counted from the end in torch and equinox
    after = check(at, model, presets.morphology(model), {name: pg.Extensive(-1.0, spatial=spatial)})[name]
    kernels = after.reshape(-1, 5, 5) if at.space == (2, 3) else np.moveaxis(after, (0, 1), (-2, -1)).reshape(-1, 5, 5)
    assert len(kernels) == 6
    assert (kernels[:, 2, 2] == 0).all()
    assert kernels.max() == 0
    assert (kernels == 0).mean() < 0.7
    assert kernels.min() >= -1
    assert presets.morphology(model, centred=False, lower=-2) == {name: pg.Box(-2.0, 0.0)}
