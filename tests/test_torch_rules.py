"""Which parameters the PyTorch wrapper constrains, and what it refuses."""

from __future__ import annotations

import copy
import pickle
from typing import Any, cast

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn.utils.prune import l1_unstructured

from projgrad.torch import ProjectedOptimizer, constrain
from tests.torch_network import RULES, held, loss_of, network, norms, train, wrapped

# -- tags and rules -----------------------------------------------------------------------------------------------


def test_names_may_come_with_the_optimizer() -> None:
    model = network()
    rules = {"*.weight": pg.MaxNorm(0.5, axis=1), "1.*": None}
    optimizer = ProjectedOptimizer(torch.optim.SGD(model.named_parameters(), 0.1), rules)
    assert [entry.name for entry in optimizer.plan] == ["0.weight", "3.weight"]
    train(optimizer, model)
    assert held(model)


def test_tags_on_layers_are_found() -> None:
    model = network()
    assert constrain(model[0], weight=pg.MaxNorm(0.5), bias=pg.NonNeg()) is model[0]
    constrain(model[3], weight=pg.UnitNorm())
    constrain(model[3], weight=pg.MaxNorm(0.5))  # the later tag replaces
    optimizer = ProjectedOptimizer(torch.optim.SGD(model.parameters(), 0.1), model=copy.deepcopy(model), partial=True)
    assert not optimizer.plan  # another model's parameters
    optimizer = ProjectedOptimizer(torch.optim.SGD(model.parameters(), 0.1), model=model)
    assert {e.name: e.constraint for e in optimizer.plan} == {
        "0.weight": pg.MaxNorm(0.5, axis=1),
        "0.bias": pg.NonNeg(),
        "3.weight": pg.MaxNorm(0.5, axis=1),
    }
    train(optimizer, model)
    assert held(model)
    assert (model[0].bias >= 0).all()
    constrain(model[0], weight=None, bias=None)
    constrain(model[3], weight=None)
    with pytest.raises(ValueError, match="no layer of the model is tagged"):
        ProjectedOptimizer(torch.optim.SGD(model.parameters(), 0.1), model=model)


def test_tags_survive_what_happens_to_a_model() -> None:
    model = constrain(nn.Linear(3, 2), weight=pg.NonNeg())
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.double()):
        same.load_state_dict({k: v.clone() for k, v in same.state_dict().items()}, assign=True)
        assert len(ProjectedOptimizer(torch.optim.SGD(same.parameters(), 0.1), model=same).plan) == 1


def test_param_groups_may_carry_a_constraint() -> None:
    w1, w2 = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3, 4))
    groups = [{"params": [w1], "constraint": pg.MaxNorm(0.5, axis=1)}, {"params": [w2]}]
    optimizer = ProjectedOptimizer(torch.optim.SGD(groups, lr=0.1))
    assert pg.MaxNorm(0.5, axis=1).contains(w1)
    assert not pg.MaxNorm(0.5, axis=1).contains(w2)
    assert [e.name for e in optimizer.plan] == ["param_groups[0][0]"]
    assert "constraint" not in optimizer.state_dict()["param_groups"][0]


def test_groups_added_later_are_constrained_too() -> None:
    model = network()
    optimizer = ProjectedOptimizer(torch.optim.SGD(model[0].parameters(), 0.1), RULES, model=model, partial=True)
    assert not held(model)
    optimizer.add_param_group({"params": model[3].parameters()})  # the rules hold for it
    assert held(model)
    extra = nn.Parameter(-torch.ones(3))
    optimizer.add_param_group({"params": [extra], "lr": 1.0, "constraint": pg.NonNeg()})
    assert (extra == 0).all()
    assert [e.name for e in optimizer.plan] == ["0.weight", "3.weight", "param_groups[2][0]"]
    free = nn.Parameter(-torch.ones(3))
    optimizer.add_param_group({"params": free})
    assert (free == -1).all()
    with pytest.raises(ValueError, match="incoming"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "constraint": pg.MaxNorm(1.0)})
    assert len(optimizer.param_groups) == 4
    train(optimizer, model)
    assert held(model)


def test_named_groups_added_later_follow_the_patterns() -> None:
    model = network()
    optimizer = ProjectedOptimizer(torch.optim.SGD(model[0].named_parameters("0"), 0.1), {"*weight": pg.NonNeg()})
    optimizer.add_param_group({"params": list(model[3].named_parameters("3"))})
    assert [e.name for e in optimizer.plan] == ["0.weight", "3.weight"]
    assert (model[3].weight >= 0).all()


