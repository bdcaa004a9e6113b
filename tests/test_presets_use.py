"""What presets promise holds in training; what they cannot know is an error; layers of one's own, exceptions, ties."""

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

from projgrad.torch import ProjectedOptimizer, project_params, violations


def trained(model: Any, rules: Any, inputs: Any, targets: Any, steps: int = 20) -> None:
    """Some steps of Adam, after each of which the weights are in their sets."""
    optimizer = ProjectedOptimizer(torch.optim.Adam(model.parameters(), lr=0.05), rules, model=model)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        assert max(violations(model, rules).values()) < 1e-5


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W_enc, self.b_enc = nn.Parameter(torch.randn(4, 12)), nn.Parameter(torch.zeros(12))
        self.W_dec, self.b_dec = nn.Parameter(torch.randn(12, 4)), nn.Parameter(torch.zeros(4))

    def forward(self, x: Any) -> Any:
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc) @ self.W_dec + self.b_dec


def test_a_sparse_autoencoder_of_bare_arrays_trains_with_dictionary_vectors_of_norm_1() -> None:
    torch.manual_seed(0)
    model, x = Autoencoder(), torch.randn(30, 4)
    before = model.W_enc.detach().clone()
    with pytest.raises(ValueError, match=r"presets\.sae: W_dec, of shape \(12, 4\).*incoming=\{'W_dec': axes\}"):
        presets.sae(model)
    rules = presets.sae(model, incoming={"W_dec": 0})
    assert rules == {"W_dec": pg.Tag(pg.UnitNorm(axis=1), tangent="gradient")}
    trained(model, rules, x, x)
    np.testing.assert_allclose((model.W_dec.detach().numpy() ** 2).sum(1), 1.0, rtol=1e-5)
    assert not torch.equal(before, model.W_enc)


