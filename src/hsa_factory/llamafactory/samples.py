"""A training file's data, prepared as for training but without a model: for `hsa-factory inspect`."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import llamafactory.train.sft.workflow as workflow
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.extras.misc import has_tokenized_data
from llamafactory.hparams import get_train_args

from ..config import FeedbackConfig
from ..inspection.sample import InspectedSample
from ..training_file import TrainingFile
from .collator import trained_labels
from .integration import integrate
from .options import check_stage, resolve_config
from .processor import ROW_SOURCE_COLUMN, SEMANTIC_COLUMN


# Options that only matter once a model runs, and that some machines refuse.
_RUN_OPTIONS = ("deepspeed", "fsdp", "fsdp_config", "bf16", "fp16", "pure_bf16", "tf32", "resume_from_checkpoint")


@dataclass
class PreparedData:
    """The rows of one split.

    Attributes:
        rows: A dataset or a stream of features.
        tokenizer: The run's.
        feedback_config: The run's.
        marker_id: Id of the feedback marker; None without Feedback.
    """

    rows: Any
    tokenizer: Any
    feedback_config: FeedbackConfig | None
    marker_id: int | None

    @property
    def marker(self) -> str | None:
        """The feedback marker; None without Feedback."""
        return self.feedback_config.token if self.feedback_config is not None else None

    def decode(self, token_ids: Any) -> str:
        """Turn ids into text, special tokens included."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def samples(self, start: int, stop: int | None) -> Iterator[InspectedSample]:
        """Yield the samples from `start` up to, not including, `stop` (None: to the end)."""
        for index, row in enumerate(islice(self.rows, start, stop), start=start):
            yield InspectedSample(
                index=index,
                dataset=row[ROW_SOURCE_COLUMN],
                input_ids=row["input_ids"],
                semantic_ids=row[SEMANTIC_COLUMN],
                labels=trained_labels(row, self.feedback_config, self.marker_id),
                tokens=[self.decode([token]) for token in row["input_ids"]],
            )


def load_samples(training_file: TrainingFile, split: str = "train") -> PreparedData:
    """Prepare a training file's data as `train` would. LLaMA-Factory prints while it does.

    Args:
        training_file: The file; without an hsa block the types are those of ``hsa: true``.
        split: ``train`` or ``eval``.

    Raises:
        ValueError: If the file has no such data, or it is not allowed.
    """
    with tempfile.TemporaryDirectory() as directory:
        args = {name: value for name, value in training_file.args.items() if name not in _RUN_OPTIONS}
        args |= {"output_dir": directory, "overwrite_output_dir": True, "report_to": "none", "do_train": True}
        if args.get("tokenized_path") and not has_tokenized_data(args["tokenized_path"]):
            del args["tokenized_path"]  # looking must not write it

        with integrate(training_file.hsa or True, training_file.feedback) as integration:
            model_args, data_args, training_args, finetuning_args, _ = get_train_args(args)
            if finetuning_args.stage != "sft":
                check_stage(finetuning_args.stage)
            if data_args.streaming:
                training_args.dataloader_num_workers = max(1, training_args.dataloader_num_workers)
            integration.hsa_config = resolve_config(integration.hsa, model_args, None)
            tokenizer_module = workflow.load_tokenizer(model_args)
            tokenizer = tokenizer_module["tokenizer"]
            template = get_template_and_fix_tokenizer(tokenizer, data_args)
            module = workflow.get_dataset(
                template, model_args, data_args, training_args, stage="sft", **tokenizer_module
            )

    rows = module.get("train_dataset" if split == "train" else "eval_dataset")
    if isinstance(rows, dict):
        rows = [row for part in rows.values() for row in part]
    if rows is None:
        raise ValueError(f"The training file names no {split} data.")

    feedback = training_file.feedback
    marker_id = tokenizer.convert_tokens_to_ids(feedback.token) if feedback is not None else None
    return PreparedData(rows, tokenizer, feedback, marker_id)
