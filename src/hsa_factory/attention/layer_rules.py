"""The rules that hold in one layer: HSA's and the model's own sliding window together."""

from dataclasses import dataclass

from ..config import HSAConfig


@dataclass(frozen=True)
class LayerRules:
    """What holds in a layer, by `SemanticType` of the key. The plan is what the tokens are; the rules are the rest.

    Attributes:
        decays: Slope of a key: its bias is −decay·d at distance d.
        windows: Largest distance at which a key is seen; None: no limit.
        hide: Pairs (query type, key type) that never see each other; a token sees itself all the same.
    """

    decays: tuple[float, ...] = (0.0, 0.0, 0.0)
    windows: tuple[int | None, ...] = (None, None, None)
    hide: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, config: HSAConfig, sliding_window: int | None = None) -> "LayerRules":
        """Return a configuration's rules, within the model's own window.

        Args:
            config: HSA's rules.
            sliding_window: The model's own: a query sees keys with d < sliding_window only. None: no such limit.
        """
        return cls(config.decays, _narrowed(config.windows, sliding_window), config.hide)

    @classmethod
    def plain(cls, sliding_window: int | None = None) -> "LayerRules":
        """Return the rules of a layer without HSA: causality, documents, padding and the model's own window."""
        return cls(windows=_narrowed((None, None, None), sliding_window))


def _narrowed(windows: tuple[int | None, ...], sliding_window: int | None) -> tuple[int | None, ...]:
    if sliding_window is None:
        return windows
    limit = max(sliding_window - 1, 0)
    return tuple(limit if window is None else min(window, limit) for window in windows)
