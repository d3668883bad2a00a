"""Reference models: they attend by the rules of the run, as the trained model did before its first step."""

from functools import partial

import llamafactory.train.trainer_utils

from ..model.loader import load_reference
from ..seams import Seam
from ..state import Integration


def reference_seams(state: Integration) -> list[Seam]:
    """Return what is replaced where LLaMA-Factory makes a reference model: the same place for all stages."""
    return [Seam(llamafactory.train.trainer_utils, "load_model", partial(load_reference, state))]
