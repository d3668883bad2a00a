"""`integrate`: a context in which any LLaMA-Factory call trains with HSA and Feedback."""

import logging as std_logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import llamafactory.chat.hf_engine
import llamafactory.data.collator
import llamafactory.data.converter
import llamafactory.data.loader
import llamafactory.data.parser
import llamafactory.model.loader
import llamafactory.train.sft.workflow
import llamafactory.train.tuner
from datasets import Dataset
from llamafactory.data.processor import (
    PackedSupervisedDatasetProcessor,
    SupervisedDatasetProcessor,
    UnsupervisedDatasetProcessor,
)
from llamafactory.extras import logging
from llamafactory.extras.env import VERSION
from llamafactory.extras.misc import has_tokenized_data
from llamafactory.extras.packages import is_fastapi_available

from ..attention.api import check_backend
from ..config import FeedbackConfig, HSAConfig
from ..labeling.formats import DatasetFormat
from ..labeling.rule_set import RuleSet
from ..models import enable_hsa
from ..models.enable import get_hook
from ..semantics import SemanticType
from .chat.hf_engine import Serving
from .data.collator import HSADataCollator
from .data.converter import INDEX_COLUMN, typed_converter
from .data.parts_table import load_dataset
from .data.prediction import TypedPredictionProcessor
from .data.processor import TypedPackedProcessor, TypedSupervisedProcessor
from .data.report import REPORT_NAME, DataReport
from .data.token_table import ACCOUNT_COLUMN
from .data.tokenized_path import check_tokenized, run_settings
from .model.feedback_token import ensure_marker, fit_embeddings, initialize_row
from .options import SAVED, check_options, check_stage, resolve_config
from .seams import Seam, installed


if is_fastapi_available():
    from .chat.api import api_seams


logger = logging.get_logger(__name__)

SUPPORTED_VERSIONS = ("0.9.5",)
STREAM_PREVIEW = 1000  # rows of a stream that are looked at before training

_active: "Integration | None" = None


class NothingToTrain(ValueError):
    """A data set has no sample left; the integration's report says why."""


