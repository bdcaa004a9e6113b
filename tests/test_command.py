"""The command, on saved weights of every format."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import numpy as np
import pytest

import projgrad as pg
from projgrad.files import open_weights
from projgrad.files.bfloat16 import rounded, widened
from tests.test_portable import plan_of, written
from tests.weights_files import ENDINGS, RULES, UNIT, B, W, header, read, run, saved


@pytest.fixture
def rules(tmp_path):
    return written(tmp_path / "rules.toml", RULES)


@pytest.mark.parametrize("ending", ENDINGS)
def test_check_and_project(tmp_path, capsys, rules, ending):
    path, out = saved(tmp_path / f"w{ending}", a__weight=W, a__bias=B), tmp_path / f"out{ending}"
    before = path.read_bytes()
    code, shown, error = run(capsys, "check", path, "--rules", rules)
    assert (code, error) == (1, "")
    far = np.abs(np.linalg.norm(W, axis=1) - 1).max()
    assert f"outside: a.weight is {far:.3g} away from UnitNorm(axis=1)" in shown
    assert shown.splitlines()[0].split()[:2] == ["parameter", "shape"]
    assert any(line.startswith("a.bias") and line.endswith("-") for line in shown.splitlines())

    assert run(capsys, "project", path, out, "--rules", rules)[0] == 0
    assert path.read_bytes() == before
    np.testing.assert_allclose(read(out)["a.weight"], UNIT, rtol=1e-6)
    np.testing.assert_array_equal(read(out)["a.bias"], B)
    code, shown, _ = run(capsys, "check", out, "--rules", rules)
    assert code == 0
    assert "outside" not in shown
    assert run(capsys, "check", path, "--rules", rules, "--tol", "10")[0] == 0
    again = tmp_path / f"again{ending}"
    assert run(capsys, "project", out, again, "--rules", rules)[0] == 0
    assert all(np.array_equal(x, read(again)[name]) for name, x in read(out).items())


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_saved_plan_is_checked_without_a_model(tmp_path, capsys, ending):
    plan = plan_of({"a.*": pg.Joint(pg.MaxNorm(0.5))}, {"a.weight": (4, 3), "a.bias": (3,)})
    plan.save(tmp_path / "plan.json")
    path, out = saved(tmp_path / f"w{ending}", a__weight=W, a__bias=B), tmp_path / f"out{ending}"
    assert run(capsys, "check", path, "--plan", tmp_path / "plan.json")[0] == 1
    assert run(capsys, "project", path, out, "--plan", tmp_path / "plan.json")[0] == 0
    expected = plan[0].project([W, B])
    for name, x in zip(("a.weight", "a.bias"), expected, strict=True):
        np.testing.assert_allclose(read(out)[name], x, rtol=1e-6)
    assert run(capsys, "check", out, "--plan", tmp_path / "plan.json")[0] == 0


def test_weights_of_jax_saved_with_dots_or_slashes(tmp_path, capsys):
    jnp = pytest.importorskip("jax.numpy")
    pytest.importorskip("optax")
    import projgrad.optax

    params = {"hidden": {"kernel": jnp.asarray(W), "bias": jnp.zeros(3)}}
    plan = projgrad.optax.plan(params, {"*/kernel": pg.UnitNorm()})
    plan.save(tmp_path / "plan.json")
    assert pg.load_plan(tmp_path / "plan.json") == plan
    assert str(plan) == "hidden/kernel  (4, 3)  UnitNorm(axis=0)"
    rules = written(tmp_path / "rules.json", [{"names": "*/kernel", "constraint": {"type": "UnitNorm", "axis": 0}}])
    for separator in "./":
        path = tmp_path / "w.npz"
        np.savez(path, **{f"params{separator}hidden{separator}kernel": W})
        for how in (["--plan", tmp_path / "plan.json"], ["--rules", rules]):
            code, shown, _ = run(capsys, "check", path, *how, "--key", "params")
            assert code == 1
            assert "outside: hidden" in shown


def test_a_plan_that_does_not_fit_the_file(tmp_path, capsys):
    path = saved(tmp_path / "w.npz", a__weight=W)
    for name, shape, says in (
        ("a.weihgt", (4, 3), "none; the nearest: a.weight"),
        ("a.weight", (3, 4), "of shape (3, 4), and the file of shape (4, 3)"),
    ):
        plan_of({"*": pg.NonNeg()}, {name: shape}).save(tmp_path / "plan.json")
        code, _, error = run(capsys, "check", path, "--plan", tmp_path / "plan.json")
        assert code == 2
        assert says in error


def test_the_libraries_of_safetensors_read_what_is_written(tmp_path, capsys, rules):
    numpy = pytest.importorskip("safetensors.numpy")
    path, out = tmp_path / "w.safetensors", tmp_path / "out.safetensors"
    arrays = {"a.weight": W.astype("float16"), "n": np.arange(3), "flag": np.array([True]), "empty": np.zeros((0, 2))}
    numpy.save_file(arrays, path, metadata={"format": "np"})
    assert run(capsys, "project", path, out, "--rules", rules)[0] == 0
    found = numpy.load_file(out)
    assert {name: x.dtype for name, x in found.items()} == {name: x.dtype for name, x in arrays.items()}
    np.testing.assert_allclose(found["a.weight"], UNIT, rtol=2e-3)
    for name in ("n", "flag", "empty"):
        np.testing.assert_array_equal(found[name], arrays[name])


def test_bfloat16_needs_no_library(tmp_path, capsys):
    bits = rounded(W)
    path, out = tmp_path / "w.safetensors", tmp_path / "out.safetensors"
    path.write_bytes(
        header(**{"a.weight": ("BF16", bits), "b.weight": ("BF16", bits), "c": ("F8_E4M3", bits.view("u1"))})
    )
    sets = [{"type": "UnitNorm", "axis": 1}, {"type": "Box", "lower": -0.1, "upper": 0.1}]
    parts = {"type": "Slices", "parts": [sets[0], None]}
    for first, rest in ((sets[0], sets[1]), (parts, sets[0])):
        given = [{"names": "a.weight", "constraint": first}, {"names": "b.weight", "constraint": rest}]
        rules = written(tmp_path / "rules.json", given)
        assert run(capsys, "check", path, "--rules", rules)[0] == 1
        assert run(capsys, "project", path, out, "--rules", rules, "--overwrite")[0] == 0
        assert run(capsys, "check", out, "--rules", rules)[0] == 0
        stored = open_weights(out).stored
        again = tmp_path / "again.safetensors"
        assert run(capsys, "project", out, again, "--rules", rules, "--overwrite")[0] == 0
        assert again.read_bytes() == out.read_bytes()
        unit = stored["a.weight" if first is sets[0] else "b.weight"].array
        np.testing.assert_allclose(unit, widened(bits) / np.linalg.norm(widened(bits), axis=1)[:, None], rtol=2**-7)
        if first is parts:
            np.testing.assert_array_equal(stored["a.weight"].held[2:], bits[2:])
    rules = written(tmp_path / "rules.json", [{"names": "c", "constraint": {"type": "NonNeg"}}])
    code, _, error = run(capsys, "check", path, "--rules", rules)
    assert code == 2
    assert "not F8_E4M3" in error


def test_bfloat16_is_rounded_as_in_torch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32).view("float32")
    x = np.concatenate([x, np.array([np.inf, -np.inf, 0.0, -0.0, 1.00390625], "float32")])
    ours = rounded(x)
    theirs = torch.tensor(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    finite = ~np.isnan(x)
    np.testing.assert_array_equal(ours[finite], theirs[finite])
    assert np.isnan(widened(ours)[~finite]).all()
    np.testing.assert_array_equal(widened(ours)[finite], torch.tensor(x).to(torch.bfloat16).float().numpy()[finite])


def test_a_torch_checkpoint_keeps_its_form(tmp_path, capsys, rules):
    torch = pytest.importorskip("torch")
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 4), "b": torch.nn.Linear(3, 4)})
    model["b"].weight = model["a"].weight
    adam = torch.optim.Adam(model.parameters())
    sum(x.sum() for x in model.parameters()).backward()
    adam.step()
    path, out = tmp_path / "w.pt", tmp_path / "out.pt"
    states = {"model": model.state_dict(), "optimizer": adam.state_dict()}
    torch.save({"epoch": 3, "half": torch.ones(2).bfloat16(), **states}, path)
    assert run(capsys, "project", path, out, "--rules", rules, "--key", "model")[0] == 0
    found, before = torch.load(out, weights_only=True), torch.load(path, weights_only=True)
    assert found["epoch"] == 3
    torch.testing.assert_close(found["model"]["a.weight"].norm(dim=1), torch.ones(4))
    assert found["model"]["a.weight"].data_ptr() == found["model"]["b.weight"].data_ptr()
    torch.testing.assert_close(found["optimizer"], before["optimizer"], rtol=0, atol=0)
    assert type(found["model"]) is type(before["model"])
    plan_of({"*": pg.UnitNorm(axis=1)}, {"b.weight": (4, 3)}).save(tmp_path / "plan.json")
    assert run(capsys, "check", out, "--plan", tmp_path / "plan.json", "--key", "model")[0] == 0
    code, _, error = run(capsys, "check", out, "--rules", rules, "--key", "modle")
    assert code == 2
    assert "no weights under 'modle'; the nearest: model." in error


def test_a_keras_file(tmp_path, capsys):
    keras = pytest.importorskip("keras")
    pytest.importorskip("h5py")
    from keras import layers

    from projgrad.keras import ProjectedOptimizer
    from projgrad_backends.keras.parameters import described

    class Own(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), name="scale")

        def call(self, x):
            return x * self.scale

    deep, stats = layers.Dense(6, name="deep"), layers.BatchNormalization(scale=False, name="batch_normalization")
    inner = keras.Sequential([keras.Input((6,)), deep, stats], name="inner")
    x = start = keras.Input((8, 3))
    for layer in (
        layers.Conv1D(4, 3, padding="same", name="conv"),
        layers.Bidirectional(layers.LSTM(3, return_sequences=True, name="lstm"), name="both"),
        lambda x: layers.MultiHeadAttention(2, 3, name="attention")(x, x),
        layers.GRU(6, use_bias=False, name="gru"),
        inner,
        layers.Dropout(0.5, seed=0),
        layers.LayerNormalization(name="norm"),
        Own(name="own"),
        layers.Dense(2, use_bias=False, dtype="bfloat16", name="out"),
    ):
        x = layer(x)
    model = keras.Model(start, x, name="net")
    held = {"*kernel": pg.UnitNorm(axis=0), "own/scale": None}
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(0.01), held, model=model)
    model.compile(optimizer, "mse", run_eagerly=True)
    optimizer.build(model.trainable_variables)
    optimizer.plan.save(tmp_path / "plan.json")
    path, out = tmp_path / "w.keras", tmp_path / "out.keras"
    model.save(path)
    assert run(capsys, "check", path, "--plan", tmp_path / "plan.json")[0] == 0
    for variable in model.trainable_variables:
        variable.assign(2 * variable)
    model.save(path)
    stored = open_weights(path).stored
    names = {"own/0" if p.name == "own/scale" else p.name: p.handle for p in described(model)}
    assert {name for name, s in stored.items() if s.parameter} == set(names)
    assert {name for name, s in stored.items() if not s.parameter} == {
        "inner/batch_normalization/moving_mean",
        "inner/batch_normalization/moving_variance",
    }
    for name, variable in names.items():
        value = np.asarray(keras.ops.convert_to_numpy(variable)).astype("float32")
        np.testing.assert_array_equal(stored[name].array, value)
    code, shown, _ = run(capsys, "check", path, "--plan", tmp_path / "plan.json")
    assert code == 1
    assert "outside: inner/deep/kernel is 1 away" in shown
    assert run(capsys, "project", path, out, "--plan", tmp_path / "plan.json")[0] == 0
    assert run(capsys, "check", out, "--plan", tmp_path / "plan.json")[0] == 0
    loaded = keras.models.load_model(out, custom_objects={"Own": Own})
    np.testing.assert_allclose(np.linalg.norm(loaded.get_layer("conv").kernel, axis=0), 1, rtol=1e-6)
    rules = written(tmp_path / "rules.toml", [{"names": {"keras": "*"}, "constraint": {"type": "NonNeg"}}])
    assert run(capsys, "project", path, tmp_path / "positive.keras", "--rules", rules)[0] == 0
    mean = open_weights(tmp_path / "positive.keras").stored["inner/batch_normalization/moving_mean"].array
    np.testing.assert_array_equal(mean, stored["inner/batch_normalization/moving_mean"].array)


def test_what_is_asked_wrongly_is_said(tmp_path, capsys, rules):
    path, out = saved(tmp_path / "w.npz", a__weight=W), tmp_path / "out.npz"
    ball = {"type": "MaxNorm"}
    moving = {"type": "MaxNorm", "max_value": {"type": "Schedule", "points": [[0, 1e9], [10, 0.1]]}, "axis": 1}
    for rule, says in (
        ({"names": "*.weihgt", "constraint": ball | {"axis": 1}}, "selects no parameter; the nearest: a.weight"),
        ({"names": "*.weight", "constraint": ball}, "a file of weights has no layers"),
        ({"names": "*.weight", "constraint": ball | {"axis": 2}}, "axis 2 does not exist"),
        ({"names": "*.weight", "constraint": moving}, "say which by --step"),
        ({"names": {"torch": "*.weight"}, "constraint": moving}, "names differs by framework"),
        ({"names": "*", "constraint": {"type": "halves"}}, "no set is registered as 'halves'"),
    ):
        code, _, error = run(capsys, "check", path, "--rules", written(tmp_path / "bad.toml", [rule]))
        assert code == 2
        assert says in error
        assert error.startswith("projgrad: error: ")
    schedule = written(tmp_path / "moving.toml", [{"names": {"torch": "*.weight"}, "constraint": moving}])
    with_step = ("check", path, "--rules", schedule, "--framework", "torch", "--step")
    assert run(capsys, *with_step, "0")[0] == 0
    assert run(capsys, *with_step, "10")[0] == 1
    assert run(capsys, "project", path, "--rules", rules)[0] == 2
    assert run(capsys, "project", path, out, "--in-place", "--rules", rules)[0] == 2
    assert run(capsys, "project", path, tmp_path / "out.pt", "--rules", rules)[0] == 2
    assert "ends in .safetensors" in run(capsys, "check", rules, "--rules", rules)[2]
    assert "No such file" in run(capsys, "check", tmp_path / "no.npz", "--rules", rules)[2]
    assert run(capsys, "check", path, "--rules", tmp_path / "no.toml")[0] == 2
    assert not out.exists()


def test_a_module_that_registers_a_set_is_imported_only_when_asked(tmp_path, capsys, monkeypatch):
    (tmp_path / "registers_thirds.py").write_text(
        "import projgrad\n\n@projgrad.register('thirds')\ndef thirds(x):\n    return x / 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = saved(tmp_path / "w.npz", w=W)
    rules = written(tmp_path / "rules.json", [{"names": "w", "constraint": {"type": "Function", "function": "thirds"}}])
    assert "import the module that registers it" in run(capsys, "check", path, "--rules", rules)[2]
    assert "registers_thirds" not in sys.modules
    assert run(capsys, "project", path, tmp_path / "o.npz", "--rules", rules, "--import", "registers_thirds")[0] == 1
    np.testing.assert_allclose(read(tmp_path / "o.npz")["w"], W / 3, rtol=1e-6)


# -- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_is_replaced_unless_it_is_asked_for(tmp_path, capsys, rules, ending):
    path = saved(tmp_path / f"w{ending}", a__weight=W)
    before = path.read_bytes()
    link, other, broken = (tmp_path / f"{name}{ending}" for name in ("link", "other", "broken"))
    link.symlink_to(path)
    broken.symlink_to(tmp_path / "nowhere")
    other.write_bytes(b"other")
    os.link(path, tmp_path / f"hard{ending}")
    for out in (path, link, other, broken, tmp_path / f"hard{ending}"):
        code, _, error = run(capsys, "project", path, out, "--rules", rules)
        assert code == 2
        assert "exists" in error
    assert path.read_bytes() == before
    assert other.read_bytes() == b"other"
    assert not (tmp_path / "nowhere").exists()
    # a link is replaced itself, as where several programs share what it leads to
    assert run(capsys, "project", link, "--in-place", "--rules", rules)[0] == 0
    assert path.read_bytes() == before
    assert not link.is_symlink()
    assert run(capsys, "project", path, "--in-place", "--rules", rules)[0] == 0
    assert run(capsys, "check", path, "--rules", rules)[0] == 0
    assert run(capsys, "project", path, other, "--rules", rules, "--overwrite")[0] == 0
    assert run(capsys, "check", other, "--rules", rules)[0] == 0
    assert not any(p.name.startswith(".") for p in tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_what_is_written_has_the_mode_of_what_is_read(tmp_path, capsys, rules):
    path = saved(tmp_path / "w.npz", a__weight=W)
    for mode in (0o640, 0o600):
        path.chmod(mode)
        for more in ([tmp_path / f"out{mode}.npz"], ["--in-place"]):
            assert run(capsys, "project", path, *more, "--rules", rules)[0] == 0
        assert [stat.S_IMODE(p.stat().st_mode) for p in (path, tmp_path / f"out{mode}.npz")] == [mode, mode]


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_is_left_of_what_cannot_be_written(tmp_path, capsys, rules, ending, monkeypatch):
    path = saved(tmp_path / f"w{ending}", a__weight=W)
    before = path.read_bytes()

    def full(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for more in ([tmp_path / f"out{ending}"], ["--in-place"]):
        code, _, error = run(capsys, "project", path, *more, "--rules", rules)
        assert (code, "no space left" in error) == (2, True)
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "rules.toml"}


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_not_finite_is_outside_and_is_not_projected(tmp_path, capsys, rules, ending):
    path = saved(tmp_path / f"w{ending}", a__weight=np.where(W.max() == W, np.nan, W).astype("float32"))
    code, shown, _ = run(capsys, "check", path, "--rules", rules)
    assert code == 1
    assert "NOT FINITE" in shown
    code, _, error = run(capsys, "project", path, tmp_path / f"out{ending}", "--rules", rules)
    assert code == 2
    assert "a.weight has a NaN" in error
    assert not (tmp_path / f"out{ending}").exists()


def test_the_command_as_a_process_needs_the_core_only(tmp_path, rules):
    path = saved(tmp_path / "w.safetensors", a__weight=W)
    code = (
        "import sys\nfrom projgrad.command import main\ncode = main(sys.argv[1:])\n"
        "assert not {'torch', 'jax', 'keras', 'tensorflow', 'h5py', 'safetensors', 'ml_dtypes'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "check", path, "--rules", rules], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "outside: a.weight" in done.stdout
