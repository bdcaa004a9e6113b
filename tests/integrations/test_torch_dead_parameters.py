"""Optimizers of what the model does not compute with any more, and weights that cannot be projected: clear errors."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch import Tensor, nn, optim
from torch.nn.utils import parametrizations
from torch.nn.utils.prune import l1_unstructured

from projgrad.torch import ProjectedOptimizer, project_params
from tests.torch_network import RULES, held, loss_of, network, train, wrapped

DEAD = r"0.weight: the tensor that the optimizer holds is not the model's any more.*make the optimizer and wrap it anew"


def assigned(model: Any) -> None:
    model.load_state_dict({name: x.clone() for name, x in model.state_dict().items()}, assign=True)


def replaced(model: Any) -> None:
    model[0].weight = nn.Parameter(torch.randn(8, 4))


def converted(model: Any) -> None:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.to(torch.float64).to(torch.float32)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def layer_replaced(model: Any) -> None:
    model[0] = nn.Linear(4, 8)


@pytest.mark.parametrize("event", [assigned, replaced, converted, layer_replaced])
def test_a_parameter_that_was_replaced_after_wrapping_is_an_error(event: Any) -> None:
    model = network()
    optimizer = wrapped(model)
    train(optimizer, model, 2)
    event(model)
    with pytest.raises(RuntimeError, match=DEAD):
        train(optimizer, model, 1)
    anew = wrapped(model)
    train(anew, model, 2)
    assert held(model)


def test_a_replaced_parameter_that_still_has_a_gradient_is_an_error() -> None:
    model = network()
    optimizer = wrapped(model)
    loss_of(model).backward()
    replaced(model)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=DEAD):
        optimizer.step()
    assert not optimizer.state  # nothing was done by halves
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_group_that_was_added_later_is_watched_too() -> None:
    model = network()
    optimizer = ProjectedOptimizer(optim.SGD(model[3].parameters(), 0.1), RULES, model=model, partial=True)
    optimizer.add_param_group({"params": model[0].parameters()})
    train(optimizer, model, 1)
    replaced(model)
    with pytest.raises(RuntimeError, match=DEAD):
        train(optimizer, model, 1)


@pytest.mark.parametrize(
    "compute",
    [
        lambda layer: parametrizations.orthogonal(layer),
        lambda layer: parametrizations.weight_norm(layer),
        lambda layer: nn.utils.spectral_norm(layer),
        lambda layer: l1_unstructured(layer, "weight", 1),
    ],
    ids=["orthogonal", "weight_norm", "old spectral_norm", "pruned"],
)
def test_a_weight_that_is_parametrized_after_wrapping_is_an_error(compute: Any) -> None:
    model = network()
    optimizer = wrapped(model)
    compute(model[0])
    with pytest.raises(RuntimeError, match=r"0.weight: it was parametrized .* after the optimizer was wrapped.*None"):
        train(optimizer, model, 1)
    optimizer.set_rules({**RULES, "0.*": None}, model=model)
    train(optimizer, model, 1)
    assert [entry.name for entry in optimizer.plan] == ["3.weight"]


def test_layers_that_are_removed_or_exchanged_around_their_weights_are_no_error() -> None:
    model = network()
    optimizer = wrapped(model)
    other = nn.Linear(4, 8)
    other.weight, other.bias = model[0].weight, model[0].bias
    model[0] = other
    train(optimizer, model, 1)
    assert held(model)
    other.register_parameter("weight", None)
    optimizer.step()
    model[0] = nn.Identity()
    optimizer.step()


def test_an_optimizer_of_a_model_without_memory_is_an_error() -> None:
    with torch.device("meta"):
        model = network()
    optimizer = wrapped(model)
    model.to_empty(device="cpu")
    for layer in (model[0], model[1], model[3]):
        layer.reset_parameters()
    with pytest.raises(RuntimeError, match=r"0.weight: the optimizer holds a tensor on the meta device"):
        train(optimizer, model, 1)


def test_without_the_model_an_optimizer_that_holds_nothing_of_it_warns() -> None:
    model = network()
    old = [(name, nn.Parameter(x.detach().clone())) for name, x in model.named_parameters()]
    optimizer = ProjectedOptimizer(torch.optim.Adam(old), {"0.weight": pg.MaxNorm(0.5, axis=1)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.project()
    with pytest.warns(RuntimeWarning, match="no parameter that the optimizer holds has a gradient.*model="):
        train(optimizer, model, 1)


def frozen(model: Any) -> None:
    model[0].weight.requires_grad_(False)


def swapped(model: Any) -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to(torch.float64).to(torch.float32)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def moved(model: Any) -> None:
    model.to(torch.float64).to(torch.float32)


def loaded(model: Any) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()))


@pytest.mark.parametrize("event", [frozen, swapped, moved, loaded])
def test_parameters_that_are_the_same_ones_are_no_error(event: Any) -> None:
    model = network()
    optimizer = wrapped(model)
    event(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(optimizer, model, 2)
    assert held(model)


def test_parameters_without_a_gradient_are_no_error() -> None:
    model = network()
    optimizer = wrapped(model)
    model[3](torch.ones(3, 8)).sum().backward()  # the first layer is not used
    optimizer.step()
    optimizer.zero_grad()
    optimizer.step()
    assert held(model)


def test_tied_and_later_untied_weights_are_no_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    optimizer = ProjectedOptimizer(torch.optim.SGD(model.parameters(), 0.1), {"0.weight": pg.NonNeg()}, model=model)
    model[1].weight = nn.Parameter(torch.randn(4, 4))
    model[0].weight.requires_grad_(False)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_are_no_error(duplicate: Any) -> None:
    model = network()
    optimizer = wrapped(model)
    train(optimizer, model, 1)
    other, twin = duplicate((optimizer, model))
    other.zero_grad()
    other.step()
    train(other, twin, 1)
    assert held(twin)


def test_a_joint_set_names_the_one_that_is_dead() -> None:
    model = network()
    rules = {"0.*": pg.Joint(pg.MaxNorm(1.0))}
    optimizer = wrapped(model, rules)
    model[0].bias = nn.Parameter(torch.ones(8))
    with pytest.raises(RuntimeError, match="0.bias: the tensor"):
        train(optimizer, model, 1)


# -- shapes -------------------------------------------------------------------------------------------------------


def test_a_parameter_of_another_shape_is_an_error_where_it_matters() -> None:
    for constraint, fits in ((pg.MaxNorm(0.5), False), (pg.NonNeg(), True), (pg.Box(torch.zeros(8, 4), 1.0), False)):
        model = network()
        optimizer = wrapped(model, {"0.weight": constraint})
        model[0].weight.data = torch.randn(32)  # as FSDP1 does
        if fits:
            optimizer.project()
            assert bool((model[0].weight >= 0).all())
        else:
            with pytest.raises(RuntimeError, match=r"0.weight: its shape is \(32,\), but was \(8, 4\).*fully_shard"):
                optimizer.project()


def test_flat_parameters_are_refused_where_it_matters() -> None:
    model = network()
    model[0].weight.data = torch.randn(32)
    model[0].weight._fsdp_flattened = True  # as FSDP1 marks them
    with pytest.raises(ValueError, match=r"0.weight: FullyShardedDataParallel .FSDP1. keeps it flat.*fully_shard"):
        wrapped(model, {"0.weight": pg.MaxNorm(0.5, axis=-1)})
    wrapped(model, {"0.weight": pg.NonNeg()})
    assert bool((model[0].weight >= 0).all())


# -- optimizers and weights that cannot be wrapped ----------------------------------------------------------------


def test_an_optimizer_that_only_passes_on_is_refused() -> None:
    class AcceleratedOptimizer(optim.Optimizer):
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

        param_groups = property(lambda self: self.optimizer.param_groups)

    model = network()
    inner = AcceleratedOptimizer(torch.optim.Adam(model.parameters()))
    with pytest.raises(TypeError, match=r"AcceleratedOptimizer only passes on.*accelerator.prepare"):
        ProjectedOptimizer(inner, {"*": pg.NonNeg()}, model=model)


class Sam(optim.SGD):
    """A step in two halves."""

    def first_step(self) -> None: ...


def test_what_is_not_passed_on_says_what_to_do() -> None:
    model = network()
    optimizer = ProjectedOptimizer(Sam(model.parameters(), 0.1), {"*.weight": pg.MaxNorm(0.5, axis=None)}, model=model)
    with pytest.raises(AttributeError, match=r"first_step.*wrapped Sam has it.*step\(closure\).*base_optimizer"):
        optimizer.first_step()
    with pytest.raises(AttributeError, match="no attribute 'second_stop'$"):
        optimizer.second_stop()
    assert not hasattr(optimizer, "_step_supports_amp_scaling")


class Quantized(Tensor):
    """A weight that is kept in another form, and knows few operations."""

    @staticmethod
    def __new__(cls, values: Any) -> Any:
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)

    def __init__(self, values: Any) -> None:
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):  # type: ignore[override]
        if function is torch.ops.aten.detach.default:
            return cls(args[0].values)
        raise NotImplementedError(function)

    def __repr__(self, *, tensor_contents=None):
        return "Quantized()"


@pytest.mark.parametrize("constraint", [pg.MaxNorm(0.5), pg.NonNeg(), pg.Simplex()])
def test_quantized_weights_are_refused(constraint: Any) -> None:
    model = network()
    model[0].weight = nn.Parameter(Quantized(model[0].weight.detach()))
    for act in (wrapped, project_params):
        with pytest.raises(TypeError, match=r"0.weight: Quantized, such as a quantized weight, cannot be projected"):
            act(model, {"0.weight": constraint})
