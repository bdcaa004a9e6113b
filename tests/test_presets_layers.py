"""Which layers presets take for those of a paper: tied weights, EEGNets, attention, the layers of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import projgrad as pg
from projgrad import presets
from tests.preset_models import Linen

torch = pytest.importorskip("torch")

from torch import nn

from projgrad.torch import project_params, violations


def tied(vocabulary: int, width: int, head: str) -> nn.ModuleDict:
    model = nn.ModuleDict({"embed": nn.Embedding(vocabulary, width), head: nn.Linear(width, vocabulary, bias=False)})
    model[head].weight = model["embed"].weight
    return model


@pytest.mark.parametrize("head", ["lm_head", "head", "output"])
@pytest.mark.parametrize("vocabulary", [11, 8])
def test_a_tied_head_reads_the_embedding_as_the_embedding_is_laid_out(vocabulary: int, head: str) -> None:
    assert presets.ngpt(tied(vocabulary, 8, head)) == {"embed.weight": pg.UnitNorm(axis=1)}


def test_a_tied_embedding_is_held_as_the_head() -> None:
    model = tied(11, 8, "lm_head")
    expected: dict[Any, Any] = {
        presets.edm2: pg.UnitNorm(axis=1),
        presets.wgan: pg.Box(-0.01, 0.01),
        presets.monotone: pg.NonNeg(),
        presets.lipschitz: pg.SpectralNorm(1.0, axis=(0, 1)),
    }
    assert {preset: preset(model) for preset in expected} == {p: {"embed.weight": c} for p, c in expected.items()}
    project_params(model, presets.lipschitz(model))
    assert float(torch.linalg.matrix_norm(next(model.parameters()).detach(), 2)) == pytest.approx(1.0, rel=1e-5)
    for name in ("embed.weight", "lm_head.*"):  # either name leaves it free
        with pytest.raises(ValueError, match="selects none"):
            presets.edm2(model, but={name: None})


def test_an_error_on_a_tied_weight_has_all_its_names() -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    model["b"].weight = model["a"].weight
    with pytest.raises(ValueError, match=r"a\.weight \(tied: a\.weight, b\.weight\), of shape"):
        presets.ngpt(model, 8)


@pytest.mark.parametrize("together", [True, False])
def test_a_reversible_embedding_of_keras_is_a_head_too(together: bool) -> None:
    keras = pytest.importorskip("keras")
    if not hasattr(keras.layers, "ReversibleEmbedding"):
        pytest.skip("this Keras has none")
    layer = keras.layers.ReversibleEmbedding(11, 8, tie_weights=together)
    layer.build()
    head = {"embeddings": 1} if together else {"reverse_embeddings": 0}
    assert presets.maxnorm_dropout(layer) == {name: pg.MaxNorm(3.0, axis=axis) for name, axis in head.items()}
    rules = {name: pg.UnitNorm(axis=axis) for name, axis in ({"embeddings": 1} | head).items()}
    assert presets.ngpt(layer) == rules


def eegnet(*, turned: bool = False) -> nn.Sequential:
    """As in the paper, for 22 electrodes; or with the electrodes along the last axis."""

    def size(electrodes: int, samples: int) -> tuple[int, int]:
        return (samples, electrodes) if turned else (electrodes, samples)

    temporal, spatial = nn.Conv2d(1, 8, size(1, 64)), nn.Conv2d(8, 16, size(22, 1), groups=8)
    separable = [nn.Conv2d(16, 16, size(1, 16), groups=16), nn.Conv2d(16, 16, 1)]
    return nn.Sequential(temporal, nn.BatchNorm2d(8), spatial, nn.ELU(), *separable, nn.Flatten(), nn.Linear(16, 4))


SPATIAL, CLASSES = {"2.weight": pg.MaxNorm(1.0, axis=(1, 2, 3))}, {"7.weight": pg.MaxNorm(0.25, axis=1)}


@pytest.mark.parametrize("turned", [False, True])
def test_the_spatial_filter_of_an_eegnet_is_the_one_that_does_not_extend_in_time(turned: bool) -> None:
    model = eegnet(turned=turned)
    rules = presets.eegnet(model)
    assert rules == SPATIAL | CLASSES
    project_params(model, rules)
    assert violations(model, rules) == pytest.approx(dict.fromkeys(rules, 0.0), abs=1e-6)


def test_rules_of_the_user_for_a_layer_of_an_eegnet_do_not_move_the_preset_to_another() -> None:
    model = eegnet()
    assert presets.eegnet(model, but={"2.*": None}) == CLASSES | {"2.*": None}
    assert presets.eegnet(model, but={"7.weight": None}) == SPATIAL | {"7.weight": None}
    nn.utils.parametrizations.weight_norm(model[2])
    with pytest.raises(ValueError, match=r"2\.weight, of shape .* parametrized"):
        presets.eegnet(model)
    assert presets.eegnet(model, but={"2.*": None}) == CLASSES | {"2.*": None}


def test_an_eegnet_that_does_not_tell_says_what_it_has_and_asks_for_all_at_once() -> None:
    model = nn.ModuleDict({"one": nn.Conv2d(4, 8, (22, 1), groups=4), "two": nn.Conv2d(8, 8, (1, 16), groups=8)})
    depthwise = r"known to be depthwise are one\.weight \(8, 1, 22, 1\), two\.weight \(8, 1, 1, 16\): say by spatial="
    with pytest.raises(ValueError, match=rf"{depthwise}.*known to be dense are \(none\): say by classifier="):
        presets.eegnet(model)
    with pytest.raises(ValueError, match=r"spatial= has \['spatail'\], which select none of .*2\.weight"):
        presets.eegnet(eegnet(), spatial="spatail")


def test_an_eegnet_of_flax_linen_needs_one_more_try() -> None:
    pytest.importorskip("flax")
    dense = {"one": ("dense", 8, 3), "two": ("dense", 8, 3)}
    model = Linen().model(first=("conv", 1, 4, 1), over=("conv", 4, 8, 4), **dense)
    needed = r"say by spatial=.*say by classifier=.*incoming=\{'params/over/kernel': \(0, 1, 2\)\}"
    with pytest.raises(ValueError, match=needed):
        presets.eegnet(model)
    rules = presets.eegnet(model, spatial="over", classifier="two", incoming={"params/over/kernel": (0, 1, 2)})
    assert rules == {
        "params/over/kernel": pg.MaxNorm(1.0, axis=(0, 1, 2)),
        "params/two/kernel": pg.MaxNorm(0.25, axis=0),
    }


def test_attention_over_vectors_of_another_size() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=16)
    rules = presets.ngpt(attention, 8)
    reads = dict.fromkeys((f"{which}_proj_weight" for which in "qkv"), pg.UnitNorm(axis=1))
    assert rules == reads | {"out_proj.weight": pg.UnitNorm(axis=0)}
    # of a layer that may be anything, the name and the size must agree
    with pytest.raises(ValueError, match=r"value\.weight, of shape \(8, 1\): it reads .* 8, but its inputs .* 1"):
        presets.ngpt(nn.ModuleDict({"value": nn.Linear(1, 8)}), 8)


def test_a_name_that_says_both_leaves_it_to_the_size() -> None:
    model = nn.ModuleDict({"value": nn.ModuleDict({"up_proj": nn.Linear(8, 32), "down_proj": nn.Linear(32, 8)})})
    rules = {"value.up_proj.weight": pg.UnitNorm(axis=1), "value.down_proj.weight": pg.UnitNorm(axis=0)}
    assert presets.ngpt(model, 8) == rules


def test_an_embedding_that_is_left_free_tells_the_width() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(11, 8), "up": nn.Linear(8, 32), "other": nn.Embedding(11, 4)})
    assert presets.ngpt(model, but={"embed.*": None, "other.*": None}, width=8)["up.weight"] == pg.UnitNorm(axis=1)
    del model["other"]
    assert presets.ngpt(model, but={"embed.*": None}) == {"up.weight": pg.UnitNorm(axis=1), "embed.*": None}


class Conv1D(nn.Module):
    """A linear layer as transformers has it in GPT-2."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))


