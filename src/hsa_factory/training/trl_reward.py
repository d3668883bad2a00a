"""TRL's RewardTrainer with rows of `pair_rows`: its model gets the whole batch, types and all."""

from typing import Any

from .encoded_data import check_encoded
from .preference import SIDES, HSAPreferenceCollator


_Trainer: Any = object  # TRL's own class stands behind the mixin


class RewardMixin(_Trainer):
    """Trains encoded pairs."""

    def __init__(self, *, data_collator: Any = None, **given: Any) -> None:
        super().__init__(**given)
        if data_collator is None:
            multiple = getattr(self.args, "pad_to_multiple_of", None)
            data_collator = HSAPreferenceCollator(self.processing_class, multiple, completion_mask=False)
        self.data_collator = data_collator

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Check encoded pairs; nothing is tokenized."""
        return check_encoded(dataset, dataset_name, args.max_length, tuple(f"{side}_" for side in SIDES))
