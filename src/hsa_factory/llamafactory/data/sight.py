"""Replies that cannot see what they answer: how often the rules hide a message from the reply that comes next."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...config import HSAConfig
from ...semantics import SemanticType


_NEVER = np.iinfo(np.int64).max


class Turns:
    """Where the turns of samples stand among the tokens of a batch."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._numbers: list[int] = []
        self._lengths: list[int] = []

    def add(self, start: int, lengths: Sequence[int]) -> None:
        """Take in a sample.

        Args:
            start: Place of its first turn.
            lengths: Tokens of the prompt of the first turn, of its response, of the next prompt, and so on.
        """
        if not lengths:  # a prompt without a reply
            return
        self._starts.append(start)
        self._numbers.append(len(lengths) // 2)
        self._lengths += lengths

    def exchanges(self, token_ids: np.ndarray, opening: Sequence[int]) -> "Exchanges":
        """Return the replies and what they answer.

        Args:
            token_ids: Of the batch.
            opening: What the template puts between a message and its reply. It stands with the prompt and says nothing.
        """
        prompts, responses = np.array(self._lengths, np.int64).reshape(-1, 2).T
        numbers = np.array(self._numbers, np.int64)
        before = np.cumsum(prompts + responses) - prompts - responses
        starts = before + np.repeat(np.array(self._starts, np.int64) - before[np.cumsum(numbers) - numbers], numbers)
        first = starts + prompts
        is_opened = prompts > len(opening)
        for back, token in enumerate(reversed(opening), start=1):
            is_opened &= token_ids[np.maximum(first - back, 0)] == token
        exchanges = np.stack([starts, first - is_opened * len(opening), first, first + responses - 1])
        is_reply = (responses > 0) & (prompts > 0)
        starts_of, stops, first_of, last = exchanges[:, is_reply]
        return Exchanges(starts_of, stops, first_of, last, TurnEnds(starts, first + responses - 1, numbers))


class TurnEnds:
    """Where each turn of a batch begins and ends: a message's turn is that of the reply that comes next.

    Args:
        starts: First token of each turn, samples one after another, (t,).
        ends: Its last token, (t,).
        numbers: How many turns each sample has.
    """

    def __init__(self, starts: np.ndarray, ends: np.ndarray, numbers: np.ndarray) -> None:
        self._starts, self._ends = starts, ends
        self._last = np.repeat(np.cumsum(numbers) - 1, numbers)

    def after(self, places: np.ndarray, turns: int) -> np.ndarray:
        """Return the last place of the sample that is at most so many turns later than each of these, ascending, (m,)."""
        if not len(self._starts):
            return np.full(len(places), -1)
        own = np.maximum(np.searchsorted(self._starts, places, side="right") - 1, 0)
        return self._ends[np.minimum(own + min(turns, len(self._starts)), self._last[own])]


class Exchanges(NamedTuple):
    """Places of replies and of what they answer: all from the reply before up to the opening. Each is (k,) int64.

    Attributes:
        starts: First token of what is answered.
        stops: After its last token.
        first: First token of the reply.
        last: Last token of the reply.
        turns: All turns, those included in which one of the two is missing.
    """

    starts: np.ndarray
    stops: np.ndarray
    first: np.ndarray
    last: np.ndarray
    turns: TurnEnds


def common_end(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """Return the ids that both end with."""
    size = 0
    while size < min(len(first), len(second)) and first[-1 - size] == second[-1 - size]:
        size += 1
    return list(first[len(first) - size :])


@dataclass(frozen=True)
class SeenTokens:
    """The tokens of a batch, and by which rules they see each other.

    Attributes:
        token_ids: (n,) int32.
        semantic_ids: (n,) int8.
        config: The rules of the layers with HSA.
        media_ids: Ids that stand for media or enclose them.
        marker_id: Id of the feedback marker; None: there is none.
    """

    token_ids: np.ndarray
    semantic_ids: np.ndarray
    config: HSAConfig
    media_ids: Collection[int]
    marker_id: int | None

    def count(self, exchanges: Exchanges) -> tuple[Counter, dict[str, int]]:
        """Count the replies from whose first or last token the rules hide what they answer, or a part of it.

        Returns:
            The counts that `DatasetAccount.sight` describes, and by type the window that would show everything to the end
            of every reply (no entry: no window of this type hides anything).
        """
        counts = Counter(replies=len(exchanges.first))
        blind = np.zeros(len(exchanges.first), np.bool_)
        windows: dict[str, int] = {}
        for name, places in self._subjects().items():
            keys = [
                KeysOfType(self.config, kind, places[self.semantic_ids[places] == kind], exchanges.turns)
                for kind in SemanticType
            ]
            total = sum(of_type.count(exchanges) for of_type in keys)
            counts[name] = int(np.count_nonzero(total))
            for end, queries in (("start", exchanges.first), ("end", exchanges.last)):
                seen = sum(of_type.count_seen(exchanges, queries, self.semantic_ids[queries]) for of_type in keys)
                is_unseen = (seen == 0) & (total > 0)
                counts[f"{name}_unseen_at_{end}"] = int(np.count_nonzero(is_unseen))
                counts[f"{name}_partly_seen_at_{end}"] = int(np.count_nonzero((seen > 0) & (seen < total)))
                if end == "start":
                    blind |= is_unseen
            if name == "message":
                hidden = sum(of_type.count_hidden(exchanges, self.semantic_ids) for of_type in keys)
                counts["hidden"] = int(np.count_nonzero(hidden))
                needed = {of_type.kind.name: of_type.window_needed(exchanges) for of_type in keys}
                windows = {kind: window for kind, window in needed.items() if window}
        counts["blind"] = int(np.count_nonzero(blind))
        return counts, windows

    def _subjects(self) -> dict[str, np.ndarray]:
        """Return the places of what is looked for in messages: any token, media, the marker."""
        subjects = {"message": np.arange(len(self.token_ids))}
        if self.media_ids:
            subjects["media"] = np.flatnonzero(np.isin(self.token_ids, list(self.media_ids)))
        if self.marker_id is not None:
            subjects["marker"] = np.flatnonzero(self.token_ids == self.marker_id)
        return subjects


class KeysOfType:
    """Keys of one type in ascending order, so that those seen from a place are all after the first one that is.

    Args:
        config: The rules.
        kind: The type.
        places: Of the keys, (m,).
        turns: Of the batch.
    """

    def __init__(self, config: HSAConfig, kind: SemanticType, places: np.ndarray, turns: TurnEnds) -> None:
        self.kind = kind
        self.places = places
        self.last_seen = last_seen(places, config.windows[kind], config.turns[kind], turns)
        self.hidden_from = [query_type for query_type, key_type in config.hide if key_type == kind]

    def count(self, exchanges: Exchanges) -> np.ndarray:
        """Count them in each message, (k,)."""
        return np.searchsorted(self.places, exchanges.stops) - np.searchsorted(self.places, exchanges.starts)

    def count_seen(self, exchanges: Exchanges, queries: np.ndarray, query_types: np.ndarray) -> np.ndarray:
        """Count those in each message that the message's query sees, (k,)."""
        seen = np.searchsorted(self.places, exchanges.stops) - self._first_seen(exchanges, queries)
        return np.where(np.isin(query_types, self.hidden_from), 0, np.maximum(seen, 0))

    def count_hidden(self, exchanges: Exchanges, semantic_ids: np.ndarray) -> np.ndarray:
        """Count those in each message that `hide` keeps from the first or the last token of its reply, (k,)."""
        ends = (semantic_ids[exchanges.first], semantic_ids[exchanges.last])
        is_hidden = np.isin(ends, self.hidden_from).any(axis=0)
        return np.where(is_hidden, self.count(exchanges), 0)

    def window_needed(self, exchanges: Exchanges) -> int:
        """Return the window that shows every message to the end of its reply; 0: the present one does."""
        first = np.searchsorted(self.places, exchanges.starts)
        is_out = (self.count(exchanges) > 0) & (self._first_seen(exchanges, exchanges.last) > first)
        return int((exchanges.last[is_out] - self.places[first[is_out]]).max(initial=0))

    def _first_seen(self, exchanges: Exchanges, queries: np.ndarray) -> np.ndarray:
        first = np.searchsorted(self.places, exchanges.starts)
        return np.maximum(first, np.searchsorted(self.last_seen, queries))


def last_seen(places: np.ndarray, window: int | None, turns: int | None, ends: TurnEnds) -> np.ndarray:
    """Return the last place that sees each of the keys of one type, as far as its window and its turns decide it.

    It is `attention.last_seen` for many samples at once, without tensors: it runs in processes that `datasets` forks.

    Args:
        places: Of the keys, ascending, (m,).
        window: None: not given.
        turns: For how many turns after its own a key is seen; None: not given.
        ends: Of the batch's turns.

    Returns:
        (m,) int64, ascending.
    """
    if window is None and turns is None:
        return np.full(len(places), _NEVER)
    in_window = places if window is None else places + min(window, _NEVER // 2)
    return in_window if turns is None else np.maximum(in_window, ends.after(places, turns))
