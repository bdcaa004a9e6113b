"""Cases where each process has all of the weights: `test_torch_replicated` calls them in two processes at once."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import distributed, optim
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import projgrad as pg
from projgrad.torch import ProjectedOptimizer, audit, violations
from tests.integrations.sharded_cases import check_equal, network, train
from tests.torch_network import clip

MAXNORM: dict[str, Any] = {"*.weight": pg.MaxNorm(0.5)}
COUNTED: dict[str, Any] = {"*.weight": pg.MaxNorm(pg.Schedule({0: 0.3, 10: 0.8}), rate=0.5).every(2)}


def loss(model: Any, step: int, rows: slice = slice(None)) -> Any:
    random = torch.Generator().manual_seed(100 + step)
    x, y = torch.randn(8, 6, generator=random), torch.randn(8, 3, generator=random)
    return (model(x[rows]) - y[rows]).square().mean()


def check_alike(model: Any) -> None:
    """All processes have the same weights, bit for bit."""
    for p in model.parameters():
        other = p.detach().clone()
        distributed.broadcast(other, 0)
        assert torch.equal(p, other)


def data_parallel() -> None:
    """Each has a half of a batch; accumulated over two batches."""
    half = slice(0, 4) if distributed.get_rank() == 0 else slice(4, 8)
    for options in ({}, {"gradient_as_bucket_view": True}, {"static_graph": True}):
        model, reference = network(), network()
        copies = DistributedDataParallel(model, **options)
        optimizer = ProjectedOptimizer(optim.Adam(copies.parameters(), 0.1), MAXNORM, model=copies)
        bare = optim.Adam(reference.parameters(), 0.1)
        clip(reference)
        accumulate = not options
        for step in range(6):
            last = step % 2 == 1
            with copies.no_sync() if accumulate and not last else contextlib.nullcontext():
                loss(copies, step, half).backward()
            loss(reference, step).backward()
            if last or not accumulate:
                for each in (optimizer, bare):
                    each.step()
                    each.zero_grad()
                clip(reference)
        check_equal(model, reference)
        check_alike(model)
        audit(copies, MAXNORM)


def zero_inside() -> None:
    for options in ({}, {"parameters_as_bucket_view": True}):
        model, reference = network(), network()
        copies = DistributedDataParallel(model)
        spread = ZeroRedundancyOptimizer(copies.parameters(), optim.Adam, lr=0.1, **options)
        train(copies, ProjectedOptimizer(spread, MAXNORM, model=copies), 0, 4)
        bare = optim.Adam(reference.parameters(), 0.1)
        clip(reference)
        for step in range(4):
            train(reference, bare, step, step + 1)
            clip(reference)
        check_equal(model, reference)
        check_alike(model)


def zero_resumed() -> None:
    def made(weights: Any = None) -> Any:
        model = network()
        if weights is not None:
            model.load_state_dict(weights)
        copies = DistributedDataParallel(model)
        spread = ZeroRedundancyOptimizer(copies.parameters(), optim.Adam, lr=0.1)
        return copies, ProjectedOptimizer(spread, COUNTED, model=copies)

    whole, stopped = made(), made()
    train(*whole, 0, 7)
    train(*stopped, 0, 3)
    with pytest.raises(AttributeError, match=r"\.inner\.consolidate_state_dict"):
        stopped[1].consolidate_state_dict()
    stopped[1].inner.consolidate_state_dict(to=0)
    saved: list[Any] = [copy.deepcopy(stopped[1].state_dict()) if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(saved)
    assert saved[0]["projgrad"] == {"step": 3}
    for weights in (None, stopped[0].module.state_dict()):  # loaded after wrapping, and before
        resumed = made(copy.deepcopy(weights))
        if weights is None:
            resumed[0].load_state_dict(stopped[0].state_dict())
        resumed[1].load_state_dict(copy.deepcopy(saved[0]))
        train(*resumed, 3, 7)
        for p, q in zip(resumed[0].parameters(), whole[0].parameters(), strict=True):
            assert torch.equal(p, q)


def zero_and_the_metric() -> None:
    model = network()
    spread = ZeroRedundancyOptimizer(model.parameters(), optim.Adam, lr=0.1)
    with pytest.raises(ValueError, match="ZeroRedundancyOptimizer.*register_metric"):
        ProjectedOptimizer(spread, MAXNORM, model=model, metric="optimizer")


def accelerated() -> None:
    accelerate = pytest.importorskip("accelerate")
    os.environ.update(MASTER_ADDR="127.0.0.1", LOCAL_WORLD_SIZE="2")  # which it asks for, though the group exists
    accelerator = accelerate.Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    model, reference = network(), network()
    inner = ProjectedOptimizer(optim.Adam(model.parameters(), 0.1), MAXNORM, model=model)
    copies, optimizer = accelerator.prepare(model, inner)
    assert isinstance(copies, DistributedDataParallel)
    bare = optim.Adam(reference.parameters(), 0.1)
    clip(reference)
    half = slice(0, 4) if distributed.get_rank() == 0 else slice(4, 8)
    for step in range(4):
        accelerator.backward(loss(copies, step, half))
        loss(reference, step).backward()
        for each in (optimizer, bare):
            each.step()
            each.zero_grad()
        clip(reference)
    check_equal(model, reference)
    check_alike(model)
    assert max(violations(copies, MAXNORM).values()) < 1e-6


CASES: list[Callable[[], None]] = [data_parallel, zero_inside, zero_resumed, zero_and_the_metric, accelerated]