def test_rules_can_change_during_training() -> None:
    model = network()
    optimizer = wrapped(model)
    train(optimizer, model)
    optimizer.set_rules({nn.Linear: {"weight": pg.MaxNorm(0.1)}}, model=model)
    assert norms(model).max() <= 0.1 * (1 + 1e-5)
    with pytest.raises(ValueError, match="selects no parameter"):
        optimizer.set_rules({"nope": pg.NonNeg()}, model=model)
    assert optimizer.plan[0].constraint == pg.MaxNorm(0.1, axis=1)
    optimizer.set_rules({}, model=model)
    assert not optimizer.plan


def test_tied_weights_are_one_parameter() -> None:
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    optimizer = wrapped(model, {"0.weight": pg.UnitNorm()})
    assert len(optimizer.plan) == 1
    with pytest.raises(ValueError, match=r"tied: 0.weight, 1.weight"):
        wrapped(model, {"0.weight": pg.UnitNorm(), "1.weight": pg.MaxNorm(1.0)})


def test_names_do_not_show_what_wraps_the_model() -> None:
    model = nn.DataParallel(nn.Sequential(torch.compile(network())))
    optimizer = wrapped(model, {"0.0.weight": pg.NonNeg(), "module.*.3.weight": pg.NonNeg()})
    assert [e.name for e in optimizer.plan] == ["0.0.weight", "0.3.weight"]


def test_some_parameters_may_belong_to_another_optimizer() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"3.weight: constrained, but not held.*partial=True"):
        ProjectedOptimizer(torch.optim.SGD(model[0].parameters(), 0.1), RULES, model=model)
    a = ProjectedOptimizer(torch.optim.SGD(model[0].parameters(), 0.1), RULES, model=model, partial=True)
    b = ProjectedOptimizer(torch.optim.Adam(model[3].parameters(), 0.1), RULES, model=model, partial=True)
    loss_of(model).backward()
    a.step()
    b.step()
    assert held(model)


# -- errors: clear, early, and nothing is changed -----------------------------------------------------------------


def refused(error: type[Exception], message: str, make: Any) -> None:
    model = network()
    before = [p.clone() for p in model.parameters()]
    inner = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(error, match=message):
        make(model, inner)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert not inner._optimizer_step_post_hooks


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (TypeError, "torch.optim.Optimizer, not Sequential", lambda m, o: ProjectedOptimizer(m, RULES, model=m)),
        (TypeError, "torch.nn.Module, not list", lambda m, o: ProjectedOptimizer(o, RULES, model=cast(Any, [m]))),
        (ValueError, "nothing is tagged", lambda m, o: ProjectedOptimizer(o)),
        (ValueError, "no layer of the model is tagged", lambda m, o: ProjectedOptimizer(o, model=m)),
        (ValueError, "by layer class.*pass model=", lambda m, o: ProjectedOptimizer(o, RULES)),
        (ValueError, "the rules need names", lambda m, o: ProjectedOptimizer(o, {"*": pg.NonNeg()})),
        (ValueError, "nearest: 0.weight", lambda m, o: ProjectedOptimizer(o, {"0.wieght": pg.NonNeg()}, model=m)),
        (
            ValueError,
            "0.bias.*axis=0 for a vector",
            lambda m, o: ProjectedOptimizer(o, {"0.*": pg.MaxNorm(1)}, model=m),
        ),
        (ValueError, "1.weight.*LayerNorm", lambda m, o: ProjectedOptimizer(o, {"1.*": pg.MaxNorm(1)}, model=m)),
        (ValueError, "axis 2 does not", lambda m, o: ProjectedOptimizer(o, {"0.weight": pg.UnitNorm(2)}, model=m)),
    ],
)
def test_bad_input_changes_nothing(error: type[Exception], message: str, make: Any) -> None:
    refused(error, message, make)


def test_wrapping_twice_is_refused() -> None:
    model = network()
    optimizer = wrapped(model)
    with pytest.raises(ValueError, match="already"):
        ProjectedOptimizer(optimizer, RULES, model=model)
    with pytest.raises(ValueError, match="already"):
        ProjectedOptimizer(optimizer.inner, RULES, model=model)


def test_a_rule_and_a_tag_must_agree() -> None:
    model = network()
    constrain(model[0], weight=pg.NonNeg())
    with pytest.raises(ValueError, match="0.weight: the rule .* but the tag on its layer"):
        wrapped(model)
    w = nn.Parameter(torch.ones(2, 2))
    tagged = torch.optim.SGD([{"params": [("w", w)], "constraint": pg.NonNeg()}], 0.1)
    with pytest.raises(ValueError, match="w: the rule .* but its param group"):
        ProjectedOptimizer(tagged, {"w": pg.NonPos()})


