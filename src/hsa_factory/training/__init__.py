"""Training without LLaMA-Factory: conversations as rows, batches, and any trainer of transformers' or TRL's.

Imports neither llamafactory nor, before it is given a class of it, trl.
"""

from .batched import encode_conversations
from .callback import HSATrainerCallback
from .collator import HSADataCollator
from .encoding import ConversationLeftOut, encode_conversation
from .preference import HSAPreferenceCollator, pair_rows
from .trainer import hsa_trainer
from .weighted_loss import weighted_loss


__all__ = [
    "ConversationLeftOut",
    "HSADataCollator",
    "HSAPreferenceCollator",
    "HSATrainerCallback",
    "encode_conversation",
    "encode_conversations",
    "hsa_trainer",
    "pair_rows",
    "weighted_loss",
]
