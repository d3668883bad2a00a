"""What can be measured without play: how much a system sees, and which actions it predicts, verb by verb."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from hsa_factory import HSAConfig
from hsa_factory.attention.layer_rules import LayerRules
from hsa_factory.inspection.sample_cost import Tokens, layer_cost

from .conversations import Message
from .encoding import Encoded, batch_of, encode
from .playing import load_player


BATCH = 16
LONG_AGO = 64  # tokens: the window of NOISE in HSA 0.02/64
RETURN = "move back"
_ROOM = re.compile(r"You are in the ([\w ]+)\.")


def visible_keys(tokenizer_folder: Path, samples: Sequence[Sequence[Message]], config: HSAConfig) -> dict[str, Any]:
    """Count the keys that a token sees, itself included.

    Returns:
        The ``mean`` over all tokens, and the ``share`` of each type.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    seen = tokens = 0
    kinds = [0, 0, 0]
    for messages in samples:
        row = encode(tokenizer, messages, config)
        seen += layer_cost(
            Tokens(np.array(row.types), np.array(row.turns), np.zeros(len(row.ids), bool)), LayerRules.of(config)
        ).pairs
        tokens += len(row.ids)
        for kind in row.types:
            kinds[kind] += 1
    names = ("GLOBAL", "LANDMARK", "NOISE")
    return {"mean": seen / tokens, "shares": {name: count / tokens for name, count in zip(names, kinds, strict=True)}}


def accuracy_by_verb(
    model_folder: Path, samples: Sequence[Sequence[Message]], config: HSAConfig
) -> dict[str, list[int]]:
    """Let a model predict each action of conversations that others have played.

    Returns:
        By the action's first word: how many actions were predicted as a whole, and how many there are. Moves into a room
        that was left more than `LONG_AGO` tokens ago count again, as `RETURN`: the way stands in old NOISE.
    """
    model, tokenizer = load_player(model_folder, config)
    counts: dict[str, list[int]] = {}
    rows = [(messages, encode(tokenizer, messages, config)) for messages in samples]
    rows.sort(key=lambda row: len(row[1].ids))
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        batch = batch_of([row for _, row in part], tokenizer.pad_token_id)
        if not config.has_turns:
            del batch["turn_ids"]
        with torch.no_grad():
            best = model(**batch).logits.argmax(dim=-1)
        for number, (messages, row) in enumerate(part):
            _count(counts, messages, row, best[number].tolist())
    return dict(sorted(counts.items(), key=lambda item: -item[1][1]))


def _count(counts: dict[str, list[int]], messages: Sequence[Message], row: Encoded, best: list[int]) -> None:
    actions = [message for message in messages if message["role"] == "assistant"]
    returns = returning_moves(messages, row)
    for number, (message, (start, stop)) in enumerate(zip(actions, row.actions, strict=True)):
        if message.get("weight") == 0:
            continue
        for key in (message["content"].split()[0], *([RETURN] if number in returns else [])):
            count = counts.setdefault(key, [0, 0])
            count[0] += best[start - 1 : stop - 1] == row.ids[start:stop]
            count[1] += 1


def returning_moves(messages: Sequence[Message], row: Encoded) -> set[int]:
    """Return the numbers of the actions that go back into a room which was left more than `LONG_AGO` tokens ago."""
    rooms = [_ROOM.match(message["content"]) for message in messages[1::2]]
    left: dict[str, int] = {}  # where the last action in each room ends
    found, here = set(), None
    for number, (start, stop) in enumerate(row.actions):
        now = rooms[number]
        here = now[1] if now else here
        if here is not None:
            left[here] = stop
        after = rooms[number + 1] if number + 1 < len(rooms) else None
        if after and messages[2 + 2 * number]["content"].startswith("move "):
            if after[1] != here and after[1] in left and start - left[after[1]] > LONG_AGO:
                found.add(number)
    return found