def test_optax_trains_what_presets_say_of_nnx() -> None:
    pytest.importorskip("flax.nnx")
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    import projgrad.optax as po

    class Coder(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.encoder, self.decoder = nnx.Linear(4, 12, rngs=rngs), nnx.Linear(12, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.decoder(nnx.relu(self.encoder(x)))

    model, x = Coder(nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (30, 4))
    rules = presets.sae(model)
    nnx.jit(lambda m: po.project_params(m, rules))(model)
    optimizer = nnx.Optimizer(model, po.projected(optax.adam(0.05), rules), wrt=nnx.Param)

    @nnx.jit
    def train(model: Any, optimizer: Any) -> None:
        optimizer.update(model, nnx.grad(lambda m: jnp.mean((m(x) - x) ** 2))(model))

    for _ in range(3):
        train(model, optimizer)
    np.testing.assert_allclose((np.asarray(model.decoder.kernel[...]) ** 2).sum(1), 1.0, rtol=1e-5)


@pytest.mark.slow
def test_optax_trains_what_presets_say_of_equinox_and_linen() -> None:
    eqx, linen = pytest.importorskip("equinox"), pytest.importorskip("flax.linen")
    import jax
    import jax.numpy as jnp
    import optax

    import projgrad.optax as po

    x = jax.random.normal(jax.random.key(1), (30, 4))
    mlp = eqx.nn.MLP(4, 2, 5, 1, key=jax.random.key(0))
    dense = linen.Sequential([linen.Dense(5), linen.relu, linen.Dense(2)])

    def ends(params: Any, rules: Any, apply: Any) -> Any:
        tx = optax.chain(optax.adam(0.5), po.project(rules))
        params = jax.jit(lambda p: po.project_params(p, rules))(params)
        state = tx.init(params)
        step = jax.jit(lambda p, s: tx.update(jax.grad(lambda q: jnp.mean((apply(q) - 9) ** 2))(p), s, p))
        for _ in range(3):
            updates, state = step(params, state)
            params = optax.apply_updates(params, updates)
        return params

    arrays, rest = eqx.partition(mlp, eqx.is_array)
    found = ends(arrays, presets.maxnorm_dropout(mlp, 0.5), lambda p: jax.vmap(eqx.combine(p, rest))(x))
    for layer in found.layers:
        assert np.linalg.norm(layer.weight, axis=1).max() == pytest.approx(0.5, rel=1e-5)
    params = dense.init(jax.random.key(0), x)
    found = ends(params, presets.maxnorm_dropout(params, 0.5), lambda p: dense.apply(p, x))
    for layer in found["params"].values():
        assert np.linalg.norm(layer["kernel"], axis=0).max() == pytest.approx(0.5, rel=1e-5)


def test_keras_fits_an_eegnet() -> None:
    keras = pytest.importorskip("keras")
    from keras import layers

    from projgrad.keras import ProjectedOptimizer as Projected

    parts = [layers.Conv2D(4, (1, 8), padding="same", use_bias=False), layers.BatchNormalization()]
    parts += [layers.DepthwiseConv2D((6, 1), depth_multiplier=2, use_bias=False, name="over_electrodes")]
    parts += [layers.Activation("elu"), layers.SeparableConv2D(8, (1, 4), padding="same", use_bias=False)]
    model = keras.Sequential([keras.Input((6, 16, 1)), *parts, layers.Flatten(), layers.Dense(3, name="classes")])
    rules = presets.eegnet(model)
    assert rules == {
        "over_electrodes/kernel": pg.MaxNorm(1.0, axis=(0, 1)),
        "classes/kernel": pg.MaxNorm(0.25, axis=0),
    }
    model.compile(Projected(keras.optimizers.Adam(0.5), rules, model=model), "mse")
    model.fit(np.random.default_rng(0).normal(size=(8, 6, 16, 1)), np.full((8, 3), 9.0), epochs=2, verbose=0)
    filters, classes = (keras.ops.convert_to_numpy(v) for v in (model.layers[2].kernel, model.layers[-1].kernel))
    assert np.linalg.norm(filters.reshape(6, 8), axis=0).max() == pytest.approx(1.0, rel=1e-5)
    assert np.linalg.norm(classes, axis=0) == pytest.approx(0.25, rel=1e-5)


def test_a_depthwise_convolution_called_spatial_is_that_of_eegnet() -> None:
    depth = {"spatial": nn.Conv2d(4, 8, (6, 1), groups=4), "separable": nn.Conv2d(8, 8, (1, 4), groups=8)}
    model = nn.ModuleDict({**depth, "point": nn.Conv2d(8, 8, 1), "classifier": nn.Linear(8, 3)})
    assert list(presets.eegnet(model)) == ["spatial.weight", "classifier.weight"]
    del model["spatial"]
    model["temporal"] = nn.Conv2d(1, 1, (1, 4))
    assert list(presets.eegnet(model)) == ["separable.weight", "classifier.weight"]


def test_the_lipschitz_constant_holds_and_is_reached_by_a_convolution() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    nn.init.constant_(conv.weight, 7.0)

    def constant() -> float:
        jacobian = torch.func.jacrev(lambda x: conv(x).flatten())(torch.randn(1, 1, 6, 6))
        return float(torch.linalg.matrix_norm(jacobian.detach().reshape(36, 36), 2))

    project_params(conv, presets.lipschitz(conv, 2.0, conv="reshaped"))
    assert constant() == pytest.approx(6.0, rel=1e-5)  # 2, and the root of 9 places
    project_params(conv, presets.lipschitz(conv, 2.0))
    assert constant() == pytest.approx(2.0, rel=1e-5)
    down, last = nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.Linear(18, 1)
    model = nn.Sequential(conv, nn.ReLU(), down, nn.ReLU(), nn.Flatten(), last)
    x = torch.randn(20, 1, 6, 6)
    trained(model, presets.lipschitz(model, 2.0), x, 9 * torch.randn(20, 1))
    grad = torch.func.vmap(torch.func.grad(lambda one: model(one[None]).squeeze()))(x).detach()
    assert 0 < float(grad.flatten(1).norm(dim=1).max()) <= 2.0


def test_an_input_convex_network_is_convex() -> None:
    class Convex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W_y0, self.W_y1, self.W_y2 = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(3, 1)
            self.W_z1, self.W_z2 = nn.Linear(8, 8, bias=False), nn.Linear(8, 1, bias=False)

        def forward(self, y: Any) -> Any:
            z = torch.relu(self.W_y0(y))
            z = torch.relu(self.W_z1(z) + self.W_y1(y))
            return self.W_z2(z) + self.W_y2(y)

    torch.manual_seed(0)
    model, a, b = Convex(), torch.randn(500, 3), torch.randn(500, 3)

    @torch.no_grad()
    def excess() -> float:
        return float((model((a + b) / 2) - (model(a) + model(b)) / 2).max())

    assert excess() > 1e-3
    trained(model, presets.icnn(model), a, -a.norm(dim=1, keepdim=True))  # as far from convex as can be
    assert excess() < 1e-5


def test_a_monotone_network_is_monotone() -> None:
    torch.manual_seed(0)
    parts: Any = [nn.Linear(3, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 1)]
    model, x = nn.Sequential(*parts), torch.randn(200, 3)
    rules = presets.monotone(model, increasing=[0], decreasing=[2], first="0.weight")
    assert rules["2.weight"] == pg.NonNeg()  # the scale
    with torch.no_grad():
        parts[2].weight.fill_(-1.0)
    trained(model, rules, x, x[:, 2:] - x[:, :1])  # the opposite
    model.eval()
    grad = torch.func.vmap(torch.func.grad(lambda one: model(one[None]).squeeze()))(torch.randn(200, 3)).detach()
    assert float(grad[:, 0].min()) >= 0
    assert float(grad[:, 2].max()) <= 0


def test_attention_of_the_frameworks_is_known_to_ngpt() -> None:
    rules = presets.ngpt(nn.MultiheadAttention(8, 2), 8)
    assert rules == {"in_proj_weight": pg.UnitNorm(axis=1), "out_proj.weight": pg.UnitNorm(axis=0)}
    nnx = pytest.importorskip("flax.nnx")
    attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))  # kernels (8, 2, 4) and (2, 4, 8)
    axes = dict.fromkeys(("query", "key", "value"), 0) | {"out": 2}
    assert presets.ngpt(attention, 8) == {f"{name}/kernel": pg.UnitNorm(axis=axis) for name, axis in axes.items()}
    state = nnx.to_pure_dict(nnx.state(attention, nnx.Param))  # as flax linen has it
    assert presets.ngpt(state, 8) == presets.ngpt(attention, 8)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight = nn.Linear(3, 4), nn.Parameter(torch.randn(4, 5))
        self.norm = nn.BatchNorm1d(5)


