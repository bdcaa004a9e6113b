"""All examples take the same options, overwrite no picture of the repository, and say early what is wrong."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

for _needed in ("torch", "matplotlib", "mlxtend", "scipy", "sklearn", "tqdm"):
    pytest.importorskip(_needed)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FRAMEWORKS = {
    "autoencoder": ["torch", "jax"],
    "characters": ["torch"],
    "digits": ["torch"],
    "lipschitz": ["torch"],
    "maxnorm": ["torch", "jax", "keras"],
    "metric": ["numpy"],
    "moons": ["torch", "jax", "keras"],
    "morphology": ["torch", "keras"],
    "nmf": ["torch"],
    "nonnegative": ["torch"],
    "shapes": ["torch", "jax"],
    "simplex": ["torch", "jax"],
    "wgan": ["torch"],
}


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("common")


def test_all_examples_are_here():
    mains = {path.stem for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text()}
    assert mains == {*FRAMEWORKS, "catalogue"}


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_picture_is_named_after_the_framework_and_none_of_the_repository(common, monkeypatch, tmp_path, name):
    class ReachedError(Exception):
        pass

    def stop(_, path):
        raise ReachedError(path)

    monkeypatch.setattr(common, "check_out", stop)
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(name).main
    for framework in FRAMEWORKS[name]:
        which = ["--framework", framework] * (len(FRAMEWORKS[name]) > 1)
        expected = f"{name}-{framework}.png"
        for out, path in ([], Path(expected)), (["--out", str(tmp_path)], tmp_path / expected):
            with pytest.raises(ReachedError) as reached:
                main([*which, *out])
            assert reached.value.args == (path,)
        assert not (EXAMPLES / expected).exists()
    assert (EXAMPLES / f"{name}.png").exists()


@pytest.mark.parametrize("name", [*FRAMEWORKS, "catalogue"])
def test_what_cannot_be_written_is_found_before_training(common, capsys, tmp_path, name):
    (tmp_path / "file").touch()
    out, quick = tmp_path / "file" / "picture.png", ["--quick"] * (name != "catalogue")
    with pytest.raises(SystemExit):
        importlib.import_module(name).main([*quick, "--out", str(out)])
    assert f"--out {out}" in capsys.readouterr().err.splitlines()[-1]


def test_a_picture_of_no_known_kind(common, capsys, tmp_path):
    for name in ("picture", "picture.xyz"):
        with pytest.raises(SystemExit):
            importlib.import_module("metric").main(["--out", str(tmp_path / name)])
        assert "kind of picture" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_looking_whether_it_can_be_written_leaves_no_trace(common, tmp_path):
    parser, old, new = common.parser("name", "What it is.\nMore.", "torch"), tmp_path / "old.png", tmp_path / "new.png"
    old.write_bytes(b"picture")
    for path in (old, new):
        assert common.parse(parser, ["--out", str(path)]).out == path
    assert old.read_bytes() == b"picture"
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], (9, 8, 7)),
        (["--quick"], (2, 1, 0)),
        (["--quick", "--steps", "5"], (5, 1, 0)),
        (["--width", "4"], (9, 4, 7)),
    ],
)
def test_quick_changes_defaults_only(common, monkeypatch, tmp_path, given, expected):
    monkeypatch.chdir(tmp_path)
    parser = common.parser("name", "What it is.\nMore.", "torch")
    parser.add_argument("--steps", type=common.count, default=9)
    parser.add_argument("--width", type=common.count, default=8)
    parser.set_defaults(hidden=7)
    args = common.parse(parser, given, steps=2, width=1, hidden=0)
    assert (args.steps, args.width, args.hidden) == expected


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "many"])
def test_counts_are_at_least_one(common, capsys, given):
    parser = common.parser("name", "What it is.\nMore.", "torch")
    parser.add_argument("--steps", type=common.count)
    with pytest.raises(SystemExit):
        parser.parse_args(["--steps", given])
    assert "--steps" in capsys.readouterr().err


COUNTS = {
    "autoencoder": ["steps", "batch", "atoms"],
    "characters": ["steps", "batch", "context", "width", "heads", "depth"],
    "maxnorm": ["epochs", "seeds"],
    "moons": ["epochs", "seeds"],
    "morphology": ["epochs", "seeds"],
    "nonnegative": ["gradients", "seeds"],
    "shapes": ["steps", "seeds"],
}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        *((f"{name} --{option} 0", "must be at least 1") for name, options in COUNTS.items() for option in options),
        ("autoencoder --penalties 0.1 -1", "--penalties must be at least 0"),
        ("autoencoder --steps 15", "--steps must be a multiple of ten"),
        ("characters --context 100000", "--context must be below"),
        ("characters --only other", "invalid choice"),
        ("characters --width 30", "--width must be a multiple of twice --heads"),
        ("moons --fit", "--fit is for --framework keras"),
        ("moons --framework other", "invalid choice"),
        ("morphology --framework jax", "invalid choice"),
        ("nmf --steps 15", "--steps must be a multiple of ten"),
        ("wgan --width 7", "--width must be a multiple of two"),
    ],
)
def test_wrong_options_are_said(common, monkeypatch, capsys, tmp_path, command, said):
    monkeypatch.chdir(tmp_path)
    name, *options = command.split()
    with pytest.raises(SystemExit):
        importlib.import_module(name).main(options)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "package"),
    [("metric", "matplotlib"), pytest.param("maxnorm --framework jax", "flax", marks=pytest.mark.slow)],
)
def test_a_missing_package_is_said_with_the_command_that_installs_it(common, tmp_path, command, package):
    if package == "flax":
        pytest.importorskip("optax")
    absent = f"raise ModuleNotFoundError(\"No module named '{package}'\", name='{package}')"
    (tmp_path / f"{package}.py").write_text(absent)
    name, *options = command.split()
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *options]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"No module named '{package}'" in done.stderr
    assert done.stderr.rstrip().endswith(common.INSTALL)
    assert f".venv/bin/{common.INSTALL}" in (EXAMPLES / "README.md").read_text()


def test_tables(common):
    assert common.table([["a", "bc"], ["def", "g"]]) == "| a   | bc |\n| --- | -- |\n| def | g  |"
    assert common.spread([1.0, 3.0]) == "2.000 ± 1.414"
    assert common.spread([2.0], 1) == "2.0"
    assert common.interval(np.array([0.5, 0.1])) == "0.100 to 0.500"
    assert common.interval(np.array([1.0, 0.9999])) == "1.000"


def test_tiles_are_joined_row_after_row(common):
    tiles = np.arange(12.0).reshape(3, 2, 2)
    joined = common.mosaic(tiles, 2)
    assert joined.shape == (5, 5)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, 2)
        np.testing.assert_array_equal(joined[3 * row : 3 * row + 2, 3 * column : 3 * column + 2], tile)
    assert np.isnan(joined).sum() == 25 - 12
    assert common.mosaic(tiles, 3, gap=2).shape == (2, 10)


def test_mnist_is_in_an_order_of_its_own(common):
    images, digits = common.mnist()
    assert images.shape == (5000, 28, 28)
    assert (images.min(), images.max()) == (0, 1)
    assert (np.bincount(digits) == 500).all()
    assert len(set(digits[:50])) == 10