def test_a_linear_layer_of_gpt2_is_known_by_the_name_of_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="not known for 'weight' of Conv1D"):
        violations(Conv1D(4, 3), {"weight": pg.MaxNorm(1.0)})
    monkeypatch.setattr(Conv1D, "__module__", "transformers.pytorch_utils")
    layer = Conv1D(4, 3)
    project_params(layer, {"weight": pg.UnitNorm()})
    np.testing.assert_allclose(np.linalg.norm(layer.weight.detach().numpy(), axis=0), np.ones(4), rtol=1e-6)
    block = {"c_attn": Conv1D(24, 8), "c_proj": Conv1D(8, 8), "c_fc": Conv1D(32, 8), "mlp_c_proj": Conv1D(8, 32)}
    rules: Any = presets.ngpt(nn.ModuleDict(block), 8)
    axes = {"c_attn": 0, "c_proj": 1, "c_fc": 0, "mlp_c_proj": 1}
    assert rules == {f"{name}.weight": pg.UnitNorm(axis=axis) for name, axis in axes.items()}
    assert presets.lipschitz(layer) == {"weight": pg.SpectralNorm(1.0, axis=(1, 0))}


def test_a_model_on_the_meta_device_has_all_that_presets_ask() -> None:
    with torch.device("meta"):
        model = eegnet()
    assert presets.eegnet(model) == SPATIAL | CLASSES


def test_a_dense_layer_may_call_anything_its_kernel_size() -> None:
    class Layer(nn.Linear):
        kernel_size = 3

    assert presets.edm2(nn.Sequential(Layer(4, 2))) == {"0.weight": pg.UnitNorm(axis=1)}


def test_convolutions_of_flax_linen_are_bounded_once_their_axes_are_told() -> None:
    linen = pytest.importorskip("flax.linen")
    import jax
    import jax.numpy as jnp

    import projgrad.optax as po

    model, x = linen.Sequential([linen.Conv(4, (3, 3)), linen.Conv(3, (3, 3))]), jnp.ones((1, 5, 5, 2))
    params = jax.tree.map(lambda w: 10 * w, model.init(jax.random.key(0), x))
    for preset in (presets.lipschitz, presets.monotone):
        with pytest.raises(
            ValueError, match=r"layers_0/kernel.*incoming=\{'params/layers_0/kernel': axes\} tells them"
        ):
            preset(params)
    projected = po.project_params(params, presets.lipschitz(params, 2.0, incoming={"*/kernel": (0, 1, 2)}))
    slope = jax.jacobian(lambda y: model.apply(projected, y))(x).reshape(75, 50)
    assert 0.1 < float(jnp.linalg.norm(slope, 2)) <= 2.0
