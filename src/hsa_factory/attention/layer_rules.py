"""The rules that hold in one layer: HSA's and the model's own sliding window together."""

from dataclasses import dataclass

from ..config import HSAConfig


@dataclass(frozen=True)
class EffectiveRules:
    """The rules of a layer, by `SemanticType`.

    Attributes:
        decays: Slope of a key.
        windows: Largest distance at which a key is seen; None: no limit.
        hide: Pairs (query type, key type) that never see each other.
    """

    decays: tuple[float, ...]
    windows: tuple[int | None, ...]
    hide: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, config: HSAConfig, sliding_window: int | None, neutral: bool) -> "EffectiveRules":
        """Join a configuration (left out if `neutral`) and a sliding window (keys with d < sliding_window)."""
        decays = (0.0, 0.0, 0.0) if neutral else config.decays
        windows: tuple[int | None, ...] = (None, None, None) if neutral else config.windows
        if sliding_window is not None:
            limit = max(sliding_window - 1, 0)
            windows = tuple(limit if window is None else min(window, limit) for window in windows)
        return cls(decays, windows, () if neutral else config.hide)
