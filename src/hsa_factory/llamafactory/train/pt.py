"""Stage `pt`: raw text, each token a label."""

from functools import partial
from typing import Any

import llamafactory.train.pt.workflow

from ..data.loader import get_dataset_seam
from ..data.pretrain_collator import HSAPretrainCollator
from ..model.loader import load_model_seam
from ..seams import Seam
from ..state import Integration
from .card import write_card_seam


def pt_seams(state: Integration) -> list[Seam]:
    """Return what is replaced in LLaMA-Factory's training on raw text."""
    workflow = llamafactory.train.pt.workflow
    return [
        get_dataset_seam(workflow, state, "pt"),
        load_model_seam(workflow, state),
        Seam(workflow, "DataCollatorForLanguageModeling", partial(_make_collator, state)),
        write_card_seam(workflow, state),
    ]


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


def _make_collator(state: Integration, original: Any, **kwargs: Any) -> HSAPretrainCollator:
    """Make the collator that also masks labels and pads types."""
    return HSAPretrainCollator(hsa_config=state.hsa_config, feedback_config=state.feedback_config, **kwargs)
