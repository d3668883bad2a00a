"""TRL's SFTTrainer with encoded rows: nothing is tokenized, and packing takes the types along."""

from dataclasses import replace
from typing import Any

from .collator import HSADataCollator
from .columns import LOSS_WEIGHTS_COLUMN, MEDIA_COLUMNS, TOKEN_COLUMNS
from .context_parallel import context_of
from .encoded_data import check_encoded, column_names


_Trainer: Any = object  # TRL's own class stands behind the mixin


class SFTMixin(_Trainer):
    """Trains encoded rows. What TRL would do with ids alone (`packing`, `padding_free`) is done with all their columns."""

    def __init__(self, *, data_collator: Any = None, **given: Any) -> None:
        # given no collator, TRL allows padding_free; its own collator drops types, and is taken away again
        super().__init__(**given)
        if data_collator is None:
            multiple = getattr(self.args, "pad_to_multiple_of", None)
            data_collator = HSADataCollator(self.processing_class, pad_to_multiple_of=multiple)
        if self.padding_free and isinstance(data_collator, HSADataCollator):
            data_collator = replace(data_collator, padding_free=True)
        self.data_collator = data_collator

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss. TRL's metrics read the logits of whole rows: where processes share rows, they are left out."""
        if context_of(self.model) is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        from transformers import Trainer  # here: rows are encoded where no trainer is installed, too

        return Trainer.compute_loss(self, model, inputs, *args, **kwargs)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        """Check encoded rows and pack them where `packing` says so."""
        dataset = check_encoded(dataset, dataset_name, args.max_length)
        if getattr(args, "shuffle_dataset", False):
            dataset = dataset.shuffle(seed=args.seed)
        return _packed(dataset, args) if packing else dataset


def _packed(dataset: Any, args: Any) -> Any:
    """Pack a data set as TRL does, with all columns that hold a value a token."""
    from trl import pack_dataset

    if args.max_length is None:
        raise ValueError("`packing` needs `max_length`, the length of a packed row.")
    columns = column_names(dataset)
    media = [column for column in columns if column in MEDIA_COLUMNS]
    if media:
        raise ValueError(f"Rows with {', '.join(media)} cannot be packed: set packing=False.")
    if LOSS_WEIGHTS_COLUMN in columns:  # rows without weights have None there, and would shift the others'
        dataset = dataset.map(_with_weights)
    dataset = dataset.select_columns([column for column in columns if column in TOKEN_COLUMNS])
    return pack_dataset(dataset, args.max_length, args.packing_strategy)


def _with_weights(row: dict[str, Any]) -> dict[str, Any]:
    weights = row[LOSS_WEIGHTS_COLUMN]
    return {LOSS_WEIGHTS_COLUMN: [1.0] * len(row["input_ids"]) if weights is None else weights}
