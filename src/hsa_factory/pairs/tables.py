"""Pairs as Arrow tables: the columns of a Parquet file keep their types, pictures among them."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ..labeling.columns import holds_messages, infer_column
from ..labeling.formats import SAMPLE_TYPES_KEY
from ..labeling.parts import SPANS_KEY
from .sample_pairs import CHOSEN, REJECTED, PairFormat


def pairs_table(
    batch: pa.RecordBatch, kept: Sequence[int], samples: Sequence[dict[Any, Any]], pair_format: PairFormat
) -> pa.Table:
    """Return pairs as a table.

    Args:
        batch: The rows read.
        kept: For each pair the number of its row.
        samples: The pairs.
        pair_format: The format of the rows.

    Raises:
        ValueError: If messages cannot be one column; names the column.
    """
    table = pa.Table.from_batches([batch]).take(pa.array(kept, pa.int64()))
    messages = str(pair_format.written.messages)
    of_messages = table.schema.field(messages).type if messages in table.column_names else None
    names = {name for sample in samples for name in sample}
    made = (messages, CHOSEN, REJECTED, SAMPLE_TYPES_KEY)
    table = table.select([name for name in table.column_names if name in names and name not in made])
    for column in pair_format.media.values():
        if column in table.column_names:
            index = table.schema.get_field_index(column)
            kind = table.schema.field(index).type
            files = pa.array([sample[column] for sample in samples], kind)
            table = table.set_column(index, pa.field(column, kind), files)
    for column in made:
        if column in names:
            values = [sample.get(column) for sample in samples]
            table = table.append_column(column, pa.array(values, _type_of(values, column, of_messages, pair_format)))
    return table.replace_schema_metadata(None)


def _type_of(values: Sequence[Any], column: str, of_messages: Any, pair_format: PairFormat) -> pa.DataType:
    """Return the type of a column that is made: that of the messages read, where it has a place for all that is in them."""
    tag = pair_format.written.content_tag
    fits = (
        column != SAMPLE_TYPES_KEY
        and holds_messages(of_messages, values, tag)
        and not _adds_spans(of_messages, values)
    )
    if not fits:
        return infer_column(values, column)
    return of_messages.value_type if column in (CHOSEN, REJECTED) else of_messages


def _adds_spans(of_messages: Any, values: Sequence[Any]) -> bool:
    """Whether messages have spans, for which those read have no place."""
    if of_messages.value_type.get_field_index(SPANS_KEY) >= 0:
        return False
    return any(SPANS_KEY in message for value in values for message in (value if isinstance(value, list) else [value]))
