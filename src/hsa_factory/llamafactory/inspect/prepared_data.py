"""A training file's data, prepared as for training but without a model: for `hsa-factory inspect`."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.extras.misc import has_tokenized_data
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer
from llamafactory.model.loader import load_config

from ...config import FeedbackConfig, HSAConfig
from ...feedback import IGNORE_INDEX, Reason
from ...inspection.inspected_sample import InspectedSample, Part, RowSummary, Turn, number_tokens
from ...training_file import TrainingFile
from ..arguments import with_text
from ..data.aligned import INDEX_COLUMN
from ..data.collator import trained_labels
from ..data.loader import NothingToTrain
from ..data.pretraining import TypedPretrainProcessor
from ..data.report import DatasetAccount
from ..data.stream import STREAM_PREVIEW
from ..data.token_table import (
    LOSS_MASK_COLUMN,
    LOSS_WEIGHTS_COLUMN,
    ROW_SAMPLES_COLUMN,
    ROW_SOURCE_COLUMN,
    SEMANTIC_COLUMN,
    TURN_COLUMN,
)
from ..data.typed_processor import TypedProcessorMixin
from ..integration import integrate
from ..options import check_stage
from ..train.stages import STAGES
from .raw_text import read_texts, reasons_of, with_labels
from .trace import Record, record_sample


# Options that only matter once a model runs: some machines refuse them, and others lay out rows for generation.
_RUN_OPTIONS = (
    *("deepspeed", "fsdp", "fsdp_config", "bf16", "fp16", "pure_bf16", "tf32", "resume_from_checkpoint"),
    *("do_predict", "predict_with_generate"),
)


@dataclass
class PreparedData:
    """The rows of one split.

    Attributes:
        rows: A dataset or a stream of features.
        tokenizer: The run's.
        hsa_config: The rules of the run; None: plain attention.
        feedback_config: The run's.
        marker_id: Id of the feedback marker; None without Feedback.
        accounts: What happened to each data set.
        note: What a reader must know about the accounts, if anything.
        is_empty: Whether a data set has nothing left, so that training would stop.
    """

    rows: Any
    tokenizer: Any
    hsa_config: HSAConfig | None
    feedback_config: FeedbackConfig | None
    marker_id: int | None
    accounts: dict[str, DatasetAccount]
    note: str
    is_empty: bool
    _model_args: Any
    _processor: TypedProcessorMixin
    _aligned: dict[str, Any]
    _texts: dict[int, str] = field(default_factory=dict)
    _streams: dict[str, tuple[Iterator, dict[int, Any]]] = field(default_factory=dict)

    @property
    def marker(self) -> str | None:
        """The feedback marker; None without Feedback."""
        return self.feedback_config.token if self.feedback_config is not None else None

    @property
    def has_numbers(self) -> bool:
        """Whether it is known which sample of which data set each row is; not of a `tokenized_path`."""
        return bool(self._aligned)

    def decode(self, token_ids: Any) -> str:
        """Turn ids into text, special tokens included."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _token_text(self, token_id: int) -> str:
        """Turn one id into text. A piece that starts a word has its space, though decoding it alone drops it."""
        if token_id not in self._texts:
            text = self.decode([token_id])
            piece = self.tokenizer.convert_ids_to_tokens(token_id)
            starts_word = isinstance(piece, str) and piece.startswith("▁") and not text.startswith((" ", "▁"))
            self._texts[token_id] = f" {text}" if starts_word else text
        return self._texts[token_id]

    def load_model_config(self) -> Any:
        """Load the model's configuration, without its weights."""
        return load_config(self._model_args)

    def overview(self) -> Iterator[RowSummary]:
        """Yield a summary of every row; of a stream, of the first rows only."""
        rows = self.rows
        if isinstance(rows, Dataset):
            rows = _array_rows(rows, self._processor.inspected)
        elif not isinstance(rows, list):
            rows = islice(rows, STREAM_PREVIEW)
        for index, row in enumerate(rows):
            for side, sequence in self._sequences(row).items():
                yield self._summary(index, side, sequence)

    def _summary(self, index: int, side: str, row: dict[str, Any]) -> RowSummary:
        row = with_labels(row, self.tokenizer.pad_token_id)
        labels = np.asarray(row["labels"])
        if LOSS_MASK_COLUMN in row:
            labels = np.where(np.asarray(row[LOSS_MASK_COLUMN]) == 0, IGNORE_INDEX, labels)
        elif self.feedback_config is not None:
            labels = np.asarray(trained_labels(row, self.feedback_config, self.marker_id))
        parts = _parts(row)
        return RowSummary(
            index=index,
            dataset=row.get(ROW_SOURCE_COLUMN, ""),
            length=len(labels),
            types=tuple(np.bincount(row[SEMANTIC_COLUMN], minlength=3).tolist()),
            trained=int((labels != IGNORE_INDEX).sum()),
            cut=sum(part["cut"] for part in parts),
            marker_cut=any(part["marker_cut"] for part in parts),
            side=side,
        )

    def _sequences(self, row: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the sequences of a row, by side, each with the names of columns that a row of one has."""
        prefixes = self._processor.inspected
        shared = {name: value for name, value in row.items() if not name.startswith(tuple(filter(None, prefixes)))}
        return {
            prefix.rstrip("_"): {
                **shared,
                **{
                    name.removeprefix(prefix): value
                    for name, value in row.items()
                    if prefix and name.startswith(prefix)
                },
            }
            for prefix in prefixes
        }

    def samples(self, start: int, stop: int | None) -> Iterator[InspectedSample]:
        """Yield the samples of the rows from `start` up to, not including, `stop` (None: to the end), one for each sequence.

        Raises:
            ValueError: If a row is not what its sample becomes today.
        """
        for index, row in enumerate(islice(self.rows, start, stop), start=start):
            yield from self._inspect(index, row)

    def sample(self, index: int, side: str = "") -> InspectedSample:
        """Return one sample by its row, and by its side in a row of several. Raises as `samples`."""
        if isinstance(self.rows, (Dataset, list)):
            samples: Iterable[InspectedSample] = self._inspect(index, self.rows[index])
        else:
            samples = self.samples(index, index + 1)
        return next(sample for sample in samples if sample.side == side)

    def find_rows(self) -> dict[tuple[str, int], int]:
        """Return in which row each sample stands: by its data set and number, or by ("", row) where they are not known."""
        rows, column = self.rows, self._processor.inspected[0] + ROW_SAMPLES_COLUMN
        if isinstance(rows, Dataset) and column in rows.column_names:
            rows = ({column: described} for described in rows[column])
        elif not isinstance(rows, (Dataset, list)):
            rows = islice(rows, STREAM_PREVIEW)
        found: dict[tuple[str, int], int] = {}
        for number, row in enumerate(rows):
            for part in _parts(row, column) if self._aligned else []:
                found[part["dataset"], part["index"]] = number
            found["", number] = number
        return found

    def _inspect(self, index: int, row: dict[str, Any]) -> list[InspectedSample]:
        sequences = self._sequences(row)
        records = self._records(next(iter(sequences.values())))
        return [
            self._inspect_one(index, side, sequence, [sides[k] for sides in records])
            for k, (side, sequence) in enumerate(sequences.items())
        ]

    def _records(self, row: dict[str, Any]) -> list[list[Record]]:
        """Trace the samples of a row; each has a record for each sequence of the row. Empty: they are not known."""
        if isinstance(self._processor, TypedPretrainProcessor):
            return []
        return [
            record_sample(self._processor, self._find(part["dataset"], part["index"]), number, part["start"])
            for number, part in enumerate(_parts(row) if self._aligned else [])
        ]

    def _inspect_one(self, index: int, side: str, row: dict[str, Any], records: list[Record]) -> InspectedSample:
        row = with_labels(row, self.tokenizer.pad_token_id)
        ids, labels = row["input_ids"], trained_labels(row, self.feedback_config, self.marker_id)
        mask = row["attention_mask"]
        parts: list[Part] = []
        turns: list[Turn] = []
        reasons: list[str | None]
        if isinstance(self._processor, TypedPretrainProcessor):
            (parts, turns), reasons = read_texts(row, _parts(row)), reasons_of(row, labels)
        elif records:
            reasons = [None if label != IGNORE_INDEX else Reason.PADDING for label in labels]
            for values, record in zip(_parts(row), records):
                stop = values["start"] + len(record.input_ids)
                if ids[values["start"] : stop] != record.input_ids:
                    raise ValueError(
                        f"dataset {values['dataset']!r}, sample {values['index']}: the prepared data are not what the "
                        "sample becomes now. Set overwrite_cache=true once."
                    )
                parts.append(Part(stop=stop, side=side, **values))
                turns += record.turns
                reasons[values["start"] : stop] = record.reasons
        else:
            reasons = [_recorded_reason(*facts) for facts in zip(row["labels"], labels, mask)]
        return InspectedSample(
            index=index,
            dataset=row.get(ROW_SOURCE_COLUMN, ""),
            input_ids=ids,
            semantic_ids=row[SEMANTIC_COLUMN],
            labels=labels,
            tokens=list(map(self._token_text, ids)),
            reasons=reasons,
            loss_weights=row.get(LOSS_WEIGHTS_COLUMN),
            documents=mask,
            parts=parts,
            turns=turns,
            turn_ids=_turn_ids(row, turns),
            side=side,
        )

    def _find(self, dataset: str, index: int) -> dict[str, Any]:
        """Return a converted sample by its number in its data set."""
        aligned = self._aligned[dataset]
        if isinstance(aligned, Dataset):
            return aligned[index]

        stream, seen = self._streams.setdefault(dataset, (iter(aligned), {}))
        while index not in seen:
            example = next(stream)
            seen[example[INDEX_COLUMN]] = example
        return seen[index]


def load_samples(training_file: TrainingFile, split: str = "train", allow_empty: bool = False) -> PreparedData:
    """Prepare a training file's data as `train` would. LLaMA-Factory logs while it does.

    Args:
        training_file: The file; without an hsa block the types are those of ``hsa: true``.
        split: ``train`` or ``eval``.
        allow_empty: Whether a data set with nothing left to train is no error, so that its account can be read.

    Raises:
        ValueError: If the file has no such data, or it is not allowed.
    """
    with tempfile.TemporaryDirectory() as directory:
        args = {name: value for name, value in with_text(training_file).args.items() if name not in _RUN_OPTIONS}
        args |= {"output_dir": directory, "overwrite_output_dir": True, "report_to": "none", "do_train": True}
        if args.get("tokenized_path") and not has_tokenized_data(args["tokenized_path"]):
            del args["tokenized_path"]  # looking must not write it

        hsa = True if training_file.is_plain else training_file.hsa  # with the other blocks alone attention is plain
        with integrate(hsa, training_file.feedback, training_file.loss_weights) as integration:
            integration.shows_example = False
            model_args, data_args, training_args, finetuning_args, _ = get_train_args(args)
            check_stage(finetuning_args.stage)
            stage = STAGES[finetuning_args.stage]
            if data_args.streaming:
                training_args.dataloader_num_workers = max(1, training_args.dataloader_num_workers)
            hsa_config = integration.resolve(model_args)
            tokenizer_module = load_tokenizer(model_args)
            tokenizer = tokenizer_module["tokenizer"]
            template = get_template_and_fix_tokenizer(tokenizer, data_args)
            is_empty = False
            try:
                module = stage.workflow.get_dataset(
                    template, model_args, data_args, training_args, stage=stage.data, **tokenizer_module
                )
            except NothingToTrain as error:
                if not allow_empty:
                    what = str(error).partition(":")[0]
                    raise ValueError(f"{what}: see the table above; --check lists the samples.") from None
                module, is_empty = {f"{split}_dataset": []}, True
            processor = stage.processor(
                template,
                tokenizer,
                tokenizer_module["processor"],
                data_args,
                hsa_config=integration.typing_config,
                feedback_config=training_file.feedback,
            )

    rows = module.get(f"{split}_dataset")
    if isinstance(rows, dict):
        rows = [row for part in rows.values() for row in part]
    if rows is None:
        raise ValueError(f"The training file names no {split} data.")

    feedback = training_file.feedback
    marker_id = tokenizer.convert_tokens_to_ids(feedback.token) if feedback is not None else None
    report = integration.report
    return PreparedData(
        rows=rows,
        tokenizer=tokenizer,
        hsa_config=hsa_config,
        feedback_config=feedback,
        marker_id=marker_id,
        accounts=report.train if split == "train" else report.eval,
        note=report.note,
        is_empty=is_empty,
        _model_args=model_args,
        _processor=processor,
        _aligned=integration.aligned,
    )


def _array_rows(rows: Dataset, prefixes: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield what an overview needs of every row, as arrays: many times faster than lists."""
    of_sequence = ("input_ids", "labels", SEMANTIC_COLUMN, LOSS_MASK_COLUMN, ROW_SAMPLES_COLUMN)
    wanted = {ROW_SOURCE_COLUMN, *(prefix + name for prefix in prefixes for name in of_sequence)}
    names = [name for name in rows.column_names if name in wanted]
    for table in rows.with_format("arrow", columns=names).iter(batch_size=256):
        for i in range(table.num_rows):
            values = {name: table[name][i] for name in names}
            yield {
                name: value.values.to_numpy() if hasattr(value, "values") else value.as_py()
                for name, value in values.items()
            }


def _turn_ids(row: dict[str, Any], turns: list[Turn]) -> list[int] | None:
    """Return the number of each token's turn: that of the data, or that of its message; None where neither is known."""
    if TURN_COLUMN in row:
        return list(row[TURN_COLUMN])
    return number_tokens(turns, len(row["input_ids"])) if turns else None


def _parts(row: dict[str, Any], column: str = ROW_SAMPLES_COLUMN) -> list[dict[str, Any]]:
    return json.loads(row.get(column) or "[]")


def _recorded_reason(label: int, trained_label: int, mask: int) -> str | None:
    """Say what can be said of a token whose message is not known."""
    if trained_label != IGNORE_INDEX:
        return None
    if mask == 0:
        return Reason.PADDING
    return Reason.ROLE if label == IGNORE_INDEX else Reason.RECORDED
