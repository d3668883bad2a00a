"""The experiments' tokenizer: every text of an environment comes back, and nothing unknown slips through."""

import random

import pytest
from transformers import AutoTokenizer


pytest.importorskip("textworld_express", reason="pip install 'hsa-factory[experiment]'")

from experiments.conversations import to_messages
from experiments.environments import games_of
from experiments.episodes import expert_episode
from experiments.vocabulary import same_text


def test_all_texts_of_a_hundred_unseen_games_come_back(cooking, cooking_tokenizer):
    chance, texts = random.Random(1), set(cooking.possible_mistakes())
    for fold in ("dev", "test"):
        for game in games_of("cooking", fold, 50):
            texts.update(message["content"] for message in to_messages(expert_episode(cooking, game)))
            cooking.reset(game)
            for _ in range(10):
                texts.update(actions := cooking.valid_actions())
                texts.add(cooking.step(chance.choice(actions)).observation)
    texts = sorted(texts)
    assert len(texts) > 1000
    returned = cooking_tokenizer.batch_decode(cooking_tokenizer(texts)["input_ids"])
    assert [text for text, back in zip(texts, returned, strict=True) if not same_text(text, back)] == []


def test_an_action_comes_back_as_it_was(cooking, cooking_tokenizer):
    cooking.reset(games_of("cooking", "test", 1)[0])
    actions = cooking.valid_actions()
    assert cooking_tokenizer.batch_decode(cooking_tokenizer(actions)["input_ids"]) == actions


def test_an_unknown_word_is_an_error(cooking_tokenizer):
    with pytest.raises(Exception, match="UNK"):
        cooking_tokenizer("take the moon")


def test_things_and_phrases_are_one_token(cooking_tokenizer):
    assert len(cooking_tokenizer) < 300
    for text in ("red hot pepper", "kitchen cupboard", "In one part of the room you see a", "that is closed.", "west"):
        assert len(cooking_tokenizer(text)["input_ids"]) == 1, text


def test_a_recipes_verb_stands_right_before_its_thing(cooking_tokenizer):
    ids = cooking_tokenizer("grill the green apple slice the red onion prepare meal")["input_ids"]
    assert cooking_tokenizer.convert_ids_to_tokens(ids)[:4] == ["grill the", "green apple", "slice the", "red onion"]
    ids = cooking_tokenizer("cook green apple in barbeque")["input_ids"]
    assert cooking_tokenizer.convert_ids_to_tokens(ids) == ["cook", "green apple", "in barbeque"]


def test_it_is_the_same_after_saving(cooking_tokenizer, tmp_path):
    cooking_tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    messages = [
        {"role": "user", "content": "You are in the kitchen."},
        {"role": "assistant", "content": "look around"},
    ]
    text = again.apply_chat_template(messages, tokenize=False)
    assert text == "You are in the kitchen.<|act|>look around<|end|>"
    assert again(text)["input_ids"] == cooking_tokenizer(text)["input_ids"]
    assert len(again("<|feedback|> <|act|> <|end|> <|pad|>")["input_ids"]) == 4
    assert (again.pad_token, again.eos_token) == ("<|pad|>", "<|end|>")


def test_of_words_alone_each_word_and_mark_is_a_token(cooking):
    from experiments.forms import LONG
    from experiments.vocabulary import tokenizer_of

    tokenizer = tokenizer_of(cooking, games_of("cooking", "train", 30, **LONG.options), words=True)
    text = "To the North you see a closed plain door."
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == [*text[:-1].split(), "."]
    for game in games_of("cooking", "dev", 5, **LONG.options):
        for message in to_messages(expert_episode(cooking, game, 100)):
            assert same_text(tokenizer.decode(tokenizer(message["content"])["input_ids"]), message["content"])
