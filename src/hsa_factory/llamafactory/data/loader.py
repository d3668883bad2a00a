"""LLaMA-Factory's loading of data: typed converters and processors, accounts, and the table before the first step."""

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import llamafactory.data.converter
import llamafactory.data.loader
import llamafactory.data.parser
from datasets import Dataset
from llamafactory.data.processor import (
    PackedSupervisedDatasetProcessor,
    SupervisedDatasetProcessor,
    UnsupervisedDatasetProcessor,
)
from llamafactory.extras.misc import has_tokenized_data

from ...labeling.formats import DatasetFormat
from ...labeling.rule_set import RuleSet
from ..seams import Seam
from ..state import Integration
from .converter import INDEX_COLUMN, typed_converter
from .parts_table import load_dataset
from .prediction import TypedPredictionProcessor
from .processor import TypedPackedProcessor, TypedSupervisedProcessor
from .report import REPORT_NAME, DataReport
from .token_table import ACCOUNT_COLUMN
from .tokenized_path import check_arrow_files, check_tokenized, data_options, run_settings


STREAM_PREVIEW = 1000  # rows of a stream that are looked at before training

_TYPED_PROCESSORS = {
    SupervisedDatasetProcessor: TypedSupervisedProcessor,
    PackedSupervisedDatasetProcessor: TypedPackedProcessor,
    UnsupervisedDatasetProcessor: TypedPredictionProcessor,
}


class NothingToTrain(ValueError):
    """A data set has no sample left; the integration's report says why."""


def data_seams(state: Integration) -> list[Seam]:
    """Return what is replaced between a data file and the rows of a data set."""
    loader = llamafactory.data.loader
    return [
        Seam(llamafactory.data.parser.DatasetAttr, "join", _join),
        Seam(loader, "get_dataset_list", _get_dataset_list),
        Seam(loader, "_load_single_dataset", partial(_load_single_dataset, state)),
        Seam(loader, "load_dataset", partial(_load_dataset, state)),
        Seam(loader, "align_dataset", partial(_align_dataset, state)),
        Seam(loader, "_get_dataset_processor", partial(_get_dataset_processor, state)),
        Seam(loader, "_get_preprocessed_dataset", partial(_get_preprocessed_dataset, state)),
    ]


def get_dataset_seam(module: ModuleType, state: Integration) -> Seam:
    """Return the replacement of `get_dataset` in the module of a stage."""
    return Seam(module, "get_dataset", partial(_get_dataset, state))


def _join(original: Any, attributes: Any, values: dict[str, Any]) -> None:
    """Read `semantic_tag` beside LLaMA-Factory's other tags."""
    tags = dict(values.get("tags") or {})
    attributes.semantic_tag = tags.pop("semantic_tag", None)
    if attributes.semantic_tag is not None and not tags:
        # LLaMA-Factory sets every tag that a `tags` block leaves out to None; with ours alone its defaults hold.
        values = {name: value for name, value in values.items() if name != "tags"}
    original(attributes, values)


def _get_dataset_list(original: Any, dataset_names: list[str] | None, *args: Any) -> list[Any]:
    """Let every data set know the name it was asked for by."""
    datasets = original(dataset_names, *args)
    for name, attributes in zip(dataset_names or [], datasets):
        attributes.hsa_name = name
    return datasets


def _load_single_dataset(state: Integration, original: Any, attributes: Any, *args: Any) -> Any:
    """Remember the layout of the data set being loaded: `load_dataset` is called inside."""
    state.layout = DatasetFormat.from_attributes(attributes)
    return original(attributes, *args)


def _load_dataset(state: Integration, original: Any, **kwargs: Any) -> Any:
    """Read contents that are lists of parts beside others that are texts, too."""
    return load_dataset(original, state.layout, **kwargs)


