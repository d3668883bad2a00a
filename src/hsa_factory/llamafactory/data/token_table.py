"""From samples to rows: what is known of the tokens of a batch, and how it follows LLaMA-Factory's layout.

LLaMA-Factory joins, packs and pads samples. It does so with the places of their tokens in a table instead of the tokens, so
that everything known of a token is looked up for a whole batch at once.
"""

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features
from datasets.arrow_writer import OptimizedTypedSequence
from datasets.features.features import generate_from_arrow_type
from llamafactory.data.processor.supervised import MAX_SU_SEQ_IDX

from ...feedback import IGNORE_INDEX
from ...semantics import SemanticType
from ...training.columns import LOSS_WEIGHTS_COLUMN, SEMANTIC_COLUMN, TURN_COLUMN
from ...typed.ids import TypedTokenId, read_off, weights_of
from .aligned import to_arrow
from .turns import run_on, to_stored


LOSS_MASK_COLUMN = "loss_mask"
ROW_SOURCE_COLUMN = "hsa_dataset"
ROW_SAMPLES_COLUMN = "hsa_samples"  # where each sample of a row starts, and what the cut took from it, as JSON
_LISTS = ("attention_mask", "position_ids")  # columns of LLaMA-Factory that hold a number for each token
_FIRST = 1 << 40  # the first place: above every id, so that padding is told from it


