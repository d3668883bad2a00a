"""The stages of LLaMA-Factory that HSA and Feedback know. A new one is a file beside this one and an entry in `STAGES`."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import llamafactory.train.dpo.workflow
import llamafactory.train.kto.workflow
import llamafactory.train.pt.workflow
import llamafactory.train.rm.workflow
import llamafactory.train.sft.workflow

from ..data.labelled import TypedLabelledProcessor
from ..data.pairwise import TypedPairwiseProcessor
from ..data.pretraining import TypedPretrainProcessor
from ..data.processor import TypedSupervisedProcessor
from ..data.reward import TypedRewardProcessor
from ..data.typed_processor import TypedProcessorMixin
from ..seams import Seam
from ..state import Integration
from .dpo import check_dpo, dpo_seams
from .kto import kto_seams
from .pt import check_pt, pt_seams
from .rm import check_rm, rm_seams
from .sft import sft_seams


@dataclass(frozen=True)
class Stage:
    """What is asked of a stage.

    Attributes:
        workflow: LLaMA-Factory's module that runs it.
        data: What it calls the stage where it asks for its data.
        processor: Encodes one of its samples, packed or not, so that `inspect` can trace the tokens of a row.
        seams: What is replaced in it.
        check: Called with the integration, whose rules are settled, and LLaMA-Factory's `finetuning_args` before anything is
            loaded; refuses or warns of options of the stage.
    """

    workflow: ModuleType
    data: str
    processor: type[TypedProcessorMixin]
    seams: Callable[[Integration], list[Seam]]
    check: Callable[[Integration, Any], None] = lambda state, finetuning_args: None


STAGES = {
    "sft": Stage(llamafactory.train.sft.workflow, "sft", TypedSupervisedProcessor, sft_seams),
    "dpo": Stage(llamafactory.train.dpo.workflow, "rm", TypedPairwiseProcessor, dpo_seams, check_dpo),
    "kto": Stage(llamafactory.train.kto.workflow, "kto", TypedLabelledProcessor, kto_seams),
    "rm": Stage(llamafactory.train.rm.workflow, "rm", TypedRewardProcessor, rm_seams, check_rm),
    "pt": Stage(llamafactory.train.pt.workflow, "pt", TypedPretrainProcessor, pt_seams, check_pt),
}
"""By the name that a training file gives them (`stage`)."""
