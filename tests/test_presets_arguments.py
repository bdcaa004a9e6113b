"""Arguments of presets: patterns that name nothing, numbers out of range, models that are none."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import projgrad as pg
from projgrad import presets

torch = pytest.importorskip("torch")

from torch import nn

NET = nn.ModuleDict({"encoder": nn.Linear(4, 12), "decoder": nn.Linear(12, 4)})
CONVEX = nn.ModuleDict({"z1": nn.Linear(4, 4), "x1": nn.Linear(2, 4)})


@pytest.mark.parametrize(
    ("preset", "model", "argument"),
    [
        (presets.ngpt, NET, "readers"),
        (presets.ngpt, NET, "writers"),
        (presets.sae, NET, "decoder"),
        (presets.icnn, CONVEX, "hidden"),
        (presets.icnn, CONVEX, "through"),
        (presets.monotone, NET, "first"),
        (presets.eegnet, NET, "spatial"),
        (presets.eegnet, NET, "classifier"),
        (presets.morphology, NET, "layers"),
    ],
)
def test_a_pattern_that_names_nothing_is_named_with_what_is_near(preset: Any, model: Any, argument: str) -> None:
    (first, second) = model
    for given in ("misspelt", ["misspelt", f"{first}*"]):
        said = rf"presets\.{preset.__name__}: {argument}= has \['misspelt'\], which select none of"
        with pytest.raises(ValueError, match=rf"{said} {first}\.weight, {second}\.weight"):
            preset(model, **{argument: given})
    for wrong in (3, [3], None):
        if wrong is not None or preset is not presets.eegnet:
            with pytest.raises(TypeError, match=rf"{argument}= takes a pattern or a list of them, not"):
                preset(model, **{argument: wrong})


def test_of_many_names_the_nearest_are_shown() -> None:
    model = nn.ModuleDict(
        {f"layer{i}": nn.ModuleDict({"mixer": nn.Linear(2, 2), "other": nn.Linear(2, 2)}) for i in range(4)}
    )
    nearest = ", ".join(f"layer{i}.mixer.weight" for i in range(4))
    with pytest.raises(
        ValueError, match=rf"first= has \['mixre'\], which select none of {nearest}, the nearest of 8 names"
    ):
        presets.monotone(model, first="mixre")


def test_rules_of_the_user_that_select_nothing_or_do_not_fit_are_found_by_the_preset() -> None:
    for wrong, why in (
        ({"encodr.weight": None}, r"'encodr\.weight' selects no parameter; the nearest: encoder\.weight"),
        ({nn.Conv2d: None}, "Conv2d selects no parameter; the nearest: Linear"),
        ({"encoder.bias": pg.UnitNorm()}, r"encoder\.bias.* cannot have UnitNorm"),
    ):
        with pytest.raises(ValueError, match=rf"presets\.edm2: but=: .*{why}"):
            presets.edm2(NET, but=wrong)


def test_readers_and_writers_are_added_to_those_whose_names_tell_and_win() -> None:
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("q_proj", "mix", "proj")})
    reads, writes = pg.UnitNorm(axis=1), pg.UnitNorm(axis=0)
    rules = presets.ngpt(model, 8, readers="mix")
    assert rules == {"q_proj.weight": reads, "mix.weight": reads, "proj.weight": writes}
    rules = presets.ngpt(model, 8, writers=["mix", "q_*"], readers="proj")
    assert rules == {"q_proj.weight": writes, "mix.weight": writes, "proj.weight": reads}
    with pytest.raises(ValueError, match=r"mix\.weight.*both readers= and writers= name it"):
        presets.ngpt(model, 8, readers="mix", writers="mix")
    with pytest.raises(ValueError, match=r"up\.weight.*it reads the embedding, whose size is 8, but its inputs .* 4"):
        presets.ngpt(nn.ModuleDict({"up": nn.Linear(4, 8)}), 8, readers="up")


def test_ngpt_says_what_it_found_where_the_width_is_not_told() -> None:
    with pytest.raises(ValueError, match=r"no layer is known as an embedding.* width=.*encoder\.weight \(12, 4\)"):
        presets.ngpt(NET)
    several = nn.ModuleList([nn.Embedding(3, 4), nn.Embedding(3, 5)])
    with pytest.raises(ValueError, match=r"0\.weight \(3, 4\), 1\.weight \(3, 5\) have the widths \[4, 5\]: .*width="):
        presets.ngpt(several)


class Dilation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3, 5, 5))


EEGNET = nn.Sequential(nn.Conv2d(4, 8, (6, 1), groups=4), nn.Linear(8, 3))
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("preset", "model", "argument"),
    [
        (presets.wgan, NET, "clip"),
        (presets.maxnorm_dropout, NET, "c"),
        (presets.lipschitz, NET, "constant"),
        (presets.eegnet, EEGNET, "spatial_norm"),
        (presets.eegnet, EEGNET, "classifier_norm"),
    ],
)
def test_bounds_are_positive_and_finite(preset: Any, model: Any, argument: str) -> None:
    for wrong in (0, -1, INF, -INF, NAN):
        with pytest.raises(
            ValueError, match=rf"presets\.{preset.__name__}: {argument}={wrong} must be positive and fin"
        ):
            preset(model, **{argument: wrong})
    for other in ("3", True, None, 1j, torch.ones(2)):
        with pytest.raises(TypeError, match=rf"presets\.{preset.__name__}: {argument}=.* is not a number"):
            preset(model, **{argument: other})
    assert preset(model, **{argument: np.float64(0.5)}) == preset(model, **{argument: 0.5})
    with pytest.raises(ValueError, match=rf"{argument}=Schedule.* must be positive"):
        preset(model, **{argument: pg.Schedule({0: 1.0, 10: 0.0})})


def test_bounds_may_be_schedules() -> None:
    bound = pg.Schedule({0: 3.0, 10: 1.0})
    assert presets.wgan(NET, bound)["encoder.weight"].at(5) == pg.Box(-2.0, 2.0)
    assert presets.maxnorm_dropout(NET, bound)["encoder.weight"].at(5) == pg.MaxNorm(2.0, axis=1)
    with pytest.raises(TypeError, match=r"presets\.lipschitz: constant= takes a number, and no schedule"):
        presets.lipschitz(NET, bound)


@pytest.mark.parametrize("preset", [presets.maxnorm_dropout, presets.wgan, presets.lipschitz])
def test_bounds_may_be_injected_into_compiled_steps(preset: Any) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    from projgrad.optax import project, project_params

    params = {"dense": {"kernel": jax.numpy.zeros((3, 4))}}
    outward = jax.tree.map(jax.numpy.ones_like, params)
    tx = optax.inject_hyperparams(lambda bound: project(preset(params, bound)))(bound=0.5)
    updates = jax.jit(lambda state: tx.update(outward, state, params))(tx.init(params))[0]
    expected = project_params(outward, preset(params, 0.5))
    np.testing.assert_allclose(updates["dense"]["kernel"], expected["dense"]["kernel"], rtol=1e-5)


def test_kernels_of_morphology_have_a_least_value_below_0() -> None:
    for wrong in (0, 1.0, NAN, INF):
        for centred in (True, False):
            with pytest.raises(ValueError, match=rf"presets\.morphology: lower={wrong} must be below 0"):
                presets.morphology(nn.ModuleDict({"dilation": Dilation()}), lower=wrong, centred=centred)
    assert presets.morphology(Dilation(), layers="Dilation", lower=-INF)
    for wrong, error in (("x", ValueError), (1.5, TypeError), ((0, 0), ValueError)):
        with pytest.raises(error, match=r"presets\.morphology: spatial=: axis="):
            presets.morphology(Dilation(), layers="Dilation", spatial=wrong)


def test_a_width_is_a_positive_int() -> None:
    for wrong in (0, -8):
        with pytest.raises(ValueError, match=rf"presets\.ngpt: width={wrong} must be positive"):
            presets.ngpt(NET, wrong)
    for other in (8.0, True, "8"):
        with pytest.raises(TypeError, match=rf"presets\.ngpt: width={other!r} is not an int"):
            presets.ngpt(NET, other)


def test_sets_of_real_numbers_refuse_complex_parameters() -> None:
    model = nn.Linear(2, 3, dtype=torch.complex64)
    for preset in (presets.wgan, presets.monotone, presets.lipschitz):
        with pytest.raises(
            TypeError, match=rf"presets\.{preset.__name__}: weight, of shape \(3, 2\): .*complex64.*but="
        ):
            preset(model)
    assert presets.maxnorm_dropout(model) == {"weight": pg.MaxNorm(3.0, axis=1)}


def test_a_dict_that_holds_no_parameters_of_jax_says_what_is_expected() -> None:
    code = "import numpy as np, projgrad as pg\nfor model in ({}, {'w': np.ones((2, 3))}):\n"
    code += "    try:\n        pg.presets.wgan(model)\n    except TypeError as error:\n        print(error)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [
        line.startswith("a preset takes a dict for the parameters of JAX") for line in done.stdout.splitlines()
    ] == [True] * 2
    with pytest.raises(TypeError, match="a torch module, and not a dict of its tensors"):
        presets.wgan(NET.state_dict())
    pytest.importorskip("jax")
    for wrong in ({}, {"w": [1.0, 2.0]}):
        with pytest.raises(TypeError, match="a dict with JAX or NumPy arrays in it"):
            presets.wgan(wrong)