def test_a_layer_of_ones_own_wants_axes_or_an_exception() -> None:
    model = Own()
    with pytest.raises(ValueError, match=r"presets\.maxnorm_dropout: weight, of shape \(4, 5\): .*not known.*but="):
        presets.maxnorm_dropout(model)
    first, own = {"first.weight": pg.MaxNorm(3.0, axis=1)}, {"weight": pg.MaxNorm(1.0, axis=0)}
    assert presets.maxnorm_dropout(model, incoming={"weight": 0}) == {
        "first.weight": pg.MaxNorm(3.0, axis=1),
        "weight": pg.MaxNorm(3.0, axis=0),
    }
    assert presets.maxnorm_dropout(model, but=own) == first | own
    assert presets.maxnorm_dropout(model, but={Own: {"weight": None}}) == first | {Own: {"weight": None}}
    with pytest.raises(
        ValueError, match=r"norm\.weight.*not known as the weight of a dense layer.*None leaves it free"
    ):
        presets.lipschitz(model, incoming={"weight": 0})
    with pytest.raises(ValueError, match=r"incoming= has \['other'\], which select none of weight, first\.weight"):
        presets.edm2(model, incoming={"other": 0})
    with pytest.raises(ValueError, match="weight.*incoming=2: axis 2 does not exist"):
        presets.edm2(model, incoming={"weight": 2}, but={"first.weight": None})


