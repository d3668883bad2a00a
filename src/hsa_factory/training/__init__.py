"""HSA in any trainer without LLaMA-Factory: batches, a callback, and trainers of transformers and TRL."""

from .callback import HSATrainerCallback
from .collator import HSADataCollator
from .preference import HSAPreferenceCollator, pair_rows
from .trainer import hsa_trainer
from .weighted_loss import weighted_loss


__all__ = [
    "HSADataCollator",
    "HSAPreferenceCollator",
    "HSATrainerCallback",
    "hsa_trainer",
    "pair_rows",
    "weighted_loss",
]
