"""Stage `sft`: its data, model and collator, predictions, and the loss that weights weigh."""

from functools import partial
from typing import Any

import llamafactory.train.sft.workflow
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

from ..data.collator import HSADataCollator
from ..data.loader import get_dataset_seam
from ..model.loader import load_model_seam
from ..seams import Seam
from ..state import Integration
from .card import write_card_seam
from .weighted_loss import weighted_trainer


def sft_seams(state: Integration) -> list[Seam]:
    """Return what is replaced in LLaMA-Factory's supervised fine-tuning."""
    workflow = llamafactory.train.sft.workflow
    return [
        get_dataset_seam(workflow, state, "sft"),
        load_model_seam(workflow, state),
        Seam(workflow, "SFTDataCollatorWith4DAttentionMask", partial(_make_collator, state)),
        Seam(CustomSeq2SeqTrainer, "prediction_step", partial(_prediction_step, state)),
        Seam(workflow, "CustomSeq2SeqTrainer", partial(_make_trainer, state)),
        write_card_seam(workflow, state),
    ]


def _make_collator(state: Integration, original: Any, *args: Any, **kwargs: Any) -> HSADataCollator:
    """Make the collator that also masks labels and pads types."""
    return HSADataCollator(*args, hsa_config=state.hsa_config, feedback_config=state.feedback_config, **kwargs)


def _make_trainer(state: Integration, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Make the trainer that weighs the loss where the data say so."""
    return weighted_trainer(original)(*args, loss_elsewhere=state.loss_elsewhere, **kwargs)


def _prediction_step(
    state: Integration, original: Any, trainer: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """Give `generate` the tokenizer, by which rules read what is being written."""
    if state.hsa_config is not None and trainer.args.predict_with_generate:
        inputs = {**inputs, "tokenizer": trainer.processing_class}
    return original(trainer, model, inputs, *args, **kwargs)
