"""LLaMA-Factory's loading of data: typed converters and processors, accounts, and the table before the first step."""

import os
from contextlib import nullcontext, redirect_stdout
from copy import copy
from functools import partial
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import llamafactory.data.converter
import llamafactory.data.loader
import llamafactory.data.parser
import numpy as np
from datasets import Dataset
from llamafactory.data.processor import (
    FeedbackDatasetProcessor,
    PackedSupervisedDatasetProcessor,
    PairwiseDatasetProcessor,
    PretrainDatasetProcessor,
    SupervisedDatasetProcessor,
    UnsupervisedDatasetProcessor,
)
from llamafactory.extras.constants import DATA_CONFIG
from llamafactory.extras.misc import has_tokenized_data

from ...labeling.formats import FORMATS
from ...labeling.rule_set import RuleSet
from ..seams import Seam
from ..state import Integration
from .accounts import ACCOUNT_COLUMN, take_accounts
from .aligned import (
    INDEX_COLUMN,
    WithFeatures,
    aligned_features,
    are_paths,
    has_frames,
    has_weights,
    media_features,
    row_media,
    with_same_media,
)
from .converter import named_columns, typed_converter
from .data_files import explain_failure, read_dataset_info
from .json_files import JSON_COLUMN, find_missing, is_json, load_json, read_samples
from .labelled import TypedLabelledProcessor
from .pairwise import TypedPairwiseProcessor
from .prediction import TypedPredictionProcessor
from .pretraining import TypedPretrainProcessor
from .processor import TypedPackedProcessor, TypedSupervisedProcessor
from .report import REPORT_NAME, DataReport
from .reward import TypedRewardProcessor
from .stream import NOTE, PREVIEW_BATCH, preview, without_accounts
from .token_table import LOSS_WEIGHTS_COLUMN
from .tokenized_path import check_arrow_files, check_tokenized, data_options, run_settings
from .turns import check_replies
from .untrained import check_trained, staying


_TYPED_PROCESSORS = {
    SupervisedDatasetProcessor: TypedSupervisedProcessor,
    PackedSupervisedDatasetProcessor: TypedPackedProcessor,
    UnsupervisedDatasetProcessor: TypedPredictionProcessor,
    PairwiseDatasetProcessor: TypedPairwiseProcessor,
    PretrainDatasetProcessor: TypedPretrainProcessor,
    FeedbackDatasetProcessor: TypedLabelledProcessor,
}
_OF_STAGES = {"rm": {PairwiseDatasetProcessor: TypedRewardProcessor}}
"""Those of stages whose data LLaMA-Factory makes as it makes another's."""


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
        Seam(loader, "merge_dataset", _merge_dataset),
        Seam(loader, "_get_dataset_processor", partial(_get_dataset_processor, state)),
        Seam(loader, "_get_preprocessed_dataset", partial(_get_preprocessed_dataset, state)),
    ]


def get_dataset_seam(module: ModuleType, state: Integration, stage: str) -> Seam:
    """Return the replacement of `get_dataset` in the module of a stage.

    Args:
        module: LLaMA-Factory's.
        state: The integration's.
        stage: As a training file names it; LLaMA-Factory calls the data of several stages the same.
    """
    return Seam(module, "get_dataset", partial(_get_dataset, state, stage))


def _join(original: Any, attributes: Any, values: dict[str, Any]) -> None:
    """Read `semantic_tag` beside LLaMA-Factory's other tags."""
    tags = dict(values.get("tags") or {})
    attributes.semantic_tag = tags.pop("semantic_tag", None)
    if attributes.semantic_tag is not None and not tags:
        # LLaMA-Factory sets every tag that a `tags` block leaves out to None; with ours alone its defaults hold.
        values = {name: value for name, value in values.items() if name != "tags"}
    original(attributes, values)


def _get_dataset_list(original: Any, dataset_names: list[str] | None, *args: Any) -> list[Any]:
    """Let every data set know the name it was asked for by; read ``dataset_info.json`` strictly."""
    directory, *rest = args
    path = os.path.join(directory, DATA_CONFIG) if isinstance(directory, str) else ""
    if dataset_names and os.path.isfile(path):
        directory = read_dataset_info(path)
    datasets = original(dataset_names, directory, *rest)
    for name, attributes in zip(dataset_names or [], datasets):
        attributes.hsa_name = name
    return datasets


