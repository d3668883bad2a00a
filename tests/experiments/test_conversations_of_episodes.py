"""Episodes as conversations: roles, files that LLaMA-Factory reads, and the types that the project's rules give."""

import json

import pytest

from hsa_factory import HSAConfig
from hsa_factory.training import encode_conversation


pytest.importorskip("textworld_express", reason="pip install 'hsa-factory[experiment]'")

from experiments.conversations import to_messages, typing_rules, write_episodes
from experiments.environments import games_of
from experiments.episodes import expert_episode


EXPECTED = {
    "read cookbook": "L",
    "Gather all following": "G",
    "take ": "L",
    "You take ": "L",
    "open ": "L",
    "You open ": "L",
    "cook ": "L",
    "move ": "N",
    "You are in ": "N",
    "prepare meal": "L",
    "Adding the meal": "L",
    "eat meal": "L",
    "You fry ": "L",
    "You roast ": "L",
    "You grill ": "L",
    "You chop ": "L",
    "You slice ": "L",
    "You dice ": "L",
    "chop ": "L",
    "slice ": "L",
    "dice ": "L",
    "You are hungry": "G",
}


def types_of_messages(messages, rules, tokenizer):
    """Return (text, letters of its types) by message, as the project's encoder sees it."""
    row = encode_conversation(tokenizer, messages, HSAConfig(rules=rules))
    letters = ["GLN"[number] for number in row["semantic_ids"]]
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    found, start = [], 0
    for message in messages:
        length = len(tokenizer(message["content"])["input_ids"])
        start += tokens[start] in ("<|act|>", "<|end|>") and message["role"] != "system"
        start += tokens[start] in ("<|act|>", "<|end|>") and message["role"] != "system"
        found.append((message["content"], set(letters[start : start + length])))
        start += length
    return found


@pytest.fixture(scope="module")
def episodes(cooking):
    return [expert_episode(cooking, game) for game in games_of("cooking", "train", 12)]


def test_roles_take_turns_and_the_last_message_is_an_action(episodes):
    for episode in episodes:
        messages = to_messages(episode)
        roles = [message["role"] for message in messages]
        assert roles == ["system", *["user", "assistant"] * len(episode.turns)]
        assert [message["content"] for message in messages[2::2]] == episode.actions
        assert messages[3]["content"] == episode.turns[0].step.observation


def test_rules_give_the_types_that_a_reader_would(cooking, cooking_tokenizer, episodes):
    rules, seen = typing_rules(cooking), set()
    for episode in episodes:
        for text, types in types_of_messages(to_messages(episode), rules, cooking_tokenizer):
            begin = next(begin for begin in EXPECTED if text.startswith(begin))
            assert types == {EXPECTED[begin]}, text
            seen.add(begin)
    assert len(seen) > 15


def test_the_recipe_can_be_made_noise(cooking, cooking_tokenizer, episodes):
    found = types_of_messages(to_messages(episodes[0]), typing_rules(cooking, lasting="NOISE"), cooking_tokenizer)
    assert [types for text, types in found if text.startswith("Gather all")] == [{"N"}]


def test_data_sets_stand_side_by_side_in_one_directory(cooking, episodes, tmp_path):
    write_episodes(tmp_path, "one", episodes[:2])
    path = write_episodes(tmp_path, "other", episodes[2:])
    entries = json.loads((tmp_path / "dataset_info.json").read_text("utf-8"))
    assert set(entries) == {"one", "other"} and entries["other"]["file_name"] == path.name
    assert len(json.loads(path.read_text("utf-8"))) == 10