def test_what_a_preset_cannot_select_is_an_error() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for preset, told_by in ((presets.sae, "decoder"), (presets.morphology, "layers")):
        selects = rf"presets\.{preset.__name__} selects none of .*0\.weight, 1\.weight: say by {told_by}= which"
        with pytest.raises(ValueError, match=selects):
            preset(net)
    with pytest.raises(ValueError, match=r"conv='other'"):
        presets.lipschitz(net, conv="other")
    with pytest.raises(ValueError, match="max_value"):
        presets.lipschitz(net, -1.0)
    with pytest.raises(TypeError, match="a preset takes a torch module.*not list"):
        presets.wgan([net])
    with pytest.raises(ValueError, match=r"1\.weight.*parametrized"):
        presets.maxnorm_dropout(nn.Sequential(net[0], nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))))
    with pytest.raises(ValueError, match="run the model once"):
        presets.ngpt(nn.LazyLinear(3), 3)
    dilation = nn.ModuleDict({"dilation_block": nn.Conv2d(1, 1, 3)})
    with pytest.raises(ValueError, match=r"dilation_block\.weight.*Conv2d, which multiplies"):
        presets.morphology(dilation)
    keras = pytest.importorskip("keras")
    with pytest.raises(ValueError, match="not built"):
        presets.edm2(keras.layers.Dense(3))


def test_tied_weights_have_one_rule_and_must_agree() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(11, 8), "lm_head": nn.Linear(8, 11, bias=False)})
    model["lm_head"].weight = model["embed"].weight
    assert presets.ngpt(model) == {"embed.weight": pg.UnitNorm(axis=1)}
    assert presets.maxnorm_dropout(model) == {"embed.weight": pg.MaxNorm(3.0, axis=1)}  # as the head has it
    square = nn.ModuleDict({"q_proj": nn.Linear(8, 8), "o_proj": nn.Linear(8, 8)})
    square["o_proj"].weight = square["q_proj"].weight
    with pytest.raises(
        ValueError, match=r"o_proj\.weight.*as q_proj\.weight it has UnitNorm\(axis=1\).*UnitNorm\(axis=0\)"
    ):
        presets.ngpt(square, 8)


def test_stacked_layers_are_counted_by_no_preset() -> None:
    eqx = pytest.importorskip("equinox")
    import jax

    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 3, key=key))(jax.random.split(jax.random.key(0), 4))
    assert presets.maxnorm_dropout(stack) == {"weight": pg.MaxNorm(3.0, axis=2)}
    with pytest.raises(ValueError, match=r"weight, of shape \(4, 3, 3\): it is not known as the weight of a dense"):
        presets.lipschitz(stack)


def test_names_with_brackets_are_no_patterns() -> None:
    model = nn.ModuleDict({"a[1]": nn.Linear(2, 2), "a1": nn.Linear(2, 2)})
    found = violations(model, presets.maxnorm_dropout(model, but={"a1.weight": None}))
    assert list(found) == ["a[1].weight"]


def test_presets_load_no_framework() -> None:
    code = "import sys, projgrad as pg\ntry:\n    pg.presets.wgan({})\nexcept TypeError:\n    pass\n"
    code += "print([name for name in ('torch', 'jax', 'keras', 'tensorflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_matrix_called_b_is_no_bias() -> None:
    class LowRank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A, self.B = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2, 3))
            self.b, self.bias = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 3))

    rules = presets.lipschitz(LowRank(), 0.25, incoming={"A": 0, "B": 0})
    assert rules == dict.fromkeys(("A", "B"), pg.SpectralNorm(0.5, axis=(1, 0)))
    with pytest.raises(ValueError, match="B, of shape"):
        presets.lipschitz(LowRank(), incoming={"A": 0})


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_lipschitz_knows_which_padding_breaks_its_bound(mode: str) -> None:
    model = nn.Sequential(nn.Conv1d(1, 1, 3, padding=1, padding_mode=mode))
    with pytest.raises(ValueError, match=f"0.weight.*{mode}"):
        presets.lipschitz(model)
    assert presets.lipschitz(model, conv="reshaped")
    assert presets.lipschitz(nn.Sequential(nn.Conv1d(1, 1, 1, padding_mode=mode)))


