"""An optimizer that has what another one has."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

__all__ = ["Delegate"]


class Delegate(Optimizer):
    """The base of an optimizer around another one: whose groups, state and hooks it has, not copies.

    `Optimizer.__init__` is not called, as it would make groups and a state of its own.
    """

    inner: Optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The param groups of the wrapped optimizer."""
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.inner.param_groups = value

    @property
    def state(self) -> Any:
        """The state of the wrapped optimizer."""
        return self.inner.state

    @state.setter
    def state(self, value: Any) -> None:
        self.inner.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the wrapped optimizer."""
        return self.inner.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.inner.defaults = value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients."""
        self.inner.zero_grad(set_to_none=set_to_none)

    def register_step_pre_hook(self, hook: Any) -> Any:
        """Register a hook on the wrapped optimizer."""
        return self.inner.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> Any:
        """Register a hook on the wrapped optimizer; it sees projected weights."""
        return self.inner.register_step_post_hook(hook)

    def register_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register a hook on the wrapped optimizer."""
        return self.inner.register_state_dict_pre_hook(hook, prepend)

    def register_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register a hook on the wrapped optimizer."""
        return self.inner.register_state_dict_post_hook(hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register a hook on the wrapped optimizer."""
        return self.inner.register_load_state_dict_pre_hook(hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register a hook on the wrapped optimizer."""
        return self.inner.register_load_state_dict_post_hook(hook, prepend)

    def __getattr__(self, name: str) -> Any:
        text, inner = f"{type(self).__name__} has no attribute {name!r}", self.__dict__.get("inner")
        if hasattr(inner, name):
            kind = type(inner).__name__
            text += (
                f"; the wrapped {kind} has it, as .inner.{name}. Nothing is projected after a part of a step that is "
                f"called there: call step(closure), or wrap the optimizer inside {kind} instead, as in .base_optimizer"
            )
        raise AttributeError(text, name=name, obj=self)
