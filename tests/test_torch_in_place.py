"""Projecting torch tensors and models without an optimizer, in their memory."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch import nn

from projgrad.torch import ProjectedOptimizer, project_, project_params, violations
from tests.torch_network import RULES, network, norms, wrapped

# -- without an optimizer -----------------------------------------------------------------------------------------


def test_params_can_be_projected_and_checked_alone() -> None:
    model = network()
    rules = {"*.weight": pg.MaxNorm(0.5), "1.*": None}
    expected = (norms(model[:1]).max() - 0.5, norms(model[3:]).max() - 0.5)
    found = violations(model, rules)
    assert list(found) == ["0.weight", "3.weight"]
    assert found["0.weight"] == pytest.approx(expected[0].item(), rel=1e-5)
    project_params(model, rules)
    assert max(violations(model, rules).values()) < 1e-6
    state = network().state_dict()
    numeric = {"0.weight": pg.MaxNorm(0.5, axis=1)}
    project_params(state, numeric)
    torch.testing.assert_close(state["0.weight"], model[0].weight.data)
    assert violations(model.named_parameters(), numeric)["0.weight"] < 1e-6
    for wrong in ([model[0].weight], model[0].weight, {"w": 3.0}, []):
        with pytest.raises(TypeError, match="named_parameters"):
            violations(cast(Any, wrong), {})
    for call in (project_params, violations):
        with pytest.raises(ValueError, match="nothing is tagged"):
            call(network())


# -- in place ------------------------------------------------------------------------------------------------------


def test_project_in_place_checks_and_returns_its_tensor() -> None:
    x = torch.tensor([-1.0, 2.0])
    assert project_(x, pg.NonNeg()) is x
    assert x.tolist() == [0, 2]
    assert project_(x, lambda w: w / 2).tolist() == [0, 1]
    for bad, constraint, error in (
        (torch.arange(3), pg.NonNeg(), TypeError),
        (torch.ones(2, dtype=torch.complex64), pg.NonNeg(), TypeError),
        (torch.ones(2), pg.Box([0, 0, 0], 1), ValueError),
        (torch.ones(2), pg.MaxNorm(1.0), ValueError),
        ([1.0], pg.NonNeg(), TypeError),
    ):
        with pytest.raises(error):
            project_(cast(Any, bad), constraint)


def test_a_constraint_that_fails_changes_nothing() -> None:
    model = network()
    before = [p.clone() for p in model.parameters()]
    rules: dict[str, Any] = {"0.weight": pg.MaxNorm(0.1), "3.weight": lambda w: w[:1]}
    for make in (lambda: wrapped(model, rules), lambda: project_params(model, rules)):
        with pytest.raises(ValueError, match="shape"):
            make()
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    optimizer = wrapped(model)
    with pytest.raises(ValueError, match="shape"):
        optimizer.set_rules(rules, model=model)
    assert [e.constraint for e in optimizer.plan] == [pg.MaxNorm(0.5, axis=1)] * 2
    model[0].weight = nn.Parameter(model[0].weight.to(torch.complex64))
    with pytest.raises(TypeError, match="0.weight.*real"):
        wrapped(model, {"*.weight": pg.NonNeg()})


def test_a_group_of_zeros_among_others() -> None:
    for shape, axis in (((40, 30), 1), ((40, 30), 0), ((4, 5, 6), (0, 2))):
        x = torch.randn(shape)
        x.select(0 if axis == 1 else 1, 2).zero_()
        for c in (pg.MaxNorm(1.0, axis=axis), pg.UnitNorm(axis=axis)):
            torch.testing.assert_close(project_(x.clone(), c), c.project(x))


def test_a_shallow_copy_does_not_project_twice() -> None:
    model = network()
    optimizer = ProjectedOptimizer(torch.optim.SGD(model.parameters(), 0.1), RULES, model=model)
    copy.copy(optimizer)
    assert len(optimizer.inner._optimizer_step_post_hooks) == 1


def test_a_layer_may_be_called_module() -> None:
    model = nn.Module()
    model.module, model.weight = nn.Linear(2, 2), nn.Parameter(torch.ones(2))
    assert list(violations(model, {"*weight": pg.NonNeg()})) == ["weight", "module.weight"]


def test_a_box_is_not_spoilt_by_a_tracing_mode() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    box = pg.Box([0.25, 0.5], 1)
    with FakeTensorMode():
        box.project(torch.zeros(2))
    assert box.project(torch.zeros(2)).tolist() == [0.25, 0.5]


# -- where others go wrong -----------------------------------------------------------------------------------------


def test_rows_of_an_embedding_are_within_their_norm_after_the_step() -> None:
    def largest(layer: nn.Embedding, optimizer: Any) -> float:
        optimizer.zero_grad()
        (-layer(torch.arange(5)).square().sum()).backward()
        optimizer.step()
        return float(torch.linalg.vector_norm(layer.weight.detach(), dim=1).max())

    theirs, ours = nn.Embedding(5, 3, max_norm=1.0), nn.Embedding(5, 3)
    assert largest(theirs, torch.optim.SGD(theirs.parameters(), 1.0)) > 2  # torch renormalises in the forward pass
    sgd = torch.optim.SGD(ours.parameters(), 1.0)
    assert largest(ours, ProjectedOptimizer(sgd, {"weight": pg.MaxNorm(1.0)}, model=ours)) <= 1 + 1e-6


def test_groups_of_a_single_entry() -> None:
    w = nn.Parameter(torch.tensor([[3.0], [-0.5], [0.0], [1.0]]))
    ProjectedOptimizer(torch.optim.SGD([{"params": [w], "constraint": pg.MinMaxNorm(0.6, 2.0, axis=1)}], 0.1))
    torch.testing.assert_close(w.detach().flatten(), torch.tensor([2.0, -0.6, 0.6, 1.0]))