def test_sae_does_not_take_an_encoder_for_a_decoder() -> None:
    model = nn.ModuleDict({"autoencoder_decoder": nn.ModuleDict({n: nn.Linear(2, 2) for n in ("encoder", "decoder")})})
    with pytest.raises(ValueError, match="autoencoder_decoder.encoder.weight"):
        presets.sae(model)
    assert list(presets.sae(model, decoder="*.decoder.weight")) == ["autoencoder_decoder.decoder.weight"]
    with pytest.raises(ValueError, match="selects none"):
        presets.sae(nn.ModuleDict({"decision": nn.Linear(2, 2)}))


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True)], ids=str)
def test_monotone_refuses_layers_that_are_not(norm: nn.Module) -> None:
    with pytest.raises(ValueError, match="1.weight.*does not increase"):
        presets.monotone(nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 1)))
    assert presets.monotone(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))


@pytest.mark.parametrize("wrong", [[False, True], [1.0], 2])
def test_positions_are_ints(wrong: Any) -> None:
    for argument in ("increasing", "decreasing"):
        with pytest.raises(TypeError, match="positions of inputs"):
            presets.monotone(nn.Sequential(nn.Linear(2, 1)), first="0", **{argument: wrong})


@pytest.mark.parametrize("container", [iter, np.array, set])
def test_positions_come_in_any_container(container: Any) -> None:
    rules = presets.monotone(nn.Sequential(nn.Linear(2, 1)), first="0", decreasing=container([1]))
    assert rules["0.weight"].bind((1, 2), (1,)).project(np.array([[-1.0, 1.0]])).tolist() == [[0.0, 0.0]]


def test_an_output_called_y_does_not_take_the_input() -> None:
    model = nn.ModuleDict({"x0": nn.Linear(2, 4), "z1": nn.Linear(4, 4), "y_out": nn.Linear(4, 1)})
    with pytest.raises(ValueError, match="y_out.weight.*neither"):
        presets.icnn(model)


def test_what_is_frozen_is_not_changed_unasked() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    with pytest.raises(ValueError, match="0.weight.*frozen"):
        presets.wgan(model)
    assert list(presets.wgan(model, but={"0.*": None})) == ["1.weight", "1.bias", "0.*"]


def test_what_is_frozen_in_keras_is_not_changed_unasked() -> None:
    keras = pytest.importorskip("keras")
    layer = keras.layers.Dense(3, name="head")
    layer.build((None, 2))
    layer.trainable = False
    with pytest.raises(ValueError, match="kernel.*frozen"):
        presets.maxnorm_dropout(layer)
    layer.trainable = True
    assert list(presets.maxnorm_dropout(layer)) == ["kernel"]


@pytest.mark.parametrize("wrong", ["0.weight", ["0.weight"], 0])
def test_exceptions_and_axes_come_as_dicts(wrong: Any) -> None:
    for argument in ("but", "incoming"):
        with pytest.raises(TypeError, match=f"{argument}=.* a dict"):
            presets.maxnorm_dropout(nn.Sequential(nn.Linear(2, 2)), **{argument: wrong})


def test_statistics_of_flax_are_no_parameters() -> None:
    jnp = pytest.importorskip("jax.numpy")
    variables = {"params": {"kernel": jnp.ones((2, 2))}, "batch_stats": {"mean": jnp.ones(2)}}
    with pytest.raises(TypeError, match="params"):
        presets.wgan(variables)
    assert list(presets.wgan(variables["params"])) == ["kernel"]