@pytest.mark.parametrize(
    "computed",
    [
        lambda layer: nn.utils.parametrizations.weight_norm(layer),
        lambda layer: nn.utils.parametrizations.spectral_norm(layer),
        lambda layer: nn.utils.spectral_norm(layer),
        lambda layer: l1_unstructured(layer, "weight", 1),
    ],
)
def test_parametrized_weights_are_refused(computed: Any) -> None:
    model = network()
    computed(model[0])
    for rules in ({"*weight*": pg.NonNeg()}, {"0.weight": pg.NonNeg()}, {nn.Linear: {"weight": pg.NonNeg()}}):
        with pytest.raises(ValueError, match="0.weight.*: this weight is parametrized"):
            wrapped(model, rules)
    free = wrapped(model, {nn.Linear: {"weight": pg.NonNeg()}, "0.*": None})
    assert [e.name for e in free.plan] == ["3.weight"]
    tagged = constrain(nn.Linear(3, 2), weight=pg.NonNeg())
    computed(tagged)
    with pytest.raises(ValueError, match="parametrized"):
        ProjectedOptimizer(torch.optim.SGD(tagged.parameters(), 0.1), model=tagged)


def test_a_parametrized_weight_cannot_be_tagged() -> None:
    with pytest.raises(ValueError, match="parametrized"):
        constrain(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), weight=pg.NonNeg())


def test_lazy_parameters_are_refused_until_they_have_a_shape() -> None:
    layer = nn.LazyLinear(3)
    with pytest.raises(ValueError, match="run the model once"):
        constrain(layer, weight=pg.NonNeg())
    layer(torch.ones(1, 2))
    constrain(layer, weight=pg.MaxNorm(1.0))


def test_integers_are_refused() -> None:
    layer = nn.Module()
    layer.steps = nn.Parameter(torch.arange(3), requires_grad=False)
    layer.w = nn.Parameter(torch.ones(3))
    with pytest.raises(TypeError, match="steps.*floating-point"):
        ProjectedOptimizer(torch.optim.SGD([layer.w], 0.1), {"*": pg.NonNeg()}, model=layer)


@pytest.mark.parametrize(
    ("error", "message", "tag"),
    [
        (ValueError, "no parameter 'wieght'; its parameters are weight, bias", {"wieght": pg.NonNeg()}),
        (ValueError, "Linear.bias", {"weight": pg.NonNeg(), "bias": pg.UnitNorm()}),
        (TypeError, "neither", {"weight": 3}),
    ],
)
def test_wrong_tags_are_refused(error: type[Exception], message: str, tag: Any) -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(error, match=message):
        constrain(layer, **tag)
    with pytest.raises(ValueError, match="no layer"):
        ProjectedOptimizer(torch.optim.SGD(layer.parameters(), 0.1), model=layer)
    with pytest.raises(TypeError, match="Module"):
        constrain(cast(Any, layer.weight), weight=pg.NonNeg())


def test_an_optimizer_of_dead_parameters_is_noticed() -> None:
    model = network()
    inner = torch.optim.SGD(model.parameters(), 0.1)
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    with pytest.raises(ValueError, match="0.weight: constrained, but not held.*make the optimizer anew"):
        ProjectedOptimizer(inner, RULES, model=model)


@pytest.mark.parametrize("how", ["pattern", "class", "tag"])
def test_rules_hold_for_layers_that_the_model_got_later(how: str) -> None:
    model: Any = nn.Sequential(nn.Linear(4, 8))
    rules: Any = {"class": {nn.Linear: {"weight": pg.UnitNorm(axis=1)}}, "tag": None}.get(
        how, {"*.weight": pg.UnitNorm()}
    )
    constrain(model[0], weight=pg.UnitNorm())
    optimizer = ProjectedOptimizer(torch.optim.Adam(model.parameters()), rules, model=model)
    model.append(nn.Linear(8, 3))
    constrain(model[1], weight=pg.UnitNorm())
    optimizer.add_param_group({"params": list(model[1].parameters())})
    assert [entry.name for entry in optimizer.plan] == ["0.weight", "1.weight"]
    torch.testing.assert_close(model[1].weight.norm(dim=1), torch.ones(3))
    assert [row.name for row in optimizer.report()] == ["0.weight", "0.bias", "1.weight", "1.bias"]
