"""What a template puts around thoughts and tool calls, known by its name."""

from functools import cache

from llamafactory.data.template import TEMPLATES

from ...labeling.trajectories.composed import DEFAULT_WORDS, Words


@cache
def template_words(name: str | None) -> Words:
    """Return the words of a registered template; LLaMA-Factory's defaults for one that is read off the tokenizer.

    Args:
        name: As in `template`.
    """
    template = TEMPLATES.get(name or "")
    return DEFAULT_WORDS if template is None else Words(template.thought_words, template.tool_call_words)
