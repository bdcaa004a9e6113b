"""The example runs in every framework, tells the truth about the constraints, and draws its picture."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.printed import table

for _needed in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(_needed)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def moons(monkeypatch, capsys, tmp_path):
    """Run the example with some arguments; return the cells of its table by row and column."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    main = importlib.import_module("moons").main

    def run(*args: str) -> dict[str, dict[str, str]]:
        picture = tmp_path / "moons.png"
        main([*args, "--out", str(picture)])
        assert picture.read_bytes().startswith(b"\x89PNG")
        printed = capsys.readouterr().out
        assert "test 0.914" in printed
        assert "0.943 with unit norm" in printed
        return {row["constraint"]: row for row in table(printed)}

    torch = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
    threads = torch.get_num_threads() if torch else 0
    yield run
    if torch:
        torch.set_num_threads(threads)


def _skip_without(framework: str) -> None:
    for name in {"torch": ("torch",), "jax": ("jax", "optax"), "keras": ("keras", "tensorflow")}[framework]:
        pytest.importorskip(name)
    if framework == "keras" and importlib.import_module("keras").backend.backend() != "tensorflow":
        pytest.skip("the compiled loop is for Keras on TensorFlow")


@pytest.mark.parametrize("framework", ["torch", *(pytest.param(f, marks=pytest.mark.slow) for f in ("jax", "keras"))])
def test_constraints_hold(moons, framework):
    _skip_without(framework)
    seeds = "1" if framework == "keras" else "2"  # Keras compiles for every seed
    found = moons(
        "--framework", framework, "--epochs", "25", "--seeds", seeds, "--constrain-output", "--constrain-bias"
    )
    assert list(found) == ["none", "UnitNorm()", "MinMaxNorm(1, 1)", "MaxNorm(1)"]
    norms = ("hidden norms", "output norm", "hidden bias norm")
    for label in ("UnitNorm()", "MinMaxNorm(1, 1)"):
        assert [found[label][column] for column in norms] == ["1.000"] * 3
    for column in norms:
        assert float(found["MaxNorm(1)"][column].split()[-1]) <= 1
        assert found["none"][column] != "1.000"
    for label, row in found.items():
        assert (row["violation"] == "") if label == "none" else float(row["violation"]) < 2e-6
        mean, *deviation = row["train accuracy"].split(" ± ")
        assert 0.3 < float(mean) <= 1
        assert len(deviation) == int(seeds) - 1


def test_only_the_hidden_layer_unless_asked(moons):
    pytest.importorskip("torch")
    row = moons("--epochs", "5", "--seeds", "1")["UnitNorm()"]
    assert row["hidden norms"] == "1.000"
    assert row["output norm"] != "1.000"
    assert "hidden bias norm" not in row


def test_radii(moons):
    pytest.importorskip("torch")
    found = moons("--epochs", "3", "--seeds", "1", "--radius")
    assert len(found) == 7
    assert found["MinMaxNorm(0.3, 0.3)"]["hidden norms"] == "0.300"
    assert list(moons("--epochs", "3", "--seeds", "1", "--radius", "0.5")) == ["none", "MinMaxNorm(0.5, 0.5)"]


@pytest.mark.parametrize("options", [["jax"], ["keras", "--fit"]], ids=" ".join)
def test_one_radius_in_the_other_frameworks(moons, options):
    _skip_without(options[0])
    found = moons("--framework", *options, "--epochs", "2", "--seeds", "1", "--radius", "1")
    assert found["MinMaxNorm(1, 1)"]["hidden norms"] == "1.000"


def test_runs_from_elsewhere(tmp_path):
    pytest.importorskip("torch")
    command = [sys.executable, str(EXAMPLES / "moons.py"), "--epochs", "2", "--seeds", "1"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "moons-torch.png").exists()


def test_the_page_of_sets_says_what_the_docstrings_say(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    catalogue = importlib.import_module("catalogue")
    assert (EXAMPLES / "catalogue" / "README.md").read_text() == catalogue.page(catalogue.examples())
    assert set(catalogue.PEERS) <= set(catalogue.sets())
    for name, (constraint, layout) in catalogue.examples().items():
        assert type(constraint).__name__ == name
        assert (EXAMPLES / "catalogue" / f"{name}.png").exists()
        points = catalogue.np.asarray([[1.5, -0.3], [0.2, 0.1]])
        assert catalogue.BACK[layout](layout(points)).tolist() == points.tolist()
    constraint, layout = catalogue.examples()["UnitNorm"]
    catalogue.draw("UnitNorm", constraint, layout).savefig(tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 5000


def test_the_moons_in_the_metric_of_adam(moons):
    _skip_without("torch")
    found = moons("--framework", "torch", "--epochs", "25", "--seeds", "1", "--metric", "optimizer")
    assert all(float(row["violation"] or 0) < 1e-6 for row in found.values())


def test_the_two_limits_of_adam(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    metric = importlib.import_module("metric")
    picture = tmp_path / "metric.png"
    metric.main(["--quick", "--out", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    least = metric.best()
    ends = [metric.adam(in_metric)[-1] for in_metric in (True, False)]
    assert abs(ends[0] - least).max() < 1e-5
    assert abs(ends[1] - least).max() > 0.2
    assert 0 <= metric.value(ends[0]) - metric.value(least) + 1e-15 < 1e-14  # where both are as low as can be
    assert "above the minimum" in capsys.readouterr().out
