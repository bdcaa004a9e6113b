"""The PyTorch wrapper: projected after every step, and an optimizer in every other respect."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any, cast

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn.utils.prune import l1_unstructured

from projgrad.torch import ProjectedOptimizer, constrain, project_, project_params, violations

RULES = {nn.Linear: {"weight": pg.MaxNorm(0.5)}}


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))


def loss_of(model: Any) -> Any:
    x = torch.linspace(-1, 1, 24).reshape(6, 4)
    return (model(x) - 3).square().mean()


def train(optimizer: Any, model: Any, steps: int = 5) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def norms(model: Any) -> Any:
    return torch.cat([torch.linalg.vector_norm(m.weight.double(), dim=1) for m in model if isinstance(m, nn.Linear)])


def held(model: Any) -> bool:
    return bool((norms(model) <= 0.5 * (1 + 1e-5)).all())


def wrapped(model: Any, rules: Any = RULES, **options: Any) -> ProjectedOptimizer:
    return ProjectedOptimizer(torch.optim.Adam(model.parameters(), lr=0.1), rules, model=model, **options)


# -- projecting ---------------------------------------------------------------------------------------------------


def test_parameters_are_projected_when_wrapped_and_after_every_step() -> None:
    model = network()
    assert not held(model)
    optimizer = wrapped(model)
    assert held(model)
    before = [p.clone() for p in model.parameters()]
    for _ in range(5):
        train(optimizer, model, 1)
        assert held(model)
    assert norms(model).max() > 0.499  # the constraint binds
    assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_step_is_the_wrapped_optimizers_step_and_then_the_projection() -> None:
    model, twin = network(), network()
    optimizer = wrapped(model)
    project_params(twin, RULES)
    bare = torch.optim.Adam(twin.parameters(), lr=0.1)
    for _ in range(5):
        train(optimizer, model, 1)
        train(bare, twin, 1)
        for layer in (twin[0], twin[3]):
            layer.weight.data = pg.MaxNorm(0.5, axis=1)(layer.weight.data)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q)


def test_parameters_stay_the_same_objects_without_gradient_history() -> None:
    model = network()
    pointers = [p.data_ptr() for p in model.parameters()]
    train(wrapped(model), model)
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(p.is_leaf and p.requires_grad and p.grad_fn is None for p in model.parameters())


def test_a_closure_is_projected_once_after_the_step() -> None:
    model = network()
    optimizer = ProjectedOptimizer(torch.optim.LBFGS(model.parameters(), max_iter=5), RULES, model=model)
    calls: list[int] = []
    projections: list[None] = []
    project = optimizer.project
    optimizer.project = lambda: projections.append(project())  # type: ignore[method-assign]

    def closure() -> Any:
        calls.append(1)
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    assert isinstance(optimizer.step(closure), torch.Tensor)
    assert len(calls) > 1
    assert len(projections) == 1
    assert held(model)


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, 0.1, fused=True)]
)
def test_other_optimizers(make: Any) -> None:
    model = network()
    optimizer = ProjectedOptimizer(make(model.parameters()), RULES, model=model)
    train(optimizer, model)
    assert held(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: Any) -> None:
    model = network().to(dtype)
    wrapped(model)
    for layer in (model[0], model[3]):
        assert layer.weight.dtype == dtype
        assert pg.MaxNorm(0.5, axis=1).contains(layer.weight)


def test_arrays_of_many_parts_are_projected_like_small_ones() -> None:
    big = torch.randn(700, 600)
    assert big.numel() > 2**18
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = big.to(dtype)
        for axis in (0, 1, None):
            for c in (pg.UnitNorm(axis=axis), pg.MaxNorm(20.0, axis=axis), pg.Box(torch.zeros(700, 1), 0.5, rate=0.5)):
                y = x.clone()
                project_(y, c)
                torch.testing.assert_close(y, c.project(x))
    strided = big.t()[::2]
    expected = pg.UnitNorm(axis=0).project(strided)
    project_(strided, pg.UnitNorm(axis=0))
    torch.testing.assert_close(strided, expected)


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


# -- an optimizer like any other ----------------------------------------------------------------------------------


def test_it_is_an_optimizer_with_the_state_of_the_wrapped_one() -> None:
    model = network()
    optimizer = wrapped(model)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert isinstance(optimizer.inner, torch.optim.Adam)
    assert optimizer.param_groups is optimizer.inner.param_groups
    assert optimizer.state is optimizer.inner.state
    assert optimizer.defaults is optimizer.inner.defaults
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizer.inner.param_groups[0]["lr"] == 0.5
    assert "MaxNorm" in repr(optimizer)


@pytest.mark.parametrize("before", [True, False])
def test_learning_rate_schedulers(before: bool) -> None:
    model = network()
    inner = torch.optim.SGD(model.parameters(), 0.4, momentum=0.9)
    first = torch.optim.lr_scheduler.StepLR(inner, 1, 0.5) if before else None
    optimizer = ProjectedOptimizer(inner, RULES, model=model)
    scheduler = first or torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            train(optimizer, model, 1)
            scheduler.step()
            assert held(model)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(scheduler.get_last_lr()[0]) != 0.4


def test_checkpoints_interchange_with_the_bare_optimizer() -> None:
    model = network()
    optimizer = wrapped(model)
    train(optimizer, model, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(optimizer, model, 3)

    def resumed(wrap: bool) -> nn.Module:
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        again = network()
        again.load_state_dict(saved["model"])
        inner = torch.optim.Adam(again.parameters(), lr=0.1)
        resuming = ProjectedOptimizer(inner, RULES, model=again) if wrap else inner
        resuming.load_state_dict(state_dict=saved["optimizer"])
        train(resuming, again, 3)
        return again

    for p, q in zip(model.parameters(), resumed(True).parameters(), strict=True):
        assert torch.equal(p, q)
    assert not held(resumed(False))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_stay_constrained(duplicate: Any) -> None:
    model = network()
    optimizer = wrapped(model)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    train(optimizer, model)
    other, twin = duplicate((optimizer, model))
    assert other.plan == optimizer.plan
    train(other, twin)
    assert held(twin)
    train(optimizer, model)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_hooks_fire_once_and_see_projected_weights() -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    model = network()
    inner = torch.optim.SGD(model.parameters(), 5.0)
    seen: dict[str, list[bool]] = {"inner": [], "wrapper": [], "all": [], "pre": []}
    inner.register_step_post_hook(lambda *_: seen["inner"].append(held(model)))
    optimizer = ProjectedOptimizer(inner, RULES, model=model)
    optimizer.register_step_post_hook(lambda *_: seen["wrapper"].append(held(model)))
    optimizer.register_step_pre_hook(lambda *_: seen["pre"].append(True))
    everywhere = register_optimizer_step_post_hook(lambda *_: seen["all"].append(held(model)))
    try:
        train(optimizer, model, 2)
    finally:
        everywhere.remove()
    assert seen == {name: [True, True] for name in seen}


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_skipped_by_the_gradient_scaler(fused: bool) -> None:
    model = network()
    optimizer = ProjectedOptimizer(torch.optim.Adam(model.parameters(), 0.1, fused=fused), RULES, model=model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for bad in (False, True, False):
        optimizer.zero_grad()
        before = [p.clone() for p in model.parameters()]
        scaler.scale(loss_of(model)).backward()
        if bad:
            model[0].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        assert held(model)
        assert all(torch.isfinite(p).all() for p in model.parameters())
        unchanged = all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        assert unchanged == bad


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
