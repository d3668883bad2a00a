"""Stage `sft`: its data, model and collator, predictions, and the loss that weights weigh."""

from functools import partial
from typing import Any

import llamafactory.train.sft.workflow
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

from ..data.collator import HSADataCollator
from ..seams import Seam
from ..state import Integration
from .common import common_seams
from .context_parallel import report_traffic
from .weighted_loss import weighted_trainer


def sft_seams(state: Integration) -> list[Seam]:
    """Return what is replaced in LLaMA-Factory's supervised fine-tuning."""
    workflow = llamafactory.train.sft.workflow
    return [
        *common_seams(workflow, state, "sft", "SFTDataCollatorWith4DAttentionMask", HSADataCollator),
        Seam(CustomSeq2SeqTrainer, "prediction_step", partial(_prediction_step, state)),
        Seam(workflow, "CustomSeq2SeqTrainer", partial(_make_trainer, state)),
    ]


def _make_trainer(state: Integration, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Make the trainer that weighs the loss where the data say so."""
    trainer = weighted_trainer(original)(*args, loss_elsewhere=state.loss_elsewhere, **kwargs)
    report_traffic(state, trainer)
    return trainer


def _prediction_step(
    state: Integration, original: Any, trainer: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """Give `generate` the tokenizer, by which rules read what is being written."""
    if state.hsa_config is not None and trainer.args.predict_with_generate:
        inputs = {**inputs, "tokenizer": trainer.processing_class}
    return original(trainer, model, inputs, *args, **kwargs)
