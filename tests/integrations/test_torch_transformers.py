"""Models of Hugging Face transformers: their layers are known, and presets tell them."""

from __future__ import annotations

from typing import Any

import pytest

import projgrad as pg
from projgrad import presets

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from projgrad.torch import ProjectedOptimizer, audit, violations


@pytest.fixture
def gpt2() -> Any:
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12, "vocab_size": 31}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def test_gpt2_trains_on_the_hypersphere(gpt2: Any) -> None:
    rules = presets.ngpt(gpt2)
    axes = {"attn.c_attn": 0, "attn.c_proj": 1, "mlp.c_fc": 0, "mlp.c_proj": 1}  # weights are stored as (in, out)
    layers = {f"transformer.h.{i}.{name}.weight": axis for i in range(2) for name, axis in axes.items()}
    embeddings = {"transformer.wte.weight": 1, "transformer.wpe.weight": 1}  # the first of them is the head too
    assert rules == {name: pg.UnitNorm(axis=axis) for name, axis in (embeddings | layers).items()}
    tokens = torch.randint(31, (4, 12))
    optimizer = ProjectedOptimizer(torch.optim.Adam(gpt2.parameters(), lr=0.01), rules, model=gpt2)
    before = float(gpt2(input_ids=tokens, labels=tokens).loss.detach())
    for _ in range(5):
        optimizer.zero_grad()
        loss = gpt2(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        audit(gpt2, rules)
    assert float(loss.detach()) < before


def test_incoming_axes_of_gpt2(gpt2: Any) -> None:
    pattern = "*.c_*.weight"
    found = violations(gpt2, {pattern: pg.UnitNorm()})
    assert len(found) == 8
    assert found == violations(gpt2, {pattern: pg.UnitNorm(axis=0)})