def _load_single_dataset(state: Integration, original: Any, attributes: Any, model_args: Any, *args: Any) -> Any:
    """Remember the data set being loaded: `load_dataset` and `align_dataset` are called inside."""
    state.loading, state.cache_dir = attributes, model_args.cache_dir
    return original(attributes, model_args, *args)


def _load_dataset(state: Integration, original: Any, **kwargs: Any) -> Any:
    """Read JSON files ourselves; name the file that `datasets` cannot read."""
    name, files = _name_of(state.loading), kwargs.get("data_files") or []
    if state.loading.formatting not in FORMATS or not is_json(kwargs["path"], files):
        with explain_failure(name, files):
            return original(**kwargs)

    try:
        dataset = load_json(files, kwargs["split"], kwargs["cache_dir"])
    except ValueError as error:
        raise ValueError(f"dataset {name!r}: {error}") from None
    named = [column for column in named_columns(state.loading) if column != state.loading.messages]
    missing, found = find_missing(dataset, named)
    if missing and found:  # if no sample can be read, the converter names the first
        raise ValueError(
            f"dataset {name!r}: no sample has {', '.join(map(repr, missing))}; they have {', '.join(map(repr, found))}. "
            "Correct `columns` of its entry in dataset_info.json (LLaMA-Factory's defaults hold without it)."
        )
    return dataset


def _align_dataset(state: Integration, original: Any, dataset: Any, attributes: Any, *args: Any) -> Any:
    """Number the samples, so that messages can name them, and convert them with typed converters."""
    samples = read_samples(dataset) if JSON_COLUMN in (dataset.column_names or ()) else None
    media = media_features(dataset, attributes, samples)
    has_types = attributes.formatting in FORMATS and dataset.features is not None
    if isinstance(dataset, Dataset):
        dataset = dataset.add_column(INDEX_COLUMN, np.arange(len(dataset)))
    else:
        dataset = dataset.map(_add_index, with_indices=True)

    registry = llamafactory.data.converter.DATASET_CONVERTERS
    stock = dict(registry)
    try:
        registry.update({name: _typed(state, converter, media) for name, converter in stock.items()})
        if has_types:
            dataset = WithFeatures(dataset, aligned_features(media))
        aligned = original(dataset, attributes, *args)
        state.aligned[_name_of(attributes)] = aligned
        return aligned
    finally:
        registry.clear()
        registry.update(stock)


def _typed(state: Integration, converter: Any, media: dict[str, Any]) -> Any:
    config = state.typing_config
    rules = RuleSet.parse(config.rules) if config.rules is not None else None
    paths, frames = are_paths(media), has_frames(media)
    return typed_converter(converter, config.default, rules, paths, frames, state.cache_dir, state.loss_weights)


def _merge_dataset(original: Any, all_datasets: list[Any], *args: Any, **kwargs: Any) -> Any:
    """Let data sets be mixed of which some have media and others none."""
    return original(with_same_media(all_datasets), *args, **kwargs)


def _name_of(attributes: Any) -> str:
    name: str = getattr(attributes, "hsa_name", attributes.dataset_name)
    return name


