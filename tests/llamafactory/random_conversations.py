"""Random conversations and options for LLaMA-Factory's templates: what people write, and what nobody should."""

import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from hsa_factory import FeedbackConfig
from hsa_factory.typed.spans import encode_spans


MARKS = [f"<m{k}>" for k in range(41)]
MARKS_EACH = 4  # of a message, one a part
TOOL_MARK, SYSTEM_MARK = 39, 40
BLANK = ("", " ", "\n", "\t \n", "\u3000", "\u200b")
ODD = ("{{content}}", "{{idx}}", "{{", "null", "None", "naïve 拿 🍎", "\r\n", "<|im_end|>", "</s>", "[INST]", "\x00")
WORDS = ("open the fridge", " the red apple.", "The robot", " 12,345", "\n\n", "  ", "!")
TOOLS = json.dumps([{"name": "look", "description": "<m39>", "parameters": {"type": "object", "properties": {}}}])
MEDIA = ("<image>", "<video>", "<audio>")


class Sample(NamedTuple):
    """One conversation, as `Oracle` takes it.

    Attributes:
        messages: With `semantic_type`, and some with `weight` or `spans`.
        system: The system prompt.
        system_type: Its type.
        tools: As JSON.
        by_mark: The type of each mark that stands for one message, or for one part of it, alone.
    """

    messages: list[dict[str, Any]]
    system: str
    system_type: int
    tools: str
    by_mark: dict[int, int]

    @property
    def facts(self) -> tuple[list[dict[str, Any]], str, int, str]:
        return self[:4]


class Conversations:
    """Makes random conversations for one template.

    Args:
        template: Of LLaMA-Factory; its words for thoughts and tool calls are used, whole and broken.
        marker: The feedback token.
        rng: Seeded.
    """

    def __init__(self, template: Any, marker: str, rng: random.Random) -> None:
        self.template, self.marker, self.rng = template, marker, rng

    def sample(self) -> Sample:
        """Return a conversation of one to four turns."""
        rng, by_mark = self.rng, {}
        messages = []
        for k in range(2 * rng.randint(1, 4)):
            roles = ("user", "user", "observation") if k % 2 == 0 else ("assistant", "assistant", "function")
            message = {"role": rng.choice(roles), "semantic_type": rng.randrange(3)}
            if rng.random() < 0.1:
                message["weight"] = 0
            if message["role"] == "function":
                message["content"] = self._call(k)
                by_mark[MARKS_EACH * k] = message["semantic_type"]
            else:
                self._write(message, k, by_mark)
            messages.append(message)

        has_tools = any(message["role"] == "function" for message in messages) or rng.random() < 0.1
        tools = (
            self._one_of({TOOLS: 12, "[]": 2, "": 2, " ": 0.3, "[{}]": 0.3, "{": 0.3, "3": 0.2}) if has_tools else ""
        )
        system = self._one_of({"": 4, "<m40>": 4, " ": 1, "\n": 1, "<m40> be kind. {{content}}": 1})
        system_type = rng.randrange(3)
        by_mark |= dict.fromkeys((SYSTEM_MARK, TOOL_MARK), system_type if system else 0)
        return Sample(messages, system, system_type, tools, by_mark)

    def _write(self, message: dict[str, Any], k: int, by_mark: dict[int, int]) -> None:
        """Give a message a text of up to four parts, typed one by one or all alike."""
        rng, has_parts = self.rng, self.rng.random() < 0.3
        text, spans = "", []
        for part in range(rng.choice((0, 1, 1, 2, MARKS_EACH))):
            kind = rng.randrange(3) if has_parts else message["semantic_type"]
            piece = self._piece(MARKS[MARKS_EACH * k + part])
            by_mark[MARKS_EACH * k + part] = kind
            if has_parts and piece:
                spans.append((len(text), len(text) + len(piece), kind))
            text += piece
        if rng.random() < 0.15:
            text, spans = rng.choice(BLANK), []
        message["content"] = text
        if spans:
            message["spans"] = encode_spans(spans)

    def _piece(self, mark: str) -> str:
        rng, (start, end) = self.rng, self.template.thought_words
        choice = rng.random()
        if choice < 0.5:
            return mark * rng.randint(1, 4)
        if choice < 0.65:
            return rng.choice(WORDS) + mark
        if choice < 0.75:
            return rng.choice(BLANK)
        if choice < 0.83:
            return rng.choice(ODD)
        if choice < 0.90:
            return rng.choice((start + mark + end, start + end, start, end, start + mark + end + mark, end + start))
        if choice < 0.99:
            return mark + self.marker + rng.choice(("", mark))
        return rng.choice(MEDIA)

    def _call(self, k: int) -> str:
        """Return a tool call, now and then one that cannot be read."""
        mark, (start, end) = MARKS[MARKS_EACH * k], self.template.thought_words
        arguments = self._one_of({"{}": 1, json.dumps({"at": mark}): 6, json.dumps({"n": 3, "l": [mark, None]}): 1})
        call = f'{{"name": "look", "arguments": {arguments}}}'
        first, last = self.template.tool_call_words
        forms = {
            call: 10,
            f"[{call}, {call}]": 2,
            f"{start}{mark}{end}{call}": 2,
            f"{mark}{first}{call}{last}": 1,
            f"{start}{mark}{end}\n{first}{call}{last}": 1,
            "[]": 0.3,
            "": 0.2,
            "{}": 0.1,
            "look!": 0.1,
        }
        return self._one_of(forms)

    def _one_of(self, weights: dict[str, float]) -> str:
        (chosen,) = self.rng.choices(list(weights), list(weights.values()))
        return chosen


def option_sets(template: Any, is_reasoning: bool, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield options of LLaMA-Factory without end."""
    while True:
        modes = [{}, {"mask_history": True}] + ([] if template.efficient_eos else [{"train_on_prompt": True}])
        options = {
            **rng.choice(modes),
            "cutoff_len": rng.choice((2048, 2048, rng.randint(1, 40), rng.randint(20, 200))),
        }
        if is_reasoning:
            options |= {"enable_thinking": rng.choice((True, False, None)), "preserve_thinking": rng.random() < 0.2}
        if rng.random() < 0.4:
            options |= {"packing": True, "neat_packing": rng.random() < 0.7}
        if rng.random() < 0.15:
            options["default_system"] = rng.choice(("be kind", " "))
        yield options


def feedback_config(rng: random.Random) -> FeedbackConfig | None:
    """Return one of the ways to train after a marker, or none."""
    if rng.random() < 0.4:
        return None
    missing = rng.choice(("train", "train", "drop"))
    if rng.random() < 0.3:
        return FeedbackConfig(train="recovery", missing=missing)
    return FeedbackConfig(occurrence=rng.choice(("first", "last", "every")), missing=missing)
