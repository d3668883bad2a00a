"""Trajectories for `one_sequence.py`, and the two ways to make training rows of one.

A message is its role, its type and its number of tokens; the ids are random numbers, on which no time depends.
"""

import json
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch

from hsa_factory.semantics import SemanticType
from hsa_factory.typed.turns import number_messages


IGNORED = -100
HEADER = 3  # tokens of ChatML before a message's text: <|im_start|>, the role, a line break
FRAME = HEADER + 2  # and <|im_end|> with a line break behind it
CUT = FRAME + 8  # tokens of a message of which a line is left that says that it was cut
IMAGE = 302  # tokens of an image of 640 × 360 pixels with Qwen2.5-VL's processor, its two marks included

# Tokens of the messages of household trajectories of 24 replies, frames included, as Qwen's tokenizer counts them.
SYSTEM, TASK, REPLY = 52, 536, 16
LANDMARK_EVERY = 6  # replies: "pick up", "open", "put" among those that walk and look


@dataclass(frozen=True)
class Message:
    """A message of a trajectory.

    Attributes:
        is_reply: Whether the model wrote it.
        kind: Its type.
        ids: (tokens,) its token ids, frame included.
    """

    is_reply: bool
    kind: SemanticType
    ids: torch.Tensor

    def cut(self) -> "Message":
        """Return the message with a line in the place of its text."""
        return Message(self.is_reply, self.kind, self.ids[:CUT])


@dataclass(frozen=True)
class Row:
    """A row to train on: token ids, labels (-100 where nothing is trained), types and turn numbers, each (L,)."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    semantic_ids: torch.Tensor
    turn_ids: torch.Tensor


def make_message(is_reply: bool, kind: SemanticType, tokens: int, vocabulary: int) -> Message:
    """Make a message of random ids."""
    return Message(is_reply, kind, torch.randint(0, vocabulary, (tokens,)))


def synthetic(messages: int, tokens: int, vocabulary: int) -> list[Message]:
    """Make a trajectory of the real ones' shape: system prompt, task with an image, replies and observations.

    Everything is as long as it is there, except the observations, which share the tokens that are left (each half to one and a
    half times as long as their mean). System prompt and task are GLOBAL, one reply in six LANDMARK, all else NOISE.

    Args:
        messages: An odd number: system prompt, task, reply, and then pairs of observation and reply.
        tokens: Of all messages together.
        vocabulary: Number of token ids.
    """
    observations = (messages - 3) // 2
    weights = 0.5 + torch.rand(observations, dtype=torch.float64)
    room = tokens - SYSTEM - TASK - REPLY * (observations + 1)
    if messages % 2 == 0 or observations < 1 or room < 2 * CUT * observations:
        raise ValueError(f"{messages} messages do not make {tokens} tokens: an odd number, or more tokens.")
    ends = [round(room * end) for end in (weights / weights.sum()).cumsum(0).tolist()]
    lengths = [end - start for start, end in zip([0, *ends], ends)]

    made = [make_message(False, SemanticType.GLOBAL, length, vocabulary) for length in (SYSTEM, TASK)]
    for number, length in enumerate([0, *lengths]):
        made += [make_message(False, SemanticType.NOISE, length, vocabulary)] if number else []
        is_event = number % LANDMARK_EVERY == LANDMARK_EVERY - 1
        kind = SemanticType.LANDMARK if is_event else SemanticType.NOISE
        made.append(make_message(True, kind, REPLY, vocabulary))
    return made


def read(path: Path, tokenizer_directory: str, vocabulary: int, image_tokens: int = IMAGE) -> list[list[Message]]:
    """Read the trajectories of a JSON file: `messages` with `role`, `content` and `semantic_type`.

    Args:
        path: The file.
        tokenizer_directory: Whose tokenizer counts the tokens of a text.
        vocabulary: Number of token ids.
        image_tokens: What one `<image>` counts.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)

    def length(text: str) -> int:
        images = text.count("<image>")
        return FRAME + len(tokenizer(text.replace("<image>", ""))["input_ids"]) + images * image_tokens

    return [
        [
            make_message(
                message["role"] == "assistant",
                SemanticType.parse(message["semantic_type"]),
                length(message["content"]),
                vocabulary,
            )
            for message in sample["messages"]
        ]
        for sample in json.loads(path.read_text(encoding="utf-8"))
    ]


def to_row(messages: list[Message], trained: set[int], turns: list[int]) -> Row:
    """Join messages; those of the numbers in `trained` are trained from the end of their header on."""
    ids = torch.cat([message.ids for message in messages])
    labels = torch.full_like(ids, IGNORED)
    lengths = [len(message.ids) for message in messages]
    for number, end in enumerate(accumulate(lengths)):
        if number in trained:
            start = end - lengths[number] + HEADER
            labels[start : end - 1] = ids[start : end - 1]  # not the line break behind <|im_end|>
    repeats = torch.tensor(lengths)
    kinds = torch.tensor([int(message.kind) for message in messages]).repeat_interleave(repeats)
    return Row(ids, labels, kinds, torch.tensor(turns).repeat_interleave(repeats))


def one_row(messages: list[Message]) -> Row:
    """Return the whole trajectory as one row in which every reply is trained."""
    replies = {number for number, message in enumerate(messages) if message.is_reply}
    return to_row(messages, replies, number_messages(message.is_reply for message in messages))


def row_per_reply(messages: list[Message], keep: int) -> list[Row]:
    """Return one row for each reply, which alone is trained, with the messages before it.

    Of observations typed NOISE, the one that is answered and `keep` before it are whole, of the others a line is left;
    everything else is whole: earlier replies, and what is GLOBAL or LANDMARK.
    """
    turns, rows = number_messages(message.is_reply for message in messages), []
    for number, reply in enumerate(messages):
        if not reply.is_reply:
            continue
        context = [
            message.cut()
            if not message.is_reply and message.kind is SemanticType.NOISE and turns[number] - turn > keep
            else message
            for message, turn in zip(messages[:number], turns)
        ]
        rows.append(to_row([*context, reply], {number}, turns[: number + 1]))
    return rows