@dataclass
class Tokens:
    """The tokens of one finished sample.

    Attributes:
        token_ids: (n,) int32.
        semantic_ids: (n,) a byte each.
        labels: (m,) int32; m = n but for references of predictions.
        loss_mask: (m,) 1 where a label may be trained, else 0; a byte each.
        turn_ids: (n,) int32; None where no rule has turns.
        weights: (m,) float32, what the loss of each is multiplied by; None: by 1.
    """

    token_ids: array
    semantic_ids: bytes
    labels: array
    loss_mask: bytes
    turn_ids: np.ndarray | None = None
    weights: array | None = None

    @classmethod
    def read(cls, input_ids: Sequence[TypedTokenId], labels: Sequence[int], is_weighed: bool = False) -> "Tokens":
        """Read off what typed ids carry.

        Args:
            input_ids: Of one sample.
            labels: As many.
            is_weighed: Whether some ids carry a weight: those are trained though they have no label.
        """
        semantic_ids, loss_mask = read_off(input_ids)
        if not is_weighed:
            return cls(array("i", input_ids), semantic_ids, array("i", labels), loss_mask)
        given = weights_of(input_ids)
        weights = array("f", [1.0 if weight is None else weight for weight in given])
        labels = [
            token if label == IGNORE_INDEX and weight is not None else label
            for token, label, weight in zip(input_ids, labels, given)
        ]
        return cls(array("i", input_ids), semantic_ids, array("i", labels), loss_mask, weights=weights)

    @classmethod
    def none(cls) -> "Tokens":
        """Return the tokens of a sample that has none."""
        return cls(array("i"), b"", array("i"), b"")

    @property
    def trained(self) -> int:
        """How many labels are trained."""
        return int(np.count_nonzero(self._is_trained()))

    @property
    def weighed(self) -> tuple[int, float]:
        """How many trained labels have a weight other than 1, and what their weights add up to."""
        if self.weights is None:
            return 0, 0.0
        weights = np.frombuffer(self.weights, np.float32)[self._is_trained()]
        weights = weights[weights != 1]
        return len(weights), float(weights.sum(dtype=np.float64))

    def _is_trained(self) -> np.ndarray:
        is_label = np.frombuffer(self.labels, np.int32) != IGNORE_INDEX
        return is_label & np.frombuffer(self.loss_mask, np.bool_)


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths.

    Attributes:
        values: Those of all rows, one after another.
        bounds: (rows + 1,) where each row begins, and where the last one ends.
    """

    values: np.ndarray
    bounds: np.ndarray

    def to_lists(self) -> list[list[int]]:
        """Return the rows as lists."""
        values = self.values.tolist()
        return [values[start:stop] for start, stop in zip(self.bounds[:-1].tolist(), self.bounds[1:].tolist())]

    def to_arrow(self) -> pa.ListArray:
        """Return the rows as Arrow holds them.

        Raises:
            pa.ArrowInvalid: Above 2³¹ values, more than an Arrow list array can number.
        """
        return pa.ListArray.from_arrays(pa.array(self.bounds, pa.int32()), self.values)


class TokenTable:
    """The samples of a batch, their tokens one after another.

    Args:
        has_turns: Whether tokens have turn numbers.
        rows_run_on: Whether the samples of a packed row see each other, so that its turn numbers run on from one to the next.
        has_weights: Whether rows say by what the loss of each token is multiplied; None: where a sample needs it.
        numbers_samples: Whether the attention mask numbers the samples of a row (`neat_packing`): there may be more than a
            byte holds.
    """

    def __init__(
        self,
        has_turns: bool = False,
        rows_run_on: bool = False,
        has_weights: bool | None = False,
        numbers_samples: bool = True,
    ) -> None:
        self.has_turns, self.rows_run_on, self.has_weights = has_turns, rows_run_on, has_weights
        self.list_types = {"attention_mask": np.int32 if numbers_samples else np.int8, "position_ids": np.int32}
        self.turn_ids = [np.zeros(0, np.int32)]
        self.weights: list[tuple[int, array | None]] = []  # first label of each sample, and its weights
        self.token_ids, self.labels = array("i"), array("i")
        self.semantic_ids, self.loss_mask = bytearray(), bytearray()
        self.starts: list[int] = []
        self.facts: list[dict[str, Any]] = []

    def add(self, tokens: Tokens, facts: dict[str, Any]) -> tuple[range, range]:
        """Take in a sample.

        Args:
            tokens: Its tokens; at least one.
            facts: What its row says of it; `dataset` among it.

        Returns:
            The places of its ids and of its labels.

        Raises:
            ValueError: If there should be a turn number for each token, and is not.
        """
        if self.has_turns:
            if tokens.turn_ids is None or len(tokens.turn_ids) != len(tokens.token_ids):
                raise ValueError(
                    f"The rules need turns, and dataset {facts['dataset']!r} has tokens without turn numbers."
                )
            self.turn_ids.append(tokens.turn_ids)
        start, first_label = _FIRST + len(self.token_ids), _FIRST + len(self.labels)
        self.starts.append(start)
        self.facts.append(facts)
        self.token_ids += tokens.token_ids
        self.semantic_ids += tokens.semantic_ids
        self.weights.append((len(self.labels), tokens.weights))
        if self.has_weights is None and tokens.weighed[0]:
            self.has_weights = True
        self.labels += tokens.labels
        self.loss_mask += tokens.loss_mask
        return range(start, start + len(tokens.token_ids)), range(first_label, first_label + len(tokens.labels))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids, int32, and the types, int8, of all tokens added so far."""
        return np.array(self.token_ids, np.int32), np.frombuffer(bytes(self.semantic_ids), np.int8)

    def look_up(self, rows: dict[str, list[Any]], prefixes: Sequence[str] = ("",)) -> dict[str, Any]:
        """Put what is known of the tokens in the stead of their places.

        Args:
            rows: LLaMA-Factory's, made of places and padding; at least one.
            prefixes: What the columns of each sequence in a row begin with, such as ``chosen_``. The columns of the row
                itself, which begin with none of them, stay as they are.

        Returns:
            Their columns and those of the types, `Ragged` where they hold a number for each token.
        """
        columns: dict[str, Any] = dict(rows)
        for prefix in prefixes:
            own = {name: rows[prefix + name] for name in ("input_ids", "labels", *_LISTS) if prefix + name in rows}
            found = self._look_up(own)
            source = found.pop(ROW_SOURCE_COLUMN)
            columns |= {prefix + name: values for name, values in found.items()}
            columns.setdefault(ROW_SOURCE_COLUMN, source)
        return columns

    def _look_up(self, rows: dict[str, list[Any]]) -> dict[str, Any]:
        """Look up the columns of one sequence a row."""
        ids, labels = _flatten(rows["input_ids"]), _flatten(rows["labels"])
        columns: dict[str, Any] = {
            name: _flatten(rows[name], self.list_types[name]) for name in _LISTS if name in rows
        }
        columns["input_ids"] = _look_up(ids, np.frombuffer(self.token_ids, np.int32))
        columns["labels"] = _look_up(labels, np.frombuffer(self.labels, np.int32))
        semantic_ids = np.frombuffer(self.semantic_ids, np.int8)
        columns[SEMANTIC_COLUMN] = _look_up(ids, semantic_ids, int(SemanticType.NOISE))
        columns[LOSS_MASK_COLUMN] = _look_up(labels, np.frombuffer(self.loss_mask, np.int8), 0)
        if self.has_weights:
            columns[LOSS_WEIGHTS_COLUMN] = _look_up(labels, self._weights(), 0)

        starts = self._starts_in(ids)
        if self.has_turns:
            turn_ids = _look_up(ids, np.concatenate(self.turn_ids), 0)
            values = turn_ids.values
            if self.rows_run_on:
                values = run_on(values, ids.bounds, starts, ids.values < _FIRST)
            columns[TURN_COLUMN] = Ragged(to_stored(values), ids.bounds)

        samples = self._samples_of(ids, starts)
        columns[ROW_SOURCE_COLUMN] = [", ".join(dict.fromkeys(one["dataset"] for one in row)) for row in samples]
        columns[ROW_SAMPLES_COLUMN] = [json.dumps(row) for row in samples]
        return columns

    def _weights(self) -> np.ndarray:
        """Return the weight of every label, float32; 0 at the first of a sample, which nothing stands before."""
        weights = np.ones(len(self.labels), np.float32)
        for start, own in self.weights:
            if own is not None:
                weights[start : start + len(own)] = own
            weights[start : start + 1] = 0
        return weights

    def _starts_in(self, ids: Ragged) -> np.ndarray:
        """Return where in the rows a sample begins."""
        is_start = np.zeros(len(self.token_ids), np.bool_)
        is_start[np.array(self.starts, np.int64) - _FIRST] = True
        return np.flatnonzero(_look_up(ids, is_start, False).values)

    def _samples_of(self, ids: Ragged, places: np.ndarray) -> list[list[dict[str, Any]]]:
        """Return what is known of the samples of each row, which begin at these places."""
        numbers = np.searchsorted(self.starts, ids.values[places])
        rows = np.searchsorted(ids.bounds, places, side="right") - 1
        samples: list[list[dict[str, Any]]] = [[] for _ in ids.bounds[1:]]
        for row, start, number in zip(rows.tolist(), (places - ids.bounds[rows]).tolist(), numbers.tolist()):
            samples[row].append({"start": start, **self.facts[number]})
        return samples


