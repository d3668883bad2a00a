"""Pairs as Arrow tables: the columns of a Parquet file keep their types, pictures among them."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ..labeling.columns import infer_column
from ..labeling.formats import SAMPLE_TYPES_KEY
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
    made = (messages, CHOSEN, REJECTED, SAMPLE_TYPES_KEY)
    table = table.select([name for name in table.column_names if name in _names(samples) and name not in made])
    for column in pair_format.media.values():
        if column in table.column_names:
            index = table.schema.get_field_index(column)
            kind = table.schema.field(index).type
            table = table.set_column(
                index, pa.field(column, kind), pa.array([sample[column] for sample in samples], kind)
            )
    for column in made:
        if column in (messages, CHOSEN, REJECTED) or column in _names(samples):
            values = [sample.get(column) for sample in samples]
            table = table.append_column(column, pa.array(values, infer_column(values, column)))
    return table.replace_schema_metadata(None)


def _names(samples: Sequence[dict[Any, Any]]) -> set[Any]:
    return {name for sample in samples for name in sample}