def _get_dataset_processor(state: Integration, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Put the typed processor in the place of the one for training or prediction; others stay."""
    stock = original(*args, **kwargs)
    typed = {**_TYPED_PROCESSORS, **_OF_STAGES.get(state.stage, {})}.get(type(stock))
    if typed is None:
        return stock
    return typed(
        stock.template,
        stock.tokenizer,
        stock.processor,
        stock.data_args,
        hsa_config=state.typing_config,
        attention_config=state.hsa_config,
        feedback_config=state.feedback_config,
        as_table=not stock.data_args.streaming,  # streams want lists
        media=state.media,
        has_weights=state.has_weights,
        staying=state.staying,
    )


def _get_preprocessed_dataset(
    state: Integration, original: Any, dataset: Any, *args: Any, is_eval: bool = False
) -> Any:
    """Count what became of the data; where nothing is left of them and nobody asked for that, keep them as they are."""
    state.media, state.has_weights = row_media(dataset), has_weights(dataset)
    state.staying = frozenset()
    rows, accounts = _preprocess(state, original, dataset, *args, is_eval=is_eval)
    state.staying = staying(accounts, state.typing_config, state.feedback_config)
    if state.staying:
        rows, accounts = _preprocess(state, original, dataset, *args, is_eval=is_eval)
    for serialized in accounts:
        state.report.add(serialized, is_eval)
    return rows


def _preprocess(
    state: Integration, original: Any, dataset: Any, data_args: Any, *args: Any, is_eval: bool
) -> tuple[Any, list[str]]:
    """Take the accounts out of the processed data; print the example of them only where it is not in the way."""
    with nullcontext() if state.shows_example else redirect_stdout(StringIO()):
        processed = original(dataset, data_args, *args, is_eval=is_eval)
    if processed is None:
        return None, []
    if isinstance(processed, Dataset):
        return take_accounts(processed) if ACCOUNT_COLUMN in processed.column_names else (processed, [])

    def in_small_batches() -> Any:
        few = copy(data_args)
        few.preprocessing_batch_size = min(PREVIEW_BATCH, data_args.preprocessing_batch_size)
        with redirect_stdout(StringIO()):
            return original(dataset, few, *args, is_eval=is_eval)

    state.report.note = NOTE
    return without_accounts(processed), preview(in_small_batches)


def _get_dataset(
    state: Integration,
    stage_name: str,
    original: Any,
    template: Any,
    model_args: Any,
    data_args: Any,
    training_args: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Show the table before the first step, and stop where a data set has nothing left."""
    state.stage = stage_name
    hsa_config = state.resolve(model_args, training_args)
    tokenized_path = data_args.tokenized_path
    was_tokenized = tokenized_path is not None and has_tokenized_data(tokenized_path)
    check_arrow_files(tokenized_path)
    options = {}
    if tokenized_path is not None:
        options = data_options(model_args, data_args, kwargs["tokenizer"], state.stage)
    state.report = DataReport()
    module = original(template, model_args, data_args, training_args, *args, **kwargs)
    settings = run_settings(hsa_config, state.feedback_config, state.loss_weights)
    if was_tokenized:
        state.report = check_tokenized(module, tokenized_path, settings, hsa_config, state.feedback_config, options)
    elif tokenized_path is not None and training_args.should_save:
        state.report.save(tokenized_path, {**settings, "data_options": options})
    _check_loss(state, module)

    if training_args.should_save:
        state.report.save(training_args.output_dir, settings)
    if training_args.should_log:
        state.report.print()
    untrainable = check_trained(state.report, state.typing_config, state.feedback_config)
    if untrainable:
        raise NothingToTrain(
            f"Nothing is left to train in {', '.join(map(repr, untrainable))}: see the table above (also in "
            f"{Path(training_args.output_dir) / REPORT_NAME})."
        )
    check_replies(state.report.without_replies(), hsa_config)
    return module


def _check_loss(state: Integration, module: dict[str, Any]) -> None:
    """Refuse weights where the loss is computed without them.

    Raises:
        ValueError: Naming the data set and the option.
    """
    for split in ("train_dataset", "eval_dataset"):
        data = module.get(split)
        for part in data.values() if isinstance(data, dict) else [data] if data is not None else []:
            if state.loss_elsewhere and LOSS_WEIGHTS_COLUMN in (part.column_names or ()):
                accounts = {**state.report.eval, **state.report.train}
                named = ", ".join(repr(name) for name, account in accounts.items() if account.weighed_tokens)
                raise ValueError(
                    f"messages of {named or split} have weights other than 0 and 1, but {state.loss_elsewhere} Remove the "
                    "option or the weights."
                )


def _add_index(example: dict[str, Any], index: int) -> dict[str, Any]:
    return {**example, INDEX_COLUMN: index}