def padding_row(is_packed: bool, is_neat: bool, prefixes: Sequence[str] = ("",)) -> dict[str, Any]:
    """Return a row of LLaMA-Factory's that stands for no sample: one token, so that column types can be inferred from it.

    Args:
        is_packed: Whether rows are packed.
        is_neat: Whether packed rows tell their samples apart (`neat_packing`).
        prefixes: What the columns of each sequence in a row begin with.
    """
    row: dict[str, Any] = {}
    for prefix in prefixes:
        row |= {f"{prefix}input_ids": [0], f"{prefix}attention_mask": [0], f"{prefix}labels": [IGNORE_INDEX]}
    row |= {"images": None, "videos": None, "audios": None}
    if is_packed:
        row["position_ids"] = [0]
    if is_neat:
        unused = {f"{kind}_subseq_ids": [MAX_SU_SEQ_IDX] for kind in ("image", "video", "audio")}
        row["packing_params"] = {"sequence_boundaries": [0, 1], **unused, "right_padding_length": 0}
    return row


def to_lists(columns: dict[str, Any]) -> dict[str, list[Any]]:
    """Return columns as a stream wants them."""
    return {name: values.to_lists() if isinstance(values, Ragged) else values for name, values in columns.items()}


def to_table(columns: dict[str, Any], types: dict[str, Any] | None = None) -> pa.Table:
    """Return columns as `datasets` writes them; of lists it would make the same, much slower.

    Args:
        columns: As `TokenTable.look_up` returns them.
        types: Types of columns that may be empty in this batch and not in a later one, by name.
    """
    arrays, features = [], Features()
    for name, values in columns.items():
        if isinstance(values, Ragged):
            arrays.append(values.to_arrow())
            features[name] = generate_from_arrow_type(arrays[-1].type)
        elif types and name in types:
            arrays.append(to_arrow(values, types[name]))
            features[name] = types[name]
        else:
            sequence = OptimizedTypedSequence(values, col=name)
            arrays.append(pa.array(sequence))
            features[name] = sequence.get_inferred_type()
    return pa.Table.from_arrays(arrays, schema=features.arrow_schema)


def _flatten(rows: list[Any], dtype: type = np.int64) -> Ragged:
    """Join rows of numbers or places."""
    pieces = [np.arange(row.start, row.stop) if isinstance(row, range) else np.array(row, dtype) for row in rows]
    return Ragged(np.concatenate(pieces), np.cumsum([0, *map(len, rows)]))


def _look_up(places: Ragged, known: np.ndarray, padding: int | None = None) -> Ragged:
    """Look places up; what is no place becomes `padding`, or stays if that is None."""
    is_place = places.values >= _FIRST
    found = places.values.astype(known.dtype) if padding is None else np.full(len(is_place), padding, known.dtype)
    found[is_place] = known[places.values[is_place] - _FIRST]
    return Ragged(found, places.bounds)
