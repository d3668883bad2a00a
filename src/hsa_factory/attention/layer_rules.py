"""The rules that hold in one layer: HSA's and the model's own sliding window together."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import HSAConfig


NEAR_LIMIT = 256  # tokens: keys with no more than such a window lie in a narrow strip before the queries that see them
UNLIMITED = 2**40  # above every distance and number of turns


@dataclass(frozen=True)
class LayerRules:
    """What holds in a layer, by `SemanticType` of the key. The plan is what the tokens are; the rules are the rest.

    A key of a type without window and turns is seen from any distance. Otherwise it is seen within its window (where
    there is one) or within its turns (where they are given), and then within `sliding_window`.

    Attributes:
        decays: Slope of a key: its bias is −decay·d at distance d.
        windows: Largest distance at which a key is seen; None: not given.
        turns: For how many turns after its own a key is seen; None: not given.
        sliding_window: The model's own, where it cuts what turns let see: a query sees keys with d < sliding_window only.
            None: there is none, or `windows` hold it already.
        hide: Pairs (query type, key type) that never see each other; a token sees itself all the same.
    """

    decays: tuple[float, ...] = (0.0, 0.0, 0.0)
    windows: tuple[int | None, ...] = (None, None, None)
    turns: tuple[int | None, ...] = (None, None, None)
    sliding_window: int | None = None
    hide: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, config: HSAConfig, sliding_window: int | None = None) -> "LayerRules":
        """Return a configuration's rules, within the model's own window.

        Args:
            config: HSA's rules.
            sliding_window: The model's own: a query sees keys with d < sliding_window only. None: no such limit.
        """
        turns = config.turns
        return cls(
            config.decays,
            _narrowed(config.windows, turns, sliding_window),
            turns,
            None if turns == (None, None, None) else sliding_window,
            config.hide,
        )

    @classmethod
    def plain(cls, sliding_window: int | None = None) -> "LayerRules":
        """Return the rules of a layer without HSA: causality, documents, padding and the model's own window."""
        nothing = (None, None, None)
        return cls(windows=_narrowed(nothing, nothing, sliding_window))

    @property
    def has_turns(self) -> bool:
        """Whether a type is seen by its turns, so that `turn_ids` are needed."""
        return any(turns is not None for turns in self.turns)

    @property
    def window_reach(self) -> list[int]:
        """Largest distance at which its window lets a key of a type be seen, up to `UNLIMITED`; −1: its turns alone do."""
        alone = [UNLIMITED if turns is None else -1 for turns in self.turns]
        return [free if window is None else min(window, UNLIMITED) for window, free in zip(self.windows, alone)]

    @property
    def turn_reach(self) -> list[int]:
        """For how many turns after its own a key of a type is seen at any distance; −1: its turns do not count."""
        return [-1 if turns is None else min(turns, UNLIMITED) for turns in self.turns]

    @property
    def sliding_reach(self) -> int:
        """Largest distance that the model's own window leaves of all this; `UNLIMITED` where it leaves all."""
        return UNLIMITED if self.sliding_window is None else max(self.sliding_window - 1, 0)

    @property
    def hide_bits(self) -> int:
        """`hide` as one number: bit 3·query type + key type of each pair."""
        return sum(1 << (3 * query + key) for query, key in set(self.hide))

    def bands(
        self, kinds: Sequence[int] = (0, 1, 2), longest: int = UNLIMITED - 1
    ) -> tuple[list[int], list[list[int]]]:
        """Sort types by how far they are seen: a backend keeps the keys of a band together, in order.

        Args:
            kinds: The types to sort.
            longest: Windows above it are no limit.

        Returns:
            The types with a window of at most `NEAR_LIMIT` and no turns, whatever each one's window; then the others in
            bands, that without limit first. In each of these bands, a later key is seen at least as long as an earlier one.
        """
        windows = [UNLIMITED if window > longest else window for window in self.window_reach]
        near = [kind for kind in kinds if self.turns[kind] is None and windows[kind] <= NEAR_LIMIT]
        bands: dict[tuple[int, int], list[int]] = {}
        for kind in kinds:
            if kind not in near:
                turns = -1 if windows[kind] == UNLIMITED else self.turn_reach[kind]
                bands.setdefault((windows[kind], turns), []).append(kind)
        return near, [bands[reach] for reach in sorted(bands, reverse=True)]


def _narrowed(
    windows: tuple[int | None, ...], turns: tuple[int | None, ...], sliding_window: int | None
) -> tuple[int | None, ...]:
    """Narrow windows to the model's own, but give none to a type that has turns instead."""
    if sliding_window is None:
        return windows
    limit = max(sliding_window - 1, 0)
    no_window = [None if kind_turns is not None else limit for kind_turns in turns]
    return tuple(free if window is None else min(window, limit) for window, free in zip(windows, no_window))
