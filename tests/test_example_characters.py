"""The character models train, the norms are as said, and the network is that of the paper."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.printed import table

for _needed in ("torch", "matplotlib", "scipy", "tqdm"):
    pytest.importorskip(_needed)

import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def example(monkeypatch, one_thread):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("characters")


def test_table_sample_and_picture(example, capsys, tmp_path):
    picture = tmp_path / "characters.png"
    example.main(["--quick", "--out", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    found = {row["model"]: row for row in table(printed)}
    assert list(found) == list(example.CASES)
    for name, row in found.items():
        assert (row["norms"] == "1.000") == example.CASES[name].project
        assert (row["violation"] == "") != example.CASES[name].project
        assert float(row["violation"] or 0) < 1e-6
        assert 1 < float(row["loss"]) < 4.6  # less than that of a hundred symbols of equal chance
        assert f"--- {name} writes:\nThe " in printed


@pytest.fixture
def small(example):
    def small(sphere: bool):
        torch.manual_seed(0)
        return example.Transformer(50, 24, heads=2, context=16, depth=2, sphere=sphere)

    return small


@pytest.mark.parametrize("sphere", [True, False])
def test_no_position_sees_what_comes_later(small, sphere):
    model, text = small(sphere), torch.arange(16)[None]
    changed = text.clone()
    changed[0, 9:] += 20
    one, other = model(text), model(changed)
    assert (one[0, :9] - other[0, :9]).abs().max() < 1e-5
    assert (one[0, 9:] - other[0, 9:]).abs().min(0).values.max() > 1e-4


def test_all_is_on_the_sphere(example, small):
    model, seen = small(True), []
    example.project_params(model, example.RULES)
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0], output]))
    model(torch.arange(16)[None])
    assert len(seen) == 8
    for h in seen:
        torch.testing.assert_close(h.norm(dim=-1), torch.ones(1, 16))
    norms = torch.cat([matrix.norm(dim=1) for matrix in example.matrices(model)])
    torch.testing.assert_close(norms, torch.ones_like(norms))
    assert all(matrix.shape[1] == 24 for matrix in example.matrices(model))


def test_positions_are_relative(small):
    attention = small(True).blocks[0].layer
    x, y = torch.randn(2, 1, 1, 1, 12).expand(2, 1, 1, 16, 12)
    products = (attention.rotated(x) @ attention.rotated(y).transpose(-1, -2))[0, 0]
    for offset in (0, 3):
        diagonal = products.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)
    assert abs(products[0, 0] - products[0, 3]) > 1e-2


def test_the_text_is_held_back_in_pieces(example):
    symbols, kept, held = example.manual()
    text = "".join(symbols[i] for i in kept.tolist())
    assert len(symbols) == int(torch.cat([kept, held]).max()) + 1
    assert 0.04 < len(held) / (len(kept) + len(held)) < 0.06
    assert "Python" in text
    assert "".join(symbols[i] for i in held[:500].tolist()) not in text


def test_the_step_that_reaches_a_loss(example):
    run = example.Run.__new__(example.Run)
    run.losses = [4.0, 3.0, 1.0]
    assert example.reached(run, [0, 10, 20], 2.0) == "15"
    assert example.reached(run, [0, 10, 20], 0.5) == "-"
