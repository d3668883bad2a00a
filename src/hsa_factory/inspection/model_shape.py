"""What the cost of attention depends on in a model, read from its configuration: no weights are loaded."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from ..attention import LayerRules
from ..config import HSAConfig
from ..models.text_model import has_stateful_layers, sliding_windows


_OTHER_LAYOUTS = ("kv_lora_rank", "global_head_dim", "num_kv_shared_layers")  # keys whose size differs, or is shared
_SOFTMAX_LAYERS = ("full_attention", "sliding_attention", "attention")


@dataclass(frozen=True)
class ModelShape:
    """A model's attention.

    Attributes:
        heads: Query heads.
        key_heads: Key and value heads.
        head_size: Of each.
        dtype: Of keys and values.
        layer_rules: What holds in each softmax attention layer with HSA.
        windows: The model's own sliding window of each; None: it has none.
        is_hybrid: Whether other layers carry a state, so that a cache goes on by one token at a time.
    """

    heads: int
    key_heads: int
    head_size: int
    dtype: torch.dtype
    layer_rules: dict[int, LayerRules]
    windows: dict[int, int | None]
    is_hybrid: bool = False

    @classmethod
    def of(cls, model_config: Any, config: HSAConfig) -> "ModelShape":
        """Read a model's configuration.

        Args:
            model_config: transformers' configuration.
            config: HSA's rules.

        Raises:
            ValueError: If its keys are not all of one size.
        """
        text: Any = model_config.get_text_config(decoder=True)
        for name in _OTHER_LAYOUTS:
            if getattr(text, name, None):
                raise ValueError(
                    f"--cost: a model of type {model_config.model_type} keeps keys of another kind ({name}), whose size is "
                    "not known here."
                )
        kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
        layers = [index for index, kind in enumerate(kinds) if kind in _SOFTMAX_LAYERS]
        windows = sliding_windows(text, layers)
        with_hsa = layers if config.layers is None else config.layers
        rules = {
            layer: LayerRules.of(config, window) if layer in with_hsa else LayerRules.plain(window)
            for layer, window in windows.items()
        }
        heads = text.num_attention_heads
        return cls(
            heads,
            getattr(text, "num_key_value_heads", None) or heads,
            getattr(text, "head_dim", None) or text.hidden_size // heads,
            getattr(text, "dtype", None) or getattr(model_config, "dtype", None) or torch.float32,
            rules,
            windows,
            has_stateful_layers(model_config),
        )

    @property
    def layers(self) -> int:
        """Softmax attention layers."""
        return len(self.layer_rules)

    @property
    def key_bytes(self) -> int:
        """Bytes of one token's key and value in one layer."""
        return 2 * self.key_heads * self.head_size * self.dtype.itemsize

    @property
    def plain_windows(self) -> Counter[int | None]:
        """How many layers have each sliding window of the model's own."""
        return Counter(self.windows.values())

    def count(self, rules: LayerRules) -> int:
        """In how many layers these rules hold."""
        return list(self.layer_rules.values()).count(rules)