class Integration:
    """One installed integration: the configurations and what was found out along the way.

    Attributes:
        hsa: The rules asked for; True: those of the checkpoint, or the defaults; `SAVED`: those of the checkpoint, or
            no HSA. None: no HSA.
        hsa_config: The rules of the run; known once the checkpoints have been looked at.
        feedback_config: None: labels stay as they are.
        report: Counts per data set.
        added_token: Id of the marker if it was added to the tokenizer in this run.
        aligned: The converted samples of each data set, by name.
    """

    def __init__(self, hsa: HSAConfig | bool | str | None, feedback: FeedbackConfig | None) -> None:
        self.hsa = hsa
        self.hsa_config = hsa if isinstance(hsa, HSAConfig) else (HSAConfig() if hsa is True else None)
        if self.hsa_config is not None:
            check_backend(self.hsa_config.backend)
        self.feedback_config = feedback
        self.report = DataReport()
        self.added_token: int | None = None
        self._layout = DatasetFormat()  # of the data set being loaded
        self.aligned: dict[str, Any] = {}
        self._is_resolved = False  # whether hsa_config has been settled with the checkpoints'

    @property
    def typing_config(self) -> HSAConfig:
        """The configuration by which tokens are typed; types are recorded even when only Feedback is on."""
        return self.hsa_config or HSAConfig()

    def seams(self) -> list[Seam]:
        """Return everything of LLaMA-Factory that is replaced while the integration is installed."""
        loader = llamafactory.data.loader
        workflow = llamafactory.train.sft.workflow
        tuner = llamafactory.train.tuner
        hf_engine = llamafactory.chat.hf_engine
        seams = [
            Seam(llamafactory.data.parser.DatasetAttr, "join", self.join),
            Seam(loader, "get_dataset_list", self.get_dataset_list),
            Seam(loader, "_load_single_dataset", self.load_single_dataset),
            Seam(loader, "load_dataset", self.load_dataset),
            Seam(loader, "align_dataset", self.align_dataset),
            Seam(loader, "_get_dataset_processor", self.get_dataset_processor),
            Seam(loader, "_get_preprocessed_dataset", self.get_preprocessed_dataset),
            Seam(llamafactory.model.loader, "patch_model", self.patch_model),
            Seam(workflow, "load_tokenizer", self.load_tokenizer),
            Seam(workflow, "get_dataset", self.get_dataset),
            Seam(workflow, "load_model", self.load_model),
            Seam(workflow, "SFTDataCollatorWith4DAttentionMask", self.collator),
            Seam(workflow.CustomSeq2SeqTrainer, "prediction_step", self.prediction_step),
            Seam(tuner, "run_sft", self.run_sft),
            Seam(tuner, "load_tokenizer", self.load_tokenizer),
            Seam(tuner, "load_model", self.load_model),
            Seam(hf_engine, "load_tokenizer", self.load_tokenizer),
            Seam(hf_engine, "load_model", self.load_model),
        ]
        for stage in ("pt", "rm", "ppo", "dpo", "kto"):
            seams.append(Seam(tuner, f"run_{stage}", partial(_refuse_stage, stage)))
        seams += Serving(self.hsa).seams()
        if is_fastapi_available():
            seams += api_seams()
        return seams

    # Each method below takes the original as its first argument and has the original's parameters after it.

    def run_sft(self, original: Any, model_args: Any, data_args: Any, training_args: Any, *args: Any) -> None:
        """Check the options and the checkpoints before anything is loaded."""
        if self.hsa:
            self.hsa_config = resolve_config(self.hsa, model_args, training_args)
            self._is_resolved = True
        check_options(model_args, data_args, training_args, args[0], self.hsa_config, self.feedback_config)
        original(model_args, data_args, training_args, *args)

    def join(self, original: Any, attr: Any, values: dict[str, Any]) -> None:
        """Read `semantic_tag` beside LLaMA-Factory's other tags."""
        tags = dict(values.get("tags") or {})
        attr.semantic_tag = tags.pop("semantic_tag", None)
        if attr.semantic_tag is not None and not tags:
            # LLaMA-Factory sets every tag that a `tags` block leaves out to None; with ours alone its defaults hold.
            values = {name: value for name, value in values.items() if name != "tags"}
        original(attr, values)

    def get_dataset_list(self, original: Any, dataset_names: list[str] | None, *args: Any) -> list[Any]:
        """Let every data set know the name it was asked for by."""
        attributes = original(dataset_names, *args)
        for name, attribute in zip(dataset_names or [], attributes):
            attribute.hsa_name = name
        return attributes

    def load_single_dataset(self, original: Any, attributes: Any, *args: Any) -> Any:
        """Remember which data set is being loaded."""
        self._layout = DatasetFormat.from_attributes(attributes)
        return original(attributes, *args)

    def load_dataset(self, original: Any, **kwargs: Any) -> Any:
        """Read contents that are lists of parts beside others that are texts, too."""
        return load_dataset(original, self._layout, **kwargs)

    def align_dataset(self, original: Any, dataset: Any, *args: Any) -> Any:
        """Number the samples, so that messages can name them, and convert them with typed converters."""
        if isinstance(dataset, Dataset):
            dataset = dataset.add_column(INDEX_COLUMN, list(range(len(dataset))))
        else:
            dataset = dataset.map(_add_index, with_indices=True)

        registry = llamafactory.data.converter.DATASET_CONVERTERS
        default_type = SemanticType.parse(self.typing_config.default_type)
        labels = self.typing_config.labels
        rules = RuleSet.parse(labels) if labels is not None else None
        stock = dict(registry)
        try:
            registry.update(
                {name: typed_converter(converter, default_type, rules) for name, converter in stock.items()}
            )
            aligned = original(dataset, *args)
            self.aligned[getattr(args[0], "hsa_name", args[0].dataset_name)] = aligned
            return aligned
        finally:
            registry.clear()
            registry.update(stock)

    def get_dataset_processor(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Put the typed processor in the place of the one for training or prediction; others stay."""
        stock = original(*args, **kwargs)
        replacements = {
            SupervisedDatasetProcessor: TypedSupervisedProcessor,
            PackedSupervisedDatasetProcessor: TypedPackedProcessor,
            UnsupervisedDatasetProcessor: TypedPredictionProcessor,
        }
        typed = replacements.get(type(stock))
        if typed is None:
            return stock
        return typed(
            stock.template,
            stock.tokenizer,
            stock.processor,
            stock.data_args,
            hsa_config=self.typing_config,
            feedback_config=self.feedback_config,
            as_table=not stock.data_args.streaming,  # streams want lists
        )

    def get_preprocessed_dataset(self, original: Any, dataset: Any, *args: Any, is_eval: bool = False) -> Any:
        """Take the accounts out of the processed data."""
        processed = original(dataset, *args, is_eval=is_eval)
        if processed is None:
            return None
        if not isinstance(processed, Dataset):
            return self._preview_stream(processed, is_eval)
        if ACCOUNT_COLUMN not in processed.column_names:
            return processed

        accounts = processed.with_format("arrow")[:][ACCOUNT_COLUMN].to_pylist()
        for serialized in accounts:
            if serialized is not None:
                self.report.add(serialized, is_eval)
        rows = [i for i, serialized in enumerate(accounts) if serialized is None]
        return processed.select(rows).remove_columns(ACCOUNT_COLUMN)

    def _preview_stream(self, stream: Any, is_eval: bool) -> Any:
        """Count the start of a stream; its rows pass on without the accounts."""
        self.report.note = f"Streaming: these counts cover at most the first {STREAM_PREVIEW:,} rows of each stream."
        for row in stream.take(STREAM_PREVIEW):
            if row.get(ACCOUNT_COLUMN) is not None:
                self.report.add(row[ACCOUNT_COLUMN], is_eval)
        return stream.filter(_is_sample).map(_without_account, remove_columns=[ACCOUNT_COLUMN])

    def get_dataset(
        self,
        original: Any,
        template: Any,
        model_args: Any,
        data_args: Any,
        training_args: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Show the table before the first step, and stop where a data set has nothing left."""
        tokenized_path = data_args.tokenized_path
        was_tokenized = tokenized_path is not None and has_tokenized_data(tokenized_path)
        self.report = DataReport()
        module = original(template, model_args, data_args, training_args, *args, **kwargs)
        settings = run_settings(self.hsa_config, self.feedback_config)
        if was_tokenized:
            self.report = check_tokenized(module, tokenized_path, self.hsa_config, self.feedback_config)
        elif tokenized_path is not None and training_args.should_save:
            self.report.save(tokenized_path, settings)

        if training_args.should_save:
            self.report.save(training_args.output_dir, settings)
        if training_args.should_log:
            self.report.print()
        untrainable = self.report.untrainable()
        if untrainable:
            raise NothingToTrain(
                f"Nothing is left to train in {', '.join(map(repr, untrainable))}: see the table above (also in "
                f"{Path(training_args.output_dir) / REPORT_NAME})."
            )
        return module

    def collator(self, original: Any, *args: Any, **kwargs: Any) -> HSADataCollator:
        """Make the collator that also masks labels and pads types."""
        return HSADataCollator(*args, hsa_config=self.hsa_config, feedback_config=self.feedback_config, **kwargs)

    def prediction_step(
        self, original: Any, trainer: Any, model: Any, inputs: dict[str, Any], *args: Any, **kw: Any
    ) -> Any:
        """Give `generate` the tokenizer, by which rules read what is being written."""
        if self.hsa_config is not None and trainer.args.predict_with_generate:
            inputs = {**inputs, "tokenizer": trainer.processing_class}
        return original(trainer, model, inputs, *args, **kw)

    def load_tokenizer(self, original: Any, model_args: Any) -> Any:
        """Make sure the marker is one special token."""
        module = original(model_args)
        if self.feedback_config is not None:
            self.added_token = ensure_marker(module["tokenizer"], self.feedback_config.token)
        return module

    def patch_model(self, original: Any, model: Any, tokenizer: Any, model_args: Any, *args: Any) -> None:
        """Give a new marker its row before adapters are put on the model."""
        if self.added_token is not None and not model_args.resize_vocab:
            fit_embeddings(model, tokenizer)
        original(model, tokenizer, model_args, *args)
        if self.added_token is not None:
            initialize_row(model, self.added_token)

    def load_model(
        self, original: Any, tokenizer: Any, model_args: Any, finetuning_args: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Switch HSA on at the end of LLaMA-Factory's own loading."""
        model = original(tokenizer, model_args, finetuning_args, *args, **kwargs)
        if self.hsa:
            if not self._is_resolved:  # export and chat
                self.hsa_config = resolve_config(self.hsa, model_args, None)
            if self.hsa_config is not None:
                enable_hsa(model, self.hsa_config)
                get_hook(model).tokenizer = tokenizer
        is_trainable = kwargs.get("is_trainable", bool(args and args[0]))
        if is_trainable and self.added_token is not None and finetuning_args.finetuning_type != "full":
            trained = finetuning_args.additional_target or []
            if not any("embed" in name for name in trained):
                logger.warning_rank0(
                    f"{self.feedback_config.token} is new to this model, and {finetuning_args.finetuning_type} does not "
                    "train its embedding: it stays at the mean of the others. To train it, set `additional_target: "
                    "embed_tokens,lm_head` (with `finetuning_type: lora`)."
                )
        return model


@contextmanager
def integrate(
    hsa: HSAConfig | bool | str | None = None, feedback: FeedbackConfig | None = None
) -> Iterator[Integration]:
    """Install HSA and Feedback into LLaMA-Factory for the duration of a `with` block.

    Args:
        hsa: The rules; True takes over those of the checkpoint, else the defaults; ``"saved"`` takes over those of the
            checkpoint, and is no HSA if it has none. None: no HSA.
        feedback: None: labels stay as they are.

    Yields:
        The integration; its `report` holds the counts once data has been prepared.

    Raises:
        RuntimeError: If this version of LLaMA-Factory is not known, a seam is not what it should be, or another
            integration with other settings is installed.
    """
    global _active
    if hsa is None and feedback is None:
        raise ValueError("integrate: give hsa, feedback or both.")
    if not isinstance(hsa, (HSAConfig, bool, type(None))) and hsa != SAVED:
        raise ValueError(f"integrate: hsa = {hsa!r} is not allowed: an HSAConfig, true, {SAVED!r} or None.")
    if VERSION not in SUPPORTED_VERSIONS:
        raise RuntimeError(
            f"LLaMA-Factory {VERSION} is not known to hsa-factory (known: {', '.join(SUPPORTED_VERSIONS)}). Install a "
            "known version: pip install llamafactory==" + SUPPORTED_VERSIONS[-1]
        )
    if _active is not None:
        if (_active.hsa, _active.feedback_config) != (hsa, feedback):
            raise RuntimeError("hsa-factory is already integrated with other settings; leave that block first.")
        yield _active
        return

    integration = Integration(hsa, feedback)
    with installed(integration.seams()), _shown_log():
        _active = integration
        try:
            yield integration
        finally:
            _active = None


@contextmanager
def _shown_log() -> Iterator[None]:
    """Show this package's log the way LLaMA-Factory shows its own, which covers its own modules only."""
    package = std_logging.getLogger("hsa_factory")
    theirs = std_logging.getLogger("llamafactory")
    former_level, added = package.level, [handler for handler in theirs.handlers if handler not in package.handlers]
    for handler in added:
        package.addHandler(handler)
    package.setLevel(theirs.level)
    try:
        yield
    finally:
        package.setLevel(former_level)
        for handler in added:
            package.removeHandler(handler)


def _refuse_stage(stage: str, original: Any, *args: Any, **kwargs: Any) -> None:
    check_stage(stage)


def _add_index(example: dict[str, Any], index: int) -> dict[str, Any]:
    return {**example, INDEX_COLUMN: index}


def _is_sample(row: dict[str, Any]) -> bool:
    return row.get(ACCOUNT_COLUMN) is None


def _without_account(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != ACCOUNT_COLUMN}
