"""The example of max-norms runs in every framework, and "incoming" means the same weights in all."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.printed import table

for _needed in ("matplotlib", "tqdm", "mlxtend"):
    pytest.importorskip(_needed)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NEEDS = {"torch": ("torch",), "jax": ("jax", "optax", "flax.nnx"), "keras": ("keras",)}


@pytest.fixture
def example(monkeypatch):
    """The module of the example, for frameworks that are installed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    threads = None

    def load(*frameworks: str):
        nonlocal threads
        for name in (name for framework in frameworks for name in NEEDS[framework]):
            pytest.importorskip(name)
        if "torch" in frameworks:
            threads = sys.modules["torch"].get_num_threads()
        return importlib.import_module("maxnorm")

    yield load
    if threads:
        sys.modules["torch"].set_num_threads(threads)


def test_radii_that_are_many_or_none(example, capsys, tmp_path):
    maxnorm, picture = example("torch"), tmp_path / "maxnorm.png"
    options = ["--quick", "--epochs", "1", "--networks", "MLP", "--out", str(picture)]
    maxnorm.main([*options, "--radius", *"654321"])
    assert len(table(capsys.readouterr().out)) == 14
    assert picture.exists()
    with pytest.raises(ValueError, match="at least 0"):
        maxnorm.main([*options, "--radius", "-1"])
    assert "epoch" not in capsys.readouterr().err  # nothing was trained


@pytest.mark.parametrize(
    ("framework", "networks"),
    [
        ("torch", ["MLP", "CNN", "LSTM"]),
        pytest.param("jax", ["CNN"], marks=pytest.mark.slow),
        pytest.param("keras", ["LSTM"], marks=pytest.mark.slow),
    ],
)
def test_norms_stay_below_their_radius(example, capsys, tmp_path, framework, networks):
    maxnorm, picture = example(framework), tmp_path / "maxnorm.png"
    options = ["--framework", framework, "--quick", "--radius", "0.4", "--out", str(picture)]
    maxnorm.main([*options, "--networks", *networks])
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = table(capsys.readouterr().out)
    labels = ["none", "none, dropout", "MaxNorm(0.4)", "MaxNorm(0.4), dropout"]
    assert [(row["network"], row["constraint"]) for row in found] == [(n, c) for n in networks for c in labels]
    for row in found:
        if row["constraint"].startswith("none"):
            assert float(row["kernels"]) > 0.4
            assert row["violation"] == ""
        else:
            assert row["kernels"] == "0.400"
            assert float(row["biases"]) <= 0.4
            assert float(row["violation"]) < 2e-6
        assert (row["recurrent"] == "") == (row["network"] != "LSTM")
        assert 0 < float(row["test"]) <= 1


@pytest.mark.parametrize("network", ["MLP", *(pytest.param(name, marks=pytest.mark.slow) for name in ("CNN", "LSTM"))])
def test_incoming_is_the_same_in_all_frameworks(example, network):
    maxnorm = example(*NEEDS)
    start = {name: 3 * weight + 0.1 for name, weight in maxnorm.initial(network, 0).items()}
    image, norms, logits = maxnorm.digits(1)[0], [], []
    for framework, door in maxnorm.DOORS.items():
        backend = importlib.import_module(f"maxnorm_{framework}")
        model = backend.build(network, start, 0.0, 0)
        importlib.import_module(f"projgrad.{door}").project_params(model, maxnorm.rules_for(1.0, framework))
        weights = backend.weights(model)
        np.testing.assert_array_equal(weights["output/kernel"], start["output/kernel"])
        norms.append({kind: maxnorm.norms(weights, kind) for kind in maxnorm.KINDS})
        logits.append(backend.logits(model, image))
    for kind, first in norms[0].items():
        by_hand = np.minimum(maxnorm.norms(start, kind), 1)
        np.testing.assert_allclose(first, by_hand, rtol=1e-5)
        for other in norms[1:]:
            np.testing.assert_allclose(other[kind], first, rtol=1e-6)
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], atol=1e-5 * np.abs(logits[0]).max())


@pytest.mark.slow
def test_the_table_of_layouts(example, capsys):
    example(*NEEDS).main(["--layouts", "--radius", "0.5", "--networks", "CNN"])
    row = next(row for row in table(capsys.readouterr().out) if row["weights"] == "first/kernel")
    assert row["torch: shape, axis"] == "(16, 1, 3, 3), (1, 2, 3)"
    assert row["jax: shape, axis"] == row["keras: shape, axis"] == "(3, 3, 1, 16), (0, 1, 2)"
    assert row["largest norms after projection"] == "0.500000 0.500000 0.500000"


def test_biases_may_be_free(example, capsys, tmp_path):
    options = ["--quick", "--radius", "0.4", "--networks", "LSTM", "--free-biases", "--out", str(tmp_path / "one.png")]
    example("torch").main(options)
    row = table(capsys.readouterr().out)[-1]
    assert row["recurrent"] == "0.400"
    assert float(row["biases"]) > 7  # the ones in the forget gate's
