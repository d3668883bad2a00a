"""Stage `pt`: raw text, each token a label."""

from functools import partial
from typing import Any

import llamafactory.train.pt.workflow

from ..data.pretrain_collator import HSAPretrainCollator
from ..seams import Seam
from ..state import Integration
from .common import common_seams
from .context_parallel import context_parallel_trainer, report_traffic


def pt_seams(state: Integration) -> list[Seam]:
    """Return what is replaced in LLaMA-Factory's training on raw text."""
    workflow = llamafactory.train.pt.workflow
    return [
        *common_seams(workflow, state, "pt", "DataCollatorForLanguageModeling", HSAPretrainCollator),
        Seam(workflow, "CustomTrainer", partial(_make_trainer, state)),
    ]


def _make_trainer(state: Integration, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Make the trainer, which deals batches to groups of processes where these share rows."""
    if state.context_group is None:
        return original(*args, **kwargs)
    trainer = context_parallel_trainer(original)(*args, **kwargs)
    report_traffic(state, trainer)
    return trainer


def check_pt(state: Integration, finetuning_args: Any) -> None:
    """Refuse what needs messages: a text has neither roles nor turns.

    Raises:
        ValueError: Naming the options, and what to write in their stead.
    """
    hsa_config, feedback_config = state.hsa_config, state.feedback_config
    if hsa_config is not None and hsa_config.has_turns:
        names = [
            f"hsa.{name}_turns"
            for name, turns in zip(("global", "landmark", "noise"), hsa_config.turns)
            if turns is not None
        ]
        raise ValueError(
            f"{', '.join(names)}: turns count the replies of a conversation, and the raw text of `stage: pt` has none. Set "
            f"{', '.join(name.replace('_turns', '_window') for name in names)} in their place."
        )
    if feedback_config is None:
        return
    for name, value in (("scope", feedback_config.scope), ("train", feedback_config.train)):
        if value not in (None, "after"):
            raise ValueError(
                f"feedback.{name} = {value!r} asks which message a marker stands in, and the raw text of `stage: pt` is no "
                "messages. Remove it: what stands after the marker is trained."
            )
