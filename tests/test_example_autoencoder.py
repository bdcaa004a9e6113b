"""The sparse autoencoder trains in both frameworks, which agree, and what the table says of the norms is true."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tests.printed import table

for _needed in ("matplotlib", "mlxtend", "tqdm"):
    pytest.importorskip(_needed)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NEEDED = {"torch": "torch", "jax": "optax"}


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    torch = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
    threads = torch.get_num_threads() if torch else 0
    yield importlib.import_module("autoencoder")
    if torch:
        torch.set_num_threads(threads)  # the example takes one


@pytest.mark.parametrize("framework", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_table_and_picture(example, framework, capsys, tmp_path):
    pytest.importorskip(NEEDED[framework])
    picture = tmp_path / "atoms.png"
    example.main(["--quick", "--framework", framework, "--out", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = {row["atoms"]: row for row in table(capsys.readouterr().out)}
    assert list(found) == list(example.CASES)
    for name, row in found.items():
        assert (row["norms"] == "1.000") == (not name.startswith("free"))
        assert 1 < float(row["active"]) < 100
        assert 0 < float(row["unexplained"].removesuffix(" %")) < 100
    one, other = (float(found[name]["unexplained"].removesuffix(" %")) for name in ("projgrad", "by hand"))
    assert one == pytest.approx(other, rel=0.01)  # one makes the momentum tangent too


@pytest.fixture
def run(example):
    """Train a case for some steps; return the weights before and after."""
    train, _ = example.patches(500)
    begin = example.start(train, 50)
    batches = train[np.random.default_rng(0).integers(0, len(train), (30, 16))]

    def run(case, framework="torch", penalty=0.1):
        pytest.importorskip(NEEDED[framework])
        training = importlib.import_module(f"autoencoder_{framework}").Training(begin, example.CASES[case], penalty)
        training.advance(batches)
        return begin, training.weights()

    return run


@pytest.mark.slow
@pytest.mark.parametrize("case", ["projgrad", "by hand", "projgrad, update", "free", "free, weighted"])
def test_frameworks_agree(run, case):
    _, one = run(case, "torch")
    begin, other = run(case, "jax")
    for name, weights in one.items():
        assert np.abs(weights - begin[name]).max() > 0.003  # it moved
        np.testing.assert_allclose(other[name], weights, atol=2e-4)


def test_the_penalty_makes_free_atoms_grow_and_weights_stop_that(run):
    grown, weighted = (
        np.linalg.norm(run(case, penalty=1.0)[1]["decoder"], axis=1) for case in ("free", "free, weighted")
    )
    assert grown.mean() > 1.01
    assert weighted.mean() < grown.mean() - 0.01


def test_patches_are_of_different_images_and_of_variance_one(example):
    train, test = example.patches(500)
    assert train.shape[1] == test.shape[1] == example.SIDE**2
    assert np.isclose(train.var(axis=0).sum(), 1, atol=1e-4)
    assert not {patch.tobytes() for patch in train} & {patch.tobytes() for patch in test}


def test_error_at_a_sparsity_is_not_extrapolated(example):
    rest = {"dead": 0, "norms": np.ones(1), "actives": np.ones(1), "milliseconds": 1.0, "atoms": np.ones(1)}
    found = [example.Found(0.01, 20.0, **rest), example.Found(0.04, 5.0, **rest)]
    assert example.at(10, found) == "2.00 %"
    assert example.at(4, found) == example.at(21, found) == "-"
