"""Labelled samples as Arrow tables: the columns of a Parquet file, with types added."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .formats import SAMPLE_TYPES_KEY, DatasetFormat
from .parts import SPANS_KEY, TYPE_KEY


_SPANS = pa.list_(pa.struct({"start": pa.int64(), "end": pa.int64(), TYPE_KEY: pa.string()}))
_SAMPLE_TYPES = pa.list_(pa.struct({"role": pa.string(), TYPE_KEY: pa.string(), SPANS_KEY: _SPANS}))
_BATCH = 1000


def labelled_table(
    batch: pa.RecordBatch, kept: Sequence[int], samples: Sequence[dict[Any, Any]], dataset_format: DatasetFormat
) -> Any:
    """Return the rows that are kept, all columns as they were but those that types were added to.

    Args:
        batch: The rows read.
        kept: Numbers of the rows that are kept.
        samples: These rows, labelled.
        dataset_format: The data's.
    """
    table = pa.Table.from_batches([batch]).take(pa.array(kept, pa.int64()))
    columns = [dataset_format.messages] if dataset_format.formatting != "alpaca" else []
    columns += (
        [dataset_format.chosen, dataset_format.rejected]
        if dataset_format.ranking and dataset_format.formatting != "alpaca"
        else []
    )
    for column in columns:
        values = [sample[column] for sample in samples]
        index = table.schema.get_field_index(column)
        kind = table.schema.field(index).type if index >= 0 else None
        if not holds_messages(
            kind, values, dataset_format.content_tag
        ):  # messages were changed into ones that LLaMA-Factory reads
            kind = _infer_messages(values, column)
        kind = _with_types(kind, dataset_format.semantic_tag)
        values = pa.array(values, kind)
        if index < 0:
            table = table.append_column(pa.field(column, kind), values)
        else:
            table = table.set_column(index, pa.field(column, kind), values)
    if dataset_format.formatting == "alpaca" or dataset_format.system:
        values = pa.array([sample[SAMPLE_TYPES_KEY] for sample in samples], _SAMPLE_TYPES)
        if SAMPLE_TYPES_KEY in table.column_names:
            table = table.drop_columns(SAMPLE_TYPES_KEY)
        table = table.append_column(SAMPLE_TYPES_KEY, values)
    return table.replace_schema_metadata(None)  # it may describe columns that are no more as they were


def holds_messages(kind: Any, values: Sequence[Any], content_tag: str | None) -> bool:
    """Whether a column of messages, or of single ones, has a place for all their keys (but those of types) and contents."""
    while kind is not None and not pa.types.is_struct(kind):
        kind = getattr(kind, "value_type", None)
    if kind is None:
        return False
    names = {field.name for field in kind} | {SPANS_KEY, TYPE_KEY}
    has_texts = content_tag in names and not pa.types.is_nested(kind.field(content_tag).type)
    for value in values:
        for message in value if isinstance(value, list) else [value]:
            if message is None:
                continue
            content = message.get(content_tag)
            if not names.issuperset(message) or (content is not None and isinstance(content, str) != has_texts):
                return False
    return True


def _infer_messages(values: Sequence[Any], column: str | None) -> pa.DataType:
    bare = [[{key: value for key, value in message.items() if key != SPANS_KEY} for message in row] for row in values]
    return infer_column(bare, column)


def infer_column(values: Sequence[Any], column: str | None) -> pa.DataType:
    """Return the type of a column's values; texts where there is nothing but null.

    Raises:
        ValueError: If they have none in common; names the column.
    """
    try:
        return _without_nulls(pa.infer_type(values))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise _unfit(f"{column}: {error}") from None


def _without_nulls(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_nulls(kind.value_type))
    return (
        pa.struct([(field.name, _without_nulls(field.type)) for field in kind]) if pa.types.is_struct(kind) else kind
    )


def _with_types(kind: pa.DataType, tag: str | None) -> pa.DataType:
    """Return the type of messages with the keys of types added."""
    if not pa.types.is_struct(kind):
        return pa.list_(_with_types(kind.value_type, tag))
    fields: dict[Any, pa.DataType] = {field.name: field.type for field in kind}
    if fields.get(tag) in (None, pa.null()):
        fields[tag] = pa.string()
    return pa.struct({**fields, SPANS_KEY: _SPANS})


def write_table(table: pa.Table, path: Path) -> None:
    """Write one table."""
    pq.write_table(table, path)


def join_tables(paths: Sequence[Path], target: Path) -> None:
    """Join Parquet files one after the other; a column that one does not have is null there. Those without rows are passed over."""
    filled = [path for path in paths if pq.read_metadata(path).num_rows]
    schema = pa.unify_schemas([pq.read_schema(path) for path in filled], promote_options="permissive")
    with pq.ParquetWriter(target, schema) as writer:
        for path in filled:
            table = pq.read_table(path)
            for field in schema:
                if field.name not in table.column_names:
                    table = table.append_column(field, pa.nulls(table.num_rows, field.type))
            writer.write_table(table.select(schema.names).cast(schema))


def write_rows(rows: Callable[[], Iterator[dict[str, Any]]], target: Path) -> None:
    """Write samples as Parquet. They are gone through twice: once to learn the columns, once to write.

    Args:
        rows: Called twice; yields the samples.
        target: The file.

    Raises:
        ValueError: If a column holds different kinds of values; the message says which.
    """
    schemas: list[pa.Schema] = []
    for batch in _batches(rows()):
        schema = _infer(batch)
        if schema not in schemas:
            schemas = [_unify([*schemas, schema])]
    (schema,) = schemas or [pa.schema([])]
    with pq.ParquetWriter(target, schema) as writer:
        for batch in _batches(rows()):
            writer.write_table(pa.Table.from_pylist(batch, schema))


def _infer(batch: list[dict[str, Any]]) -> pa.Schema:
    names = dict.fromkeys(name for row in batch for name in row)
    fields = []
    for name in names:
        try:
            fields.append((name, pa.array([row.get(name) for row in batch]).type))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise _unfit(f"{name}: {error}") from None
    return pa.schema(fields)


def _unify(schemas: list[pa.Schema]) -> pa.Schema:
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise _unfit(str(error)) from None


def _unfit(problem: str) -> ValueError:
    return ValueError(
        f"these samples cannot be the columns of one table ({problem}); write JSON or JSON lines instead."
    )


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def read_lines(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the samples of files of JSON lines."""
    for path in paths:
        with open(path, "rb") as file:
            yield from map(json.loads, file)
