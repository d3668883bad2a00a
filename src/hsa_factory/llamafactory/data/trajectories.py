"""Conversations as agents leave them, read as the run's template writes them."""

from collections import Counter
from functools import cache
from typing import Any

from llamafactory.data.template import TEMPLATES

from ...labeling.formats import DatasetFormat, Sample
from ...labeling.trajectories.composed import DEFAULT_WORDS, Words
from ...labeling.trajectories.normalise import normalise
from ...labeling.trajectories.sessions import is_event
from ...labeling.weights import STEP_KEY


def read_whole(
    sample: Sample,
    dataset_format: DatasetFormat,
    template: str | None,
    notes: Counter | None = None,
    step_key: str | None = STEP_KEY,
) -> dict[Any, Any]:
    """Return a sample that LLaMA-Factory's converters read whole.

    Args:
        sample: Of a data set.
        dataset_format: The data set's.
        template: The run's, by name.
        notes: What was changed and left out, counted; added to.
        step_key: Key of a message that holds the label of its step; None: labels are not read.

    Raises:
        ValueError: If a message cannot be read, or the sample is one event of a session.
    """
    if is_event(sample) and sample.get(dataset_format.messages) is None:
        raise ValueError(
            "a line of a session trace is no conversation. Write the conversations with `hsa-factory label FILE --rules … "
            "--out OUT.jsonl --register`, and train on that."
        )
    return dict(normalise(sample, dataset_format, template_words(template), notes, step_key))


@cache
def template_words(name: str | None) -> Words:
    """Return what a registered template puts around thoughts and calls; for one read off the tokenizer the usual words."""
    template = TEMPLATES.get(name or "")
    return DEFAULT_WORDS if template is None else Words(template.thought_words, template.tool_call_words)
