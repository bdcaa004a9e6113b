"""The example of non-negative weights runs, keeps its promises, and shows why relu of free weights is another thing."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.printed import table

for _needed in ("matplotlib", "sklearn", "torch", "tqdm"):
    pytest.importorskip(_needed)

import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    threads = torch.get_num_threads()
    yield importlib.import_module("nonnegative")
    torch.set_num_threads(threads)


def test_it_runs(example, capsys, tmp_path):
    picture = tmp_path / "nonnegative.png"
    example.main(["--seeds", "1", "--gradients", "20", "--out", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = table(capsys.readouterr().out)
    assert [(row["weights"], row["optimizer"]) for row in found] == [(c.label, c.optimizer) for c in example.CASES]


def test_the_table_of_rates(example, capsys):
    example.main(["--quick", "--gradients", "3", "--rates"])
    rows = [list(row.items()) for row in table(capsys.readouterr().out)]
    assert [rate for rate, _ in rows[0][2:]] == [f"{rate:g}" for rate in example.RATES]
    assert [(label, optimizer) for (_, label), (_, optimizer), *_ in rows] == [
        (case.label, case.optimizer) for case in example.CASES if case.rate
    ]
    assert all(case.rate in example.RATES for case in example.CASES if case.rate)
    first = example.train(example.CASES[0]._replace(rate=example.RATES[0]), 0, 3, lambda _: None)
    assert rows[0][2][1] == f"{first.losses[-1]:.4f}"


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("weights", ["projected", "relu", "softplus", "square", "exp"])
def test_weights_and_biases_are_not_negative(example, weights, half):
    if half and weights not in ("projected", "relu"):
        pytest.skip("starts above zero")
    model = example.network(example.Case(weights, "Adam", half=half))
    optimizer = example.optimizer_of(example.Case(weights, "Adam", 0.05, half), model)
    x, y, *_ = example.data(0)
    for _ in range(10):
        optimizer.zero_grad()
        example.loss_of(model, x, y).backward()
        optimizer.step()
    for layer in example.layers(model):
        assert layer.weight.min() >= 0
        assert layer.bias.min() >= 0


def test_all_start_at_the_same_weights(example):
    starts = []
    for weights in ("projected", "relu", "softplus", "square", "exp"):
        torch.manual_seed(0)
        starts.append(example.network(example.Case(weights, "Adam"))[0].weight.detach())
    for start in starts[1:]:
        torch.testing.assert_close(start, starts[0], rtol=1e-4, atol=1e-7)


def test_half_of_the_weights_are_stuck_under_relu_but_not_projected(example):
    shares = {}
    for weights in ("projected", "relu"):
        run = example.train(example.Case(weights, "Adam", 0.01, half=True), 0, 30, lambda _: None)
        shares[weights] = run.stuck
    assert shares["projected"] == 0
    assert shares["relu"] > 0.1


def test_sign_steps(example):
    """Lengths grow by a fifth while the sign stays, halve when it turns, and never leave their bounds."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = example.SignSteps([weight], lr=0.1, longest=0.13)
    for gradient, expected in [([2.0, 3.0], [0.9, 0.9]), ([9.0, -1.0], [0.78, 0.95]), ([0.1, -1.0], [0.65, 1.01])]:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), torch.tensor(expected))
