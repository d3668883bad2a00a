"""From raw texts to the rows of stage `pt`: what of a text stands where, what is counted, and the columns."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

import numpy as np

from ...semantics import SemanticType
from ...typed.ids import TypedTokenId, read_off
from ...typed.text import TypedText
from .report import DatasetAccount
from .sample_errors import NOTHING_TO_TRAIN
from .token_table import LOSS_MASK_COLUMN, ROW_SAMPLES_COLUMN, ROW_SOURCE_COLUMN, SEMANTIC_COLUMN, Ragged


NO_BLOCK = "in no block: the texts left at the end of a batch do not fill one of cutoff_len tokens"
EMPTY_BLOCK = "blocks left out in which nothing is trained"
SEEN_ACROSS = (
    "blocks whose texts see those before them, as in LLaMA-Factory (`packing: false` makes a row of each text)"
)


@dataclass
class RawText:
    """A text at work.

    Attributes:
        source: Its data set.
        index: Its number there.
        text: What it says.
        weight: 0: it is not trained; None: it is.
        length: Its tokens, before any cut.
        markers: Places of the feedback markers that something is decided by.
        cut: Tokens that no row holds.
        marker_cut: Whether such a marker is among them.
    """

    source: str
    index: int
    text: TypedText
    weight: float | None = None
    length: int = 0
    markers: list[int] = field(default_factory=list)
    cut: int = 0
    marker_cut: bool = False


@dataclass
class TextPart:
    """What a row holds of a text.

    Attributes:
        text: Number of the text among those that rows are made of.
        start: Where in the row it begins.
        stop: Where in the row it ends.
        first: Which of the text's tokens is the first there.
    """

    text: int
    start: int
    stop: int
    first: int


def locate(
    texts: Sequence[RawText], rows: Sequence[Sequence[int]], is_packed: bool, from_end: bool
) -> list[list[TextPart]]:
    """Return what each row holds of which texts.

    Args:
        texts: Those that LLaMA-Factory has made the rows of, in order.
        rows: Its rows, each a sequence of ids.
        is_packed: Whether it has joined the texts and cut them into blocks of one length; else a row is a text, cut.
        from_end: Whether of a text that is cut the end is left.
    """
    if not is_packed:
        firsts = [text.length - len(row) if from_end else 0 for text, row in zip(texts, rows)]
        return [[TextPart(k, 0, len(row), max(first, 0))] for k, (row, first) in enumerate(zip(rows, firsts))]

    ends = list(accumulate(text.length for text in texts))
    located, text, start = [], 0, 0
    for row in rows:
        parts, stop = [], start + len(row)
        while start < stop:
            if ends[text] > start:
                end = min(ends[text], stop)
                first = start - (ends[text] - texts[text].length)
                parts.append(TextPart(text, start - stop + len(row), end - stop + len(row), first))
                start = end
            text += ends[text] <= start
        located.append(parts)
    return located


def count_rows(
    texts: Sequence[RawText],
    rows: Sequence[Sequence[TypedTokenId]],
    located: Sequence[Sequence[TextPart]],
    accounts: Mapping[str, DatasetAccount],
    pad_id: int | None,
) -> None:
    """Count texts and tokens of the rows.

    Args:
        texts: Those that LLaMA-Factory has made the rows of.
        rows: The rows that are left.
        located: What each holds of the texts.
        accounts: By data set; added to.
        pad_id: Id that the collator takes for padding, wherever it stands; None: there is none.
    """
    held: dict[int, list[Sequence[TypedTokenId]]] = defaultdict(list)
    places: dict[int, set[int]] = defaultdict(set)
    for row, parts in zip(rows, located):
        for part in parts:
            held[part.text].append(row[part.start : part.stop])
            places[part.text].update(range(part.first, part.first + part.stop - part.start))
    last = max((part.text for parts in located for part in parts), default=-1)
    for number, text in enumerate(texts):
        account = accounts[text.source]
        if number not in held:
            account.drop(NO_BLOCK if number > last else NOTHING_TO_TRAIN, text.index)
            continue
        ids = list(chain.from_iterable(held[number]))
        trained = sum(token.trained and token != pad_id for token in ids)
        account.keep(read_off(ids)[0], trained)
        text.cut = max(text.length - len(ids), 0)
        account.text_truncated += text.cut > 0
        text.marker_cut = not places[number].issuperset(text.markers)
        if text.marker_cut:
            account.cut_marker(text.index)


def make_columns(
    texts: Sequence[RawText],
    rows: Sequence[Sequence[TypedTokenId]],
    located: Sequence[Sequence[TextPart]],
    has_mask: bool,
) -> dict[str, Any]:
    """Return the columns of the rows; where there are none, of one that stands for no sample: one token of padding.

    Args:
        texts: Those that the rows are made of.
        rows: Their ids, typed.
        located: What each holds of the texts.
        has_mask: Whether they say what of them is not trained.
    """
    ids = join(rows or [[0]])
    kinds, masks = zip(*map(read_off, rows)) if rows else ((bytes([SemanticType.NOISE]),), (b"\0",))
    columns: dict[str, Any] = {"input_ids": ids}
    columns[SEMANTIC_COLUMN] = _of_bytes(kinds, ids)
    if has_mask:
        columns[LOSS_MASK_COLUMN] = _of_bytes(masks, ids)
    described = [[_describe(texts[part.text], part) for part in parts] for parts in located]
    described = described or [[]]
    columns[ROW_SOURCE_COLUMN] = [", ".join(dict.fromkeys(part["dataset"] for part in row)) for row in described]
    columns[ROW_SAMPLES_COLUMN] = list(map(json.dumps, described))
    return columns


def join(rows: Sequence[Sequence[int]]) -> Ragged:
    """Join rows of ids or numbers, int32."""
    values = np.fromiter(chain.from_iterable(rows), np.int32)
    return Ragged(values, np.cumsum([0, *map(len, rows)]))


def _of_bytes(rows: Sequence[bytes], ids: Ragged) -> Ragged:
    return Ragged(np.frombuffer(b"".join(rows), np.int8), ids.bounds)


def _describe(text: RawText, part: TextPart) -> dict[str, Any]:
    return {
        "start": part.start,
        "dataset": text.source,
        "index": text.index,
        "cut": text.cut,
        "marker_cut": text.marker_cut,
    }
