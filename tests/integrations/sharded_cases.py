"""What holds for sharded parameters: `test_torch_sharded` calls each function in several processes at once."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import projgrad as pg
from projgrad.torch import ProjectedOptimizer, project_, project_params, violations


def network(rows: int = 5) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, rows), nn.Tanh(), nn.Linear(rows, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    return model


def sharded(model: Any, **options: Any) -> Any:
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, **options)
    return fully_shard(model, **options)


def sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.3, momentum=0.9)


def adam(parameters: Any) -> Any:
    return torch.optim.Adam(parameters, lr=0.1)


def train(model: Any, optimizer: Any, start: int, stop: int) -> None:
    for step in range(start, stop):
        random = torch.Generator().manual_seed(100 + step)
        x, y = torch.randn(8, 6, generator=random), torch.randn(8, 3, generator=random)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def whole(x: Any) -> Any:
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach()


def check_equal(model: Any, reference: Any) -> None:
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(whole(p), whole(q), msg=lambda text, name=name: f"{name}: {text}")


def check_like_one_process(rules: Any, make: Any = sgd, *, rows: int = 5, shard: Any = sharded, **options: Any) -> Any:
    model, reference = shard(network(rows)), network(rows)
    reports = []
    for each in (model, reference):
        optimizer = ProjectedOptimizer(make(each.parameters()), rules, model=each, record=True, **options)
        train(each, optimizer, 0, 4)
        reports.append(optimizer.report().scalars())
    check_equal(model, reference)
    assert reports[0] == pytest.approx(reports[1], rel=1e-3, abs=1e-5)
    found, expected = violations(model, rules, step=4), violations(reference, rules, step=4)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), atol=1e-6)
    return model


DEAD = "0.weight: the tensor that the optimizer holds is not the model's any more"
BOUNDS = np.linspace(0.0, 0.3, 30).reshape(5, 6)
RULES: dict[str, Any] = {
    "rows": {"*.weight": pg.MaxNorm(0.5, axis=1), "*.bias": pg.NonNeg()},
    "columns": {"*.weight": pg.MaxNorm(0.5, axis=0), "*.bias": pg.Simplex()},
    "bounds of each entry": {"0.weight": pg.Box(BOUNDS - 0.1, BOUNDS)},
    "slices": {"0.weight": pg.Slices({(0, 2): pg.UnitNorm(axis=1), (2, None): pg.Simplex(axis=0)})},
    "joint": {"0.*": pg.Joint(pg.MaxNorm(0.7)), "2.*": pg.Joint(pg.MaxNorm(0.7, axis=None))},
}
TANGENT: dict[str, Any] = {
    option: {
        "0.weight": pg.Tag(pg.UnitNorm(axis=0), tangent=option),
        "0.bias": pg.Tag(pg.MaxNorm(0.3, axis=0), tangent=option),
        "2.weight": pg.Tag(pg.Simplex(axis=1), tangent=option),
        "2.bias": pg.Tag(pg.NonNeg(), tangent=option),
    }
    for option in ("gradient", "update")
}


# -- one quick one ------------------------------------------------------------------------------------------------


def quick() -> None:
    for rules in RULES.values():
        check_like_one_process(rules)
    check_like_one_process(TANGENT["gradient"])
    x = distribute_tensor(torch.ones(4, 3), init_device_mesh("cpu", (2,)), [Shard(0)])
    for act in (pg.NonNeg().project, pg.MaxNorm(0.5, axis=1).violation, pg.Simplex(axis=0).contains):
        with pytest.raises(TypeError, match=r"DTensor is spread over processes: .*project_\(x, constraint\)"):
            act(x)
    with pytest.raises(RuntimeError, match=DEAD):
        wrap_then_shard()


def wrap_then_shard() -> None:
    model = network()
    optimizer = ProjectedOptimizer(adam(model.parameters()), RULES["rows"], model=model)
    train(sharded(model), optimizer, 0, 1)


# -- equal to one process -----------------------------------------------------------------------------------------


def any_number_of_rows() -> None:
    for rows in (1, 4):
        for rules in (RULES["rows"], RULES["columns"], RULES["joint"], TANGENT["update"]):
            check_like_one_process(rules, rows=rows)
    for rules in ({"*.weight": pg.Orthogonal()}, {"*.weight": pg.SpectralNorm(0.5)}, {"*": pg.Box(-0.1, 0.1)}):
        check_like_one_process(rules, rows=5)


def functions_schedules_rates_and_intersections() -> None:
    ball = pg.MaxNorm(pg.Schedule({0: 0.2, 4: 1.0}), axis=0, rate=0.5)
    check_like_one_process({"*.weight": ball.every(2), "0.bias": lambda x: x / x.norm().clamp(min=0.5)})
    check_like_one_process({"0.weight": pg.MaxNorm(0.5, axis=1) & pg.MaxNorm(0.4, axis=0)})
    check_like_one_process({"0.weight": pg.NonNeg() & pg.UnitNorm(axis=1)})


def metrics() -> None:
    for axis in (0, 1):
        for constraint in (pg.MaxNorm(0.5, axis=axis), pg.Simplex(axis=axis)):
            check_like_one_process({"*.weight": constraint}, adam, metric="optimizer")
    for make in (torch.optim.NAdam, torch.optim.RMSprop):
        check_like_one_process({"*.weight": pg.MaxNorm(0.5)}, lambda p, make=make: make(p, lr=0.05), metric="optimizer")
    check_like_one_process(RULES["joint"], adam, metric="optimizer")
    check_like_one_process({"0.weight": pg.Slices([pg.Simplex(axis=1)])}, adam, metric="optimizer")


def tangents() -> None:
    for option, rules in TANGENT.items():
        joint = {name: replace(tag, tangent=option) for name, tag in RULES["joint"].items()}
        for make in (sgd, adam):
            model = check_like_one_process(rules, make)
            check_like_one_process(joint, make)
        without, free = network(), {name: tag.constraint for name, tag in rules.items()}
        train(without, ProjectedOptimizer(adam(without.parameters()), free, model=without), 0, 4)
        for p, q in zip(model.parameters(), without.parameters(), strict=True):
            assert (whole(p) - q).abs().max() > 1e-3  # where they end without the option


def gradients_that_are_sums_yet_to_be_taken() -> None:
    mesh, rank = init_device_mesh("cpu", (2,)), distributed.get_rank()
    torch.manual_seed(0)
    start, parts, found = torch.randn(4, 3), torch.randn(2, 4, 3), []
    for placements in ([Replicate()], [Shard(0)], None):
        x = nn.Parameter(start.clone() if placements is None else distribute_tensor(start.clone(), mesh, placements))
        x.grad = parts.sum(0) if placements is None else DTensor.from_local(parts[rank].clone(), mesh, [Partial()])
        ProjectedOptimizer(sgd([("x", x)]), {"x": pg.Tag(pg.UnitNorm(axis=1), tangent="gradient")}).step()
        found.append(whole(x))
    torch.testing.assert_close(found, [found[-1]] * 3)


def meshes() -> None:
    for shape in ((1, 2), (2, 1)) if distributed.get_world_size() == 2 else ((2, 2),):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("a", "b"))

        def both(model: Any, mesh: Any = mesh) -> Any:
            parallelize_module(model, mesh["b"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
            return sharded(model, mesh=mesh["a"])

        for name in ("rows", "columns", "joint"):
            check_like_one_process(RULES[name], shard=lambda model, mesh=mesh: sharded(model, mesh=mesh))
            check_like_one_process(RULES[name], rows=8, shard=both)
        check_like_one_process(TANGENT["update"], adam, rows=8, shard=both)


def replicas() -> None:
    def replicated(model: Any) -> Any:
        return nn.parallel.DistributedDataParallel(model)

    model, reference = network(), network()
    copies = replicated(model)
    train(copies, ProjectedOptimizer(adam(copies.parameters()), RULES["rows"], model=copies), 0, 4)
    train(reference, ProjectedOptimizer(adam(reference.parameters()), RULES["rows"], model=reference), 0, 4)
    check_equal(model, reference)


def all_sets() -> None:
    from tests.cases import all_cases

    mesh = init_device_mesh("cpu", (2,))
    for case in all_cases():
        values = torch.tensor(case.groups(0, case.shapes[0])[:7])
        expected = project_(values.clone(), case.constraint)
        for dim in {0, values.ndim - 1}:
            x = distribute_tensor(values, mesh, [Shard(dim)])
            assert project_(x, case.constraint) is x
            torch.testing.assert_close(x.full_tensor(), expected, msg=lambda text, case=case: f"{case}: {text}")


# -- without an optimizer, messages -------------------------------------------------------------------------------


def without_an_optimizer() -> None:
    for rules in RULES.values():
        model, reference = sharded(network()), network()
        found, expected = violations(model, rules), violations(reference, rules)
        assert found.keys() == expected.keys()
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
        project_params(model, rules)
        project_params(reference, rules)
        check_equal(model, reference)
        assert max(violations(model, rules).values()) < 1e-6
    model, reference = fully_shard(network()), network()
    with torch.no_grad():
        model(torch.ones(2, 6))  # which leaves whole parameters in their places
    assert not any(isinstance(p, DTensor) for p in model.parameters())
    project_params(model, RULES["columns"])
    project_params(reference, RULES["columns"])
    check_equal(model, reference)
    state = model.state_dict()
    project_params(state, RULES["columns"])
    assert max(violations(state, RULES["columns"]).values()) < 1e-6
    x = distribute_tensor(torch.full((4, 3), torch.nan), init_device_mesh("cpu", (2,)), [Shard(0)])
    assert np.isnan(violations({"x": x}, {"x": pg.NonNeg()})["x"])


def messages() -> None:
    model = sharded(network())
    for name, most in (("rows", 0), ("columns", 4)):
        rules = {"*.weight": RULES[name]["*.weight"]}
        optimizer = ProjectedOptimizer(adam(model.parameters()), rules, model=model)
        with CommDebugMode() as sent:
            optimizer.project()
        assert sent.get_total_counts() <= most, sent.get_comm_counts()
        x = distribute_tensor(torch.ones(4, 3), init_device_mesh("cpu", (2,)), [Replicate()])
        with CommDebugMode() as sent:
            project_(x, rules["*.weight"])
        assert sent.get_total_counts() == 0


# -- checkpoints --------------------------------------------------------------------------------------------------

COUNTED = {"*.weight": pg.MaxNorm(pg.Schedule({0: 0.3, 10: 1.0}), axis=0).every(2), "*.bias": pg.NonNeg(rate=0.5)}


def _folder() -> Path:
    names = [tempfile.mkdtemp()]
    distributed.broadcast_object_list(names)
    return Path(names[0])


def checkpoints() -> None:
    for options in ({}, {"flatten_optimizer_state_dict": True}, {"full_state_dict": True}):
        chosen, folder = states.StateDictOptions(**options), _folder()

        def made() -> Any:
            model = sharded(network())
            return model, ProjectedOptimizer(adam(model.parameters()), COUNTED, model=model)

        def saved(run: Any, chosen: Any = chosen) -> Any:
            model, optimizer = states.get_state_dict(*run, options=chosen)
            return {"model": model, "optimizer": optimizer}

        uninterrupted, stopped, resumed = made(), made(), made()
        train(*uninterrupted, 0, 7)
        train(*stopped, 0, 3)
        save(saved(stopped), checkpoint_id=folder)
        before = [whole(p).clone() for p in resumed[0].parameters()]
        state = saved(resumed)  # makes a step without effect, for the state to be there
        assert all(torch.equal(whole(p), q) for p, q in zip(resumed[0].parameters(), before, strict=True))
        load(state, checkpoint_id=folder)
        states.set_state_dict(
            *resumed, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=chosen
        )
        train(*resumed, 3, 7)
        assert resumed[1].param_groups[0]["projgrad"] == {"step": 7}
        for p, q in zip(resumed[0].parameters(), uninterrupted[0].parameters(), strict=True):
            assert torch.equal(whole(p), whole(q)), options


def weights_loaded_before_wrapping() -> None:
    model = sharded(network())
    optimizer = ProjectedOptimizer(adam(model.parameters()), COUNTED, model=model)
    train(model, optimizer, 0, 3)
    state = states.get_state_dict(model, optimizer)
    other = sharded(network())
    states.set_model_state_dict(other, state[0])
    again = ProjectedOptimizer(adam(other.parameters()), COUNTED, model=other)
    states.set_optimizer_state_dict(other, again, state[1])
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(whole(p), whole(q))


# -- errors, and what is none -------------------------------------------------------------------------------------


def dead_parameters() -> None:
    model = network()
    inner = adam(model.parameters())
    sharded(model)
    with pytest.raises(ValueError, match="constrained, but not held by this optimizer.*make the optimizer anew"):
        ProjectedOptimizer(inner, RULES["rows"], model=model)
    model = network()
    optimizer = ProjectedOptimizer(adam(model.named_parameters()), RULES["rows"])
    sharded(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, 0, 1)
    assert any("no parameter that the optimizer holds has a gradient" in str(w.message) for w in caught)
    model = sharded(network())
    optimizer = ProjectedOptimizer(adam(model.parameters()), RULES["rows"], model=model)
    model.load_state_dict({name: x.clone() for name, x in model.state_dict().items()}, assign=True)
    with pytest.raises(RuntimeError, match=DEAD):
        train(model, optimizer, 0, 1)


def unsharded_for_a_while() -> None:
    for act in (lambda m: m.set_reshard_after_backward(False), lambda m: m[0].unshard(), lambda m: None):
        model = sharded(network())
        optimizer = ProjectedOptimizer(sgd(model.parameters()), RULES["rows"], model=model)
        act(model)
        train(model, optimizer, 0, 2)
        model(torch.ones(1, 6))
        optimizer.zero_grad()
        optimizer.step()  # with no gradients, and after a forward pass
    model, reference = fully_shard(network()), network()
    for each in (model, reference):
        optimizer = ProjectedOptimizer(sgd(each.parameters()), RULES["rows"], model=each)
        loss = each(torch.ones(4, 6)).square().mean()
        assert max(violations(each, RULES["rows"]).values()) < 1e-6  # before the backward pass
        optimizer.set_rules(RULES["rows"], model=each)
        loss.backward()
        optimizer.step()
    check_equal(model, reference)
    model = fully_shard(network())
    with torch.no_grad():
        model(torch.ones(1, 6))
    inner = sgd(model.parameters())  # of whole ones
    with pytest.raises(ValueError, match="make the optimizer anew"):
        ProjectedOptimizer(inner, RULES["rows"], model=model)


def flat_parameters() -> None:
    cpu = torch.device("cpu")

    def flat(model: Any, kept: bool) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return FullyShardedDataParallel(model, use_orig_params=kept, device_id=cpu)

    model = flat(network(), True)
    with pytest.raises(ValueError, match=r"weight: FullyShardedDataParallel \(FSDP1\).*fully_shard"):
        ProjectedOptimizer(adam(model.parameters()), {"*.weight": pg.MaxNorm(0.5, axis=-1)}, model=model)
    optimizer = ProjectedOptimizer(adam(model.parameters()), {"*.weight": pg.Box(-0.1, 0.1)}, model=model)
    train(model, optimizer, 0, 2)
    assert all(bool((p.abs() <= 0.1).all()) for name, p in model.named_parameters() if "weight" in name)
    model = flat(network(), False)
    with pytest.raises(ValueError, match="FSDP1"):
        ProjectedOptimizer(adam(model.parameters()), {"*": pg.MaxNorm(0.5, axis=-1)}, model=model)
    model = network()
    optimizer = ProjectedOptimizer(adam(model.parameters()), {"0.weight": pg.MaxNorm(0.5)}, model=model)
    with pytest.raises(RuntimeError, match=r"0.weight: its shape is .*was \(5, 6\) when.*fully_shard"):
        train(flat(model, True), optimizer, 0, 1)


QUICK: list[Callable[[], None]] = [quick]
SLOW: list[Callable[[], None]] = [
    any_number_of_rows,
    functions_schedules_rates_and_intersections,
    metrics,
    tangents,
    gradients_that_are_sums_yet_to_be_taken,
    meshes,
    replicas,
    without_an_optimizer,
    messages,
    checkpoints,
    weights_loaded_before_wrapping,
    dead_parameters,
    unsharded_for_a_while,
    flat_parameters,
    all_sets,
]
