"""A torch optimizer that projects the tagged parameters after every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer

from projgrad.plan import Plan, PlanEntry
from projgrad.rules import Parameter, Rules
from projgrad.tag import EUCLIDEAN, Joint, as_tag, check_metric_name
from projgrad_backends.torch.checkpoint import Undo, beside, counts, is_done, only_initialises, publish, saved_steps
from projgrad_backends.torch.compiled import Compiled
from projgrad_backends.torch.grouped import Together
from projgrad_backends.torch.held import (
    Places,
    Position,
    Watch,
    by_position,
    check_not_flat,
    check_optimizer,
    warn_without_gradients,
)
from projgrad_backends.torch.inplace import Find, Located, find_move, project_all, project_each
from projgrad_backends.torch.metric import check_real, located, scaling_of
from projgrad_backends.torch.parameters import decided, names_of, of_model, of_tensor, resolved, tag_of, with_group_tag
from projgrad_backends.torch.report import Reporting, check_nonfinite
from projgrad_backends.torch.tangent import Tangents

__all__ = ["ProjectedOptimizer"]


class ProjectedOptimizer(Reporting):
    """Any torch optimizer, with the tagged parameters replaced by the nearest point of their sets after every step.

    The parameters are also projected once when the optimizer is wrapped. State, param groups, hooks and checkpoints are
    those of the wrapped optimizer, so either can load what the other saved.

    Args:
        optimizer: the optimizer to wrap.
        rules: name patterns (``"*.weight"``) or layer classes (``{nn.Linear: {"weight": ...}}``) to constraints, or to
            None to leave parameters free; the last rule that selects a parameter wins. Without rules, the tags of
            `constrain` and of the param groups (key ``"constraint"``) hold.
        model: the module, for names, layers and tags. Not needed where the optimizer was given `named_parameters()`, or
            for tags in param groups.
        partial: accept that the rules select parameters that this optimizer does not hold.
        metric: "euclidean", or "optimizer" for the nearest point in the norm that the optimizer scales its steps by;
            a `projgrad.Tag` may say otherwise for its parameters.
        record: keep, for `report`, how far outside the parameters were before each projection and how far it moved
            them. Nothing is waited for, but each is copied for it, one at a time; a step of Adam takes 1.1 to
            1.5 times as long on a CPU (`python -m benchmarks record`).
        nonfinite: "warn" or "raise" to name the parameters, tagged or not, that are NaN or infinite after a step,
            before they are projected: a RuntimeWarning or RuntimeError. The sum of each is taken at each step, and
            brought to the host with all others. None does not look.
        compile: find nearest points by `torch.compile`, which takes seconds, once for every set, shape and dtype. Norms
            and bounds gain nothing and are left as they are, as all is with `record`. Results agree up to
            `projgrad.tolerance`; sets without a point in common are not noticed. Where compiling fails, as without a
            C++ compiler, one RuntimeWarning says so, and it is as without.

    An optimizer that divides each entry of its step by a number of its own, as Adam does by ``h = sqrt(v) + eps``, and
    whose steps are projected in the Euclidean norm, does not settle on the minimum in a set that couples entries, such
    as a ball or a simplex. With ``metric="optimizer"`` it does, as the point y then minimises ``sum(h * (y - x)**2)``,
    with the h of the step just made, read from the state. Nothing changes in sets of single entries, such as boxes; for
    SGD and ASGD (where a `Joint` set over groups of different rates ends elsewhere); and for parameters that no step
    has been made for. Known are the optimizers of `torch.optim`, apart from LBFGS, Muon and Rprop, which have no such
    h; for others, see `register_metric`.

    Parameters may be sharded (DTensor), if that is done before. A step raises RuntimeError, with the name, for a tagged
    parameter that is not the model's any more (or is parametrized since), or has another shape than when it was tagged.

    Raises:
        TypeError: `optimizer` is not a torch optimizer, or a selected parameter is not floating-point, or of a class
            that lacks what a projection needs, as quantized ones do.
        ValueError: it is wrapped already; nothing is tagged; the rules do not fit (see `projgrad.rules.resolve`, or
            because FSDP1 has made the parameters flat); the metric of the optimizer is asked for, but not known, or the
            parameter is complex. Nothing is changed then.

    Examples:
        >>> adam = torch.optim.Adam(model.parameters())
        >>> optimizer = ProjectedOptimizer(adam, {"*.weight": pg.MaxNorm(3.0)}, model=model)
    """

    # what a copy does not take with it
    _places = Places()
    _undo: Undo | None = None
    _initialising = False
    _tangents: Tangents | None = None
    _find: Find = staticmethod(find_move)  # also of what was saved before there was a choice

    def __init__(
        self,
        optimizer: Optimizer,
        rules: Rules | None = None,
        *,
        model: torch.nn.Module | None = None,
        partial: bool = False,
        metric: str = EUCLIDEAN,
        record: bool = False,
        nonfinite: str | None = None,
        compile: bool = False,
    ) -> None:
        if isinstance(optimizer, ProjectedOptimizer):
            raise ValueError("the optimizer is a ProjectedOptimizer already: change its rules with set_rules()")
        check_optimizer(optimizer)
        if _is_wrapped(optimizer):
            raise ValueError("the optimizer is wrapped by another ProjectedOptimizer already: change that one's rules")
        check_metric_name(metric, "ProjectedOptimizer")
        check_nonfinite(nonfinite)
        self.inner = optimizer
        self._nonfinite, self._record = nonfinite, {} if record else None
        self._metric = metric or EUCLIDEAN
        self._find = Compiled() if compile else find_move
        self._group_tags = [tag_of(group) for group in optimizer.param_groups]
        self._rules: Rules = {}
        self._steps = saved_steps(optimizer.param_groups) or 0  # of a state that was loaded before
        self.set_rules(rules, model=model, partial=partial)
        for group in optimizer.param_groups:
            group.pop("constraint", None)
        super().__setstate__({})
        self._hook()

    def set_rules(
        self, rules: Rules | None = None, *, model: torch.nn.Module | None = None, partial: bool = False
    ) -> None:
        """Replace the rules, and project once; the arguments and errors are those of the class.

        The tags of param groups and the metric stay; pass the model again. Steps are counted only while rules depend on
        their number. An error changes nothing.
        """
        if rules is None and model is None and not any(self._group_tags):
            raise ValueError(
                "nothing is tagged: give rules, or model= with layers tagged by constrain(), or param groups with a "
                '"constraint"'
            )
        tagged, waiting, named = self._resolve(rules, model)
        if rules is None and not tagged and not waiting:
            raise ValueError("no layer of the model is tagged: call constrain(layer, ...) first, or give rules")
        if waiting and not partial:
            raise ValueError(
                f"{', '.join(w.name for w in waiting)}: constrained, but not held by this optimizer. If another one "
                "holds them, say partial=True; if they are frozen, leave them free with a rule that maps them to None; "
                "if the model was moved, sharded or reloaded after the optimizer was made, make the optimizer anew"
            )
        self._check(tagged)
        resumed = "_tagged" not in vars(self) and saved_steps(self.param_groups) is not None
        self._undo = self._start([entry for entry in tagged if not resumed or is_done(entry, self._steps)])
        self._places = Places(model, self.param_groups)
        self._hold(tagged, waiting)
        self._record = None if self._record is None else {}  # of the entries before, some under the same names
        self._named = named
        self._rules = dict(rules or {})

    def _start(self, entries: list[PlanEntry]) -> Undo | None:
        """Project parameters that are new in the plan; what a checkpoint undoes that is loaded next."""
        groups = self.param_groups
        again = [] if self._steps else [at for entry in entries if counts(entry) for at in entry.handles]
        undo = Undo(groups, again) if again else None
        project_all(self._located(entries), self._steps)
        if undo is not None:
            undo.projected(groups)
        return undo

    def _check(self, entries: list[PlanEntry]) -> None:
        """Raise what makes it impossible to keep these entries of a plan."""
        check_real(self.inner, entries)
        check_not_flat(entries, self.param_groups)

    def _hold(self, tagged: list[PlanEntry], waiting: list[PlanEntry]) -> None:
        self._tagged, self._waiting = tagged, waiting
        self._counts = any(counts(entry) for entry in tagged)
        self._asking = [entry for entry in tagged if entry.tag.tangent is not None]
        self._watch, self._together = Watch(tagged, self._places), Together(tagged, self.param_groups)
        self._publish()

    def _publish(self) -> None:
        publish(self.inner.param_groups, self._steps if self._counts else None)

    def _resolve(
        self, rules: Rules | None, model: torch.nn.Module | None
    ) -> tuple[list[PlanEntry], list[PlanEntry], dict[Position, str]]:
        """What holds for the parameters that the optimizer holds, and for others; the names of all that it holds."""
        known = [] if model is None else of_model(model)
        positions: dict[int, Position] = {}
        in_model = {id(parameter.handle) for parameter in known}
        classes = [key.__name__ for key in rules or () if isinstance(key, type)]
        if classes and model is None:
            raise ValueError(f"rules by layer class ({', '.join(classes)}) need the model: pass model=")
        if rules and model is None and not any("param_names" in group for group in self.param_groups):
            raise ValueError("the rules need names: pass model=, or give the optimizer model.named_parameters()")
        for g, group in enumerate(self.param_groups):
            for i, (name, tensor) in enumerate(zip(names_of(group, g), group["params"], strict=True)):
                positions[id(tensor)] = (g, i)
                if id(tensor) not in in_model:
                    known.append(of_tensor(tensor, name))
        known = [with_group_tag(p, positions.get(id(p.handle)), self._group_tags) for p in known]
        found = resolved(rules, known, metric=self._default_metric())
        held = [any(id(tensor) in positions for tensor in entry.handles) for entry in found]
        tagged = [by_position(entry, positions) for entry, here in zip(found, held, strict=True) if here]
        named = {positions[id(p.handle)]: p.name for p in known if id(p.handle) in positions}
        return tagged, [entry for entry, here in zip(found, held, strict=True) if not here], named

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in any optimizer; what the rules, the tags or a key ``"constraint"`` say holds for it.

        Names and layers are those of the wrapped optimizer's model, which a copy does not know, or are in the group.
        """
        tag = tag_of(param_group)
        self.inner.add_param_group({key: value for key, value in param_group.items() if key != "constraint"})
        g = len(self.param_groups) - 1
        self._group_tags.append(tag)
        try:
            tagged, arrived, named = self._resolve_group(g)
            self._check(tagged)
            undo = self._start(tagged)
        except Exception:
            self.param_groups.pop()
            self._group_tags.pop()
            raise
        if undo is not None:
            self._undo = undo if self._undo is None else self._undo | undo
        waiting = [entry for entry in self._waiting if not any(entry is other for other in arrived)]
        self._places.find(self.param_groups)
        self._hold([*self._tagged, *tagged], waiting)
        self._named = self._named | named

    def _resolve_group(self, g: int) -> tuple[list[PlanEntry], list[PlanEntry], dict[Position, str]]:
        """What holds for the parameters of a new group, which of it was waiting for them, and their names."""
        group = self.param_groups[g]
        positions = {id(tensor): (g, i) for i, tensor in enumerate(group["params"])}
        arrived = [entry for entry in self._waiting if any(id(tensor) in positions for tensor in entry.handles)]
        metric = self._default_metric()
        awaited = {id(tensor): decided(entry.tag, None) for entry in arrived for tensor in entry.handles}
        model = self._places.model
        known = {} if model is None else {id(p.handle): p for p in of_model(model)}
        others: list[Parameter] = []
        named: dict[Position, str] = {}
        for name, tensor in zip(names_of(group, g), group["params"], strict=True):
            parameter, position = known.get(id(tensor)) or of_tensor(tensor, name), positions[id(tensor)]
            named[position] = parameter.name
            if id(tensor) in awaited:
                parameter = replace(parameter, tags=(("the rules", awaited[id(tensor)]),))
            parameter = with_group_tag(parameter, position, self._group_tags)
            if id(tensor) not in awaited:
                others.append(parameter)
            elif self._group_tags[g] is not None:
                both = tuple((source, decided(as_tag(given), metric)) for source, given in parameter.tags)
                resolved(None, [replace(parameter, tags=both)])  # raises where they disagree
        found = resolved(self._rules, others, unused=True, metric=metric)
        if not isinstance(self._group_tags[g], Joint) and any(isinstance(entry.tag, Joint) for entry in found):
            raise ValueError("a set over several parameters holds for this group too: call set_rules() after adding it")
        return [by_position(entry, positions) for entry in (*arrived, *found)], arrived, named

    @property
    def plan(self) -> Plan:
        """Which parameters are kept in which sets, with numeric axes."""
        return Plan(self._tagged)

    def project(self) -> None:
        """Project all tagged parameters now: after loading or averaging weights, for instance."""
        self._watch.check(self.param_groups)
        self._project()

    def _project(self, due: Callable[[PlanEntry], bool] = lambda entry: True) -> None:
        if self._record is None and not torch.compiler.is_compiling():
            left = self._together.project(self.param_groups, self._located, self._steps, due, self._find)
            if left:
                project_each(self._located(left), self._steps, None, self._find)
        else:
            project_each(self._located(entry for entry in self._tagged if due(entry)), self._steps, self._record)

    def _located(self, entries: Iterable[PlanEntry]) -> Iterator[Located]:
        return located(self.inner, entries)

    def _default_metric(self) -> str:
        """The metric of tags that do not say which: where all entries are scaled alike, it is the Euclidean one."""
        return self._metric if self._metric == EUCLIDEAN or scaling_of(type(self.inner)) else EUCLIDEAN

    # -- what every optimizer has: the wrapped one's ----------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the wrapped optimizer, then the projection; hooks that run after it see projected weights."""
        if closure is not None:
            return self.inner.step(self._tangent(closure) if self._asking else closure)
        if torch.compiler.is_compiling():
            return self.inner.step()
        if not self._places:
            warn_without_gradients(self.inner)
        self._initialising = only_initialises(self.inner)
        try:
            return self.inner.step()
        finally:
            self._initialising = False

    # the hooks of the wrapped optimizer run, and those for all optimizers only once
    step.hooked = True  # type: ignore[attr-defined]

    def _tangent(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, after which the gradients are tangent that ought to be."""

        def evaluate() -> Any:
            loss = closure()
            if self._tangents is not None:
                self._tangents.gradients()
            return loss

        return evaluate

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._tangents = None
        if self._initialising:
            return
        self._watch.check(self.param_groups)  # before anything is changed
        if self._asking:
            self._tangents = Tangents(self._asking, self.param_groups, self._steps)
            if (*args[1:], kwargs.get("closure"))[0] is None:  # the first is the optimizer
                self._tangents.gradients()
            self._tangents.before()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._nonfinite is not None and not self._initialising:
            self._check_finite()
        if self._tangents is not None:
            self._tangents.after()
        if self._counts:
            self._count()
        elif self._tagged and not self._initialising:
            self._project()
        if self._tangents is not None:
            self._tangents.momentum(self.inner.state, self._steps)
            self._tangents = None

    @torch.compiler.disable  # which would take the number of steps for a constant
    def _count(self) -> None:
        if self._initialising:
            return
        self._steps += 1
        self._undo = None
        self._publish()
        self._project(lambda entry: entry.due(self._steps))

    def state_dict(self) -> dict[str, Any]:
        """The state of the wrapped optimizer, which a bare one can load.

        Where it matters, the number of steps is added under the key "projgrad", beside the state and once more in the
        first param group, as distributed checkpointing drops the one beside it. A bare optimizer ignores both.
        """
        state = self.inner.state_dict()
        return {**state, **beside(self._steps)} if self._counts else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that this or a bare optimizer saved; without a number of steps, counting goes on.

        The weights may be loaded before or after, and before the optimizer was wrapped, too. Only those that were saved
        before any step, and are wrapped before this, are projected once more, which matters with a `rate` below 1.
        """
        saved_steps(state_dict.get("param_groups") or [{}], state_dict)  # raises before anything is changed
        self.inner.load_state_dict(state_dict)
        saved = saved_steps(self.param_groups, state_dict)
        if saved:
            if self._undo is not None:
                self._undo.take_back(self.param_groups)
            self._undo = None
        self._steps = self._steps if saved is None else saved
        self._publish()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("inner", "_tagged", "_waiting", "_group_tags", "_rules", "_named", "_steps", "_metric", "_nonfinite")
        started: dict[str, Any] = {"_record": None if self._record is None else {}, "_find": self._find}
        return {name: self.__dict__[name] for name in kept} | started

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        super().__setstate__({})
        self._hold(self._tagged, self._waiting)
        if not _is_wrapped(self.inner):  # a deep copy has lost the hook, a shallow one has not
            self._hook()

    def _hook(self) -> None:
        self.inner.register_step_pre_hook(self._before_step)
        # first among the hooks, so that the others see projected weights
        handle = self.inner.register_step_post_hook(self._after_step)
        self.inner._optimizer_step_post_hooks.move_to_end(handle.id, last=False)  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"ProjectedOptimizer({self.inner!r}\n{self.plan!r})"


def _is_wrapped(optimizer: Optimizer) -> bool:
    hooks = optimizer._optimizer_step_post_hooks.values()
    return any(isinstance(getattr(hook, "__self__", None), ProjectedOptimizer) for hook in hooks)
