"""Rows of `encode_conversation` are the rows that LLaMA-Factory's pipeline makes of the same conversations."""

import copy
import random
from pathlib import Path

import pytest

from hsa_factory import FeedbackConfig, HSAConfig, LossWeightsConfig
from hsa_factory.training import ConversationLeftOut, encode_conversation


TEMPLATES = Path(__file__).parents[2] / "training" / "templates"
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
    "semantic_tag": "semantic_type",
}
ENTRY = {"formatting": "openai", "columns": {"messages": "messages"}, "tags": TAGS}
RULES = [
    {"tag": "think", "type": "NOISE"},
    {"pattern": "apple (?P<span>w[0-9]+)", "type": "LANDMARK"},
    {"role": "observation", "contains": "w3", "type": "NOISE"},
    {"role": "function", "type": "LANDMARK"},
]
CASES = {
    "plain": (HSAConfig(noise_turns=1, default_type="NOISE"), None, None),
    "rules": (HSAConfig(landmark_turns=2, rules=RULES), None, None),
    "after": (HSAConfig(rules=RULES), FeedbackConfig(missing="drop"), None),
    "last": (HSAConfig(), FeedbackConfig(occurrence="last", scope="user"), None),
    "every": (HSAConfig(), FeedbackConfig(occurrence="every"), None),
    "recovery": (HSAConfig(), FeedbackConfig(train="recovery", missing="train"), None),
    "weights": (HSAConfig(), None, LossWeightsConfig(roles={"observation": 0.25, "assistant": 2})),
}


def conversation(rng, has_weights):
    def say(role, text):
        message = {"role": role, "content": text}
        if rng.random() < 0.6:
            message["semantic_type"] = rng.choice(["GLOBAL", "LANDMARK", "PROCESS_NOISE"])
        if has_weights and role != "system" and rng.random() < 0.3:
            message["weight"] = rng.choice([0, 1, 0.5])
        return message

    def words():
        text = " ".join(
            rng.choice(["the", "apple", "door"]) + f" w{rng.randrange(9)}" for _ in range(rng.randint(1, 5))
        )
        return text + rng.choice(["", "", " <|feedback|>", " <|feedback|> again"])

    messages = [
        say("system", words() + "\ndetailed thinking off")
    ]  # or else LLaMA-Factory adds this to openai's format
    side = "user"
    for _ in range(rng.randint(1, 4)):
        messages.append(say(side, words()))
        if rng.random() < 0.3:
            call = {"type": "function", "function": {"name": "look", "arguments": {"at": words(), "n": 3}}}
            messages.append({**say("assistant", ""), "tool_calls": [call]})
            messages[-1]["content"] = None
            side = "tool"
            continue
        text = words()
        if rng.random() < 0.3:
            text = f"<think>\n{words()}\n</think>\n\n{text}"
        messages.append(say("assistant", text))
        side = "user"
    return messages


@pytest.fixture(scope="module")
def model_dir(lf):
    return lf.model_dir("qwen3", extra=(lf.MARKER,))


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_llamafactory(lf, model_dir, tmp_path, case):
    config, feedback, weights = CASES[case]
    rng = random.Random(case)
    samples = [{"messages": conversation(rng, weights is not None)} for _ in range(40)]
    data = lf.write_data(tmp_path / "data", talk=(ENTRY, samples))
    args = lf.args(data, "talk", model_dir, template="qwen")
    prepared = lf.prepare(args, config, feedback, weights)
    tokenizer = copy.deepcopy(prepared.tokenizer)
    tokenizer.chat_template = (TEMPLATES / "qwen2_5.jinja").read_text("utf-8")

    expected = prepared.rows()
    rows, left_out = [], {}
    for number, sample in enumerate(samples):
        try:
            rows.append(encode_conversation(tokenizer, sample["messages"], config, feedback, loss_weights=weights))
        except ConversationLeftOut as reason:
            left_out.setdefault(reason.reason, []).append(number)
    assert left_out == prepared.counts["dropped_samples"]
    assert len(rows) == len(expected) > 0
    for row, other in zip(rows, expected):
        assert tokenizer.decode(row["input_ids"]) == tokenizer.decode(other["input_ids"])
        assert row["input_ids"] == other["input_ids"]
        assert row["semantic_ids"] == list(other["semantic_ids"])
        kept = [label if keep else -100 for label, keep in zip(other["labels"], other["loss_mask"])]
        assert row["labels"] == kept
        assert row.get("turn_ids") == other.get("turn_ids")
        mine, theirs = (each.get("loss_weights") or [1.0] * len(kept) for each in (row, other))
        trained = [place for place, label in enumerate(kept) if label != -100]
        assert [mine[place] for place in trained] == pytest.approx([theirs[place] for place in trained])
