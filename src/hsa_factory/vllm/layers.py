"""Which rules hold in which layers of a model that is served."""

from ..attention.layer_rules import LayerRules
from ..config import HSAConfig


def rules_of(config: HSAConfig, layer: int, sliding_window: int | None) -> LayerRules:
    """Return what holds in a layer.

    Args:
        config: HSA's rules.
        layer: Its number.
        sliding_window: The model's own in it: a query sees keys with d < sliding_window only. None: it has none.
    """
    if config.layers is not None and layer not in config.layers:
        return LayerRules.plain(sliding_window)
    return LayerRules.of(config, sliding_window)