def _align_dataset(state: Integration, original: Any, dataset: Any, attributes: Any, *args: Any) -> Any:
    """Number the samples, so that messages can name them, and convert them with typed converters."""
    if isinstance(dataset, Dataset):
        dataset = dataset.add_column(INDEX_COLUMN, list(range(len(dataset))))
    else:
        dataset = dataset.map(_add_index, with_indices=True)

    registry = llamafactory.data.converter.DATASET_CONVERTERS
    config = state.typing_config
    rules = RuleSet.parse(config.rules) if config.rules is not None else None
    stock = dict(registry)
    try:
        registry.update({name: typed_converter(converter, config.default, rules) for name, converter in stock.items()})
        aligned = original(dataset, attributes, *args)
        state.aligned[getattr(attributes, "hsa_name", attributes.dataset_name)] = aligned
        return aligned
    finally:
        registry.clear()
        registry.update(stock)


def _get_dataset_processor(state: Integration, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Put the typed processor in the place of the one for training or prediction; others stay."""
    stock = original(*args, **kwargs)
    typed = _TYPED_PROCESSORS.get(type(stock))
    if typed is None:
        return stock
    return typed(
        stock.template,
        stock.tokenizer,
        stock.processor,
        stock.data_args,
        hsa_config=state.typing_config,
        feedback_config=state.feedback_config,
        as_table=not stock.data_args.streaming,  # streams want lists
    )


def _get_preprocessed_dataset(
    state: Integration, original: Any, dataset: Any, *args: Any, is_eval: bool = False
) -> Any:
    """Take the accounts out of the processed data."""
    processed = original(dataset, *args, is_eval=is_eval)
    if processed is None:
        return None
    if not isinstance(processed, Dataset):
        return _preview_stream(state.report, processed, is_eval)
    if ACCOUNT_COLUMN not in processed.column_names:
        return processed

    accounts = processed.with_format("arrow")[:][ACCOUNT_COLUMN].to_pylist()
    for serialized in accounts:
        if serialized is not None:
            state.report.add(serialized, is_eval)
    rows = [i for i, serialized in enumerate(accounts) if serialized is None]
    return processed.select(rows).remove_columns(ACCOUNT_COLUMN)


def _preview_stream(report: DataReport, stream: Any, is_eval: bool) -> Any:
    """Count the start of a stream; its rows pass on without the accounts."""
    report.note = f"Streaming: these counts cover at most the first {STREAM_PREVIEW:,} rows of each stream."
    for row in stream.take(STREAM_PREVIEW):
        if row.get(ACCOUNT_COLUMN) is not None:
            report.add(row[ACCOUNT_COLUMN], is_eval)
    return stream.filter(_is_sample).map(_without_account, remove_columns=[ACCOUNT_COLUMN])


def _get_dataset(
    state: Integration,
    original: Any,
    template: Any,
    model_args: Any,
    data_args: Any,
    training_args: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Show the table before the first step, and stop where a data set has nothing left."""
    hsa_config = state.resolve(model_args, training_args)
    tokenized_path = data_args.tokenized_path
    was_tokenized = tokenized_path is not None and has_tokenized_data(tokenized_path)
    check_arrow_files(tokenized_path)
    options = data_options(model_args, data_args, kwargs["tokenizer"])
    state.report = DataReport()
    module = original(template, model_args, data_args, training_args, *args, **kwargs)
    settings = run_settings(hsa_config, state.feedback_config)
    if was_tokenized:
        state.report = check_tokenized(module, tokenized_path, hsa_config, state.feedback_config, options)
    elif tokenized_path is not None and training_args.should_save:
        state.report.save(tokenized_path, {**settings, "data_options": options})

    if training_args.should_save:
        state.report.save(training_args.output_dir, settings)
    if training_args.should_log:
        state.report.print()
    untrainable = state.report.untrainable()
    if untrainable:
        raise NothingToTrain(
            f"Nothing is left to train in {', '.join(map(repr, untrainable))}: see the table above (also in "
            f"{Path(training_args.output_dir) / REPORT_NAME})."
        )
    return module


def _add_index(example: dict[str, Any], index: int) -> dict[str, Any]:
    return {**example, INDEX_COLUMN: index}


def _is_sample(row: dict[str, Any]) -> bool:
    return row.get(ACCOUNT_COLUMN) is None


def _without_account(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != ACCOUNT_COLUMN}
