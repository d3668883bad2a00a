"""What a model with HSA has, and what one forward pass of it has: the latter is handed to the layers as a keyword."""

import threading
from typing import TYPE_CHECKING, Any

import torch

from ..attention import AttentionPlan, LayerRules
from ..attention.context_parallel import ContextPass
from ..config import HSAConfig
from .cache.hsa_cache import HSACache


if TYPE_CHECKING:
    from .context_parallel.group import ContextGroup


KEYWORD = "hsa_forward"  # under which a layer gets its forward pass


class HSAState:
    """HSA's state on one model; it is copied and pickled with the model.

    Args:
        config: The rules.
        former_implementation: Name of the attention implementation before `enable_hsa`.
        model_name: For messages.
        windows: The model's own sliding window (or None) of each layer whose attention HSA must reach.
        is_hybrid: Whether the model has layers without softmax attention.

    Attributes:
        config: The rules; they may be set anew.
        layer_rules: What holds in each of these layers.
        is_on: False once `disable_hsa` was called.
        tokenizer: For rules that look at the text of generated tokens, where `generate` is given none; None: unknown.
        context: The ranks that share the tokens of every row; None: this process has all of them. It belongs to the process, so
            that a copy of the model has none.
        is_reached: Whether a forward has come to where types are read: the model calls its base model as a whole.
    """

    def __init__(
        self,
        config: HSAConfig,
        former_implementation: str,
        model_name: str,
        windows: dict[int, int | None],
        is_hybrid: bool = False,
    ) -> None:
        self.former_implementation, self.model_name = former_implementation, model_name
        self.windows, self.is_hybrid = windows, is_hybrid
        self.is_on = True
        self.is_reached = False
        self.tokenizer: Any = None
        self.context: ContextGroup | None = None
        self.config = config

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied and pickled: a process group is neither."""
        return {**vars(self), "context": None}

    @property
    def config(self) -> HSAConfig:
        """The rules."""
        return self._config

    @config.setter
    def config(self, config: HSAConfig) -> None:
        self._config = config
        self.layer_rules = {layer: _rules_of(config, layer, window) for layer, window in self.windows.items()}

    def refuse_padding(self, attention_mask: torch.Tensor | None, start: int) -> None:
        """Refuse padding after text where a layer would read it as text, or has.

        Args:
            attention_mask: (B, …), 0 is padding. None: there is none.
            start: From which token on it is looked at.
        """
        if attention_mask is not None and not bool(attention_mask[:, start:].all()):
            raise ValueError(
                f"{self.model_name} has layers without softmax attention, which read padding after text as text: give rows "
                "of different lengths, and those that end before the others, a cache each."
            )


class ForwardPass:
    """One forward pass of a model. It is the keyword that reaches the layers, also when they are computed anew.

    What holds at its beginning holds for all of it, whatever becomes of the model meanwhile. It is a plain class on purpose:
    FSDP copies dataclasses at every wrapped layer.

    Args:
        state: The model's.
        plan: What the tokens are; None: the pass has no types and attends as the model did before.
        layer_plans: With a cache, the plan of each layer: they may hold different keys. None: `plan` in all.
        cache: That cache; None: there is none.

    Attributes:
        config: The rules.
        context: How the rows are cut among ranks; None: they are not, and `plan` is that of the attention.
        layers_reached: Numbers of the layers that have attended with it.
        own_rope_deltas: What an M-RoPE model remembers of a conversation without an `HSACache`.
        text_axes: How many of the last axes of M-RoPE positions say where text after a token goes on: by the furthest.
        mask_windows: Sliding windows for which the model asked a mask.
        layer_windows: Sliding windows with which its attention was called.
    """

    def __init__(
        self,
        state: HSAState,
        plan: AttentionPlan | None = None,
        layer_plans: dict[int, AttentionPlan] | None = None,
        cache: HSACache | None = None,
    ) -> None:
        self.state, self.plan, self.layer_plans, self.cache = state, plan, layer_plans, cache
        self.config, self._layer_rules = state.config, state.layer_rules
        self.context: ContextPass | None = None
        self.own_rope_deltas: torch.Tensor | None = None
        self.text_axes = 3
        self.layers_reached: set[int] = set()
        self.mask_windows: set[int | None] = set()
        self.layer_windows: set[int | None] = set()

    def reach(self, layer: int, sliding_window: int | None) -> tuple[AttentionPlan, LayerRules]:
        """Return the plan and the rules of a layer that attends now.

        Raises:
            ValueError: If the layer's window is not the one by which a cache lets its keys go.
        """
        state = self.state
        assert self.plan is not None, "a pass without a plan reaches no layer"
        self.layers_reached.add(layer)
        self.layer_windows.add(sliding_window)
        if sliding_window == state.windows[layer]:
            rules = self._layer_rules[layer]
        elif self.layer_plans is None:
            rules = _rules_of(self.config, layer, sliding_window)
        else:
            raise ValueError(
                f"{state.model_name} calls layer {layer} with a sliding window of {sliding_window}, but its "
                f"configuration says {state.windows[layer]}: an HSACache cannot be used with it."
            )
        return (self.plan if self.layer_plans is None else self.layer_plans[layer]), rules


def _rules_of(config: HSAConfig, layer: int, sliding_window: int | None) -> LayerRules:
    """Return what holds in a layer that is called with some sliding window of the model's own."""
    has_hsa = config.layers is None or layer in config.layers
    return LayerRules.of(config, sliding_window) if has_hsa else LayerRules.plain(sliding_window)


class _UnderWay(threading.local):
    """The forward passes under way in this thread, the innermost last: where no keyword arrives, as in masks.

    Attributes:
        passes: From where the text model begins to where it ends.
        outer: Models whose head (or loss) follows, with the pass that waits for its end.
    """

    def __init__(self) -> None:
        self.passes: list[ForwardPass] = []
        self.outer: dict[HSAState, ForwardPass | None] = {}


_under_way = _UnderWay()


def enter(forward: ForwardPass) -> None:
    """Begin a pass. One of the same model that an interrupt left behind ends: torch calls no hooks then."""
    leave(forward.state)
    _under_way.passes.append(forward)


def leave(state: HSAState) -> ForwardPass | None:
    """End a model's pass and return it; None: it has none under way."""
    for index, forward in enumerate(_under_way.passes):
        if forward.state is state:
            return _under_way.passes.pop(index)
    return None


def innermost() -> ForwardPass | None:
    """Return the innermost pass under way in this thread; None: there is none."""
    return _under_way.passes[-1] if _under_way.passes else None


def find_pass(state: HSAState) -> ForwardPass | None:
    """Return a model's pass under way in this thread; None: there is none."""
    return next((forward for forward in _under_way.passes if forward.state is state), None)


def enter_outer(state: HSAState) -> None:
    """Begin the forward of the model around a pass."""
    _under_way.outer[state] = None


def leave_outer(state: HSAState) -> ForwardPass | None:
    """End the forward of the model around a pass. Returns the pass that waits for that; None: none does."""
    return _under_way.outer.pop(state, None)


def wait_for_outer(forward: ForwardPass) -> bool:
    """Let a pass wait for the end of the forward around it. Returns whether there is one."""
    if forward.state not in _under_way.outer:
        return False
    _under_way.outer[forward.state] = forward
    return True


def take_waiting(state: HSAState) -> ForwardPass | None:
    """Return the pass that waits, which then waits no more; None: none does."""
    waiting = _under_way.outer.get(state)
    if waiting is not None:
        _under_way.outer[state] = None
    return waiting
