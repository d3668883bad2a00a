"""BabyAI behind the same interface: the bot wins, what is seen is told, pictures become a data set with images."""

import json
import random

import pytest


pytest.importorskip("minigrid", reason="pip install 'hsa-factory[experiment]'")

from experiments.conversations import to_messages, typing_rules, write_episodes
from experiments.environments import games_of, open_environments
from experiments.environments.baby_ai import ACTIONS
from experiments.environments.grid_view import describe_view
from experiments.episodes import expert_episode, expert_from, replay
from experiments.vocabulary import build_tokenizer, same_text, survey

from hsa_factory import HSAConfig
from hsa_factory.training import encode_conversation


LIMIT = 300


@pytest.fixture(scope="module")
def baby_ai():
    return open_environments("babyai")[0]


@pytest.fixture(scope="module")
def episodes(baby_ai):
    return [expert_episode(baby_ai, game, LIMIT) for game in games_of("babyai", "dev", 4)]


def test_the_bot_wins_both_levels(episodes):
    assert [episode.won for episode in episodes] == [True] * 4
    assert {episode.game.option("level") for episode in episodes} == {"KeyCorridorS6R3", "BossLevel"}


def test_a_game_played_again_is_the_same(baby_ai, episodes):
    for episode in episodes[:2]:
        assert replay(baby_ai, episode.game, episode.actions, LIMIT) == episode


def test_the_bot_goes_on_after_what_others_did(baby_ai):
    chance, won = random.Random(0), 0
    for game in games_of("babyai", "dev", 3, first=10, levels=("KeyCorridorS6R3",)):
        won += expert_from(baby_ai, game, [chance.choice(list(ACTIONS)) for _ in range(15)], LIMIT).won
    assert won >= 2, "the bot does not promise to win from everywhere"


def test_what_is_seen_is_told(baby_ai):
    from minigrid.core.world_object import Ball, Door, Key, Wall

    game = games_of("babyai", "dev", 1, levels=("BossLevel",))[0]
    baby_ai.reset(game)
    world = baby_ai._world
    for column in range(1, 8):
        for row in range(1, 8):
            world.grid.set(column, row, None)
    world.agent_pos, world.agent_dir, world.carrying = (4, 6), 3, Key("blue")  # facing north
    world.grid.set(4, 4, Ball("red"))
    world.grid.set(3, 5, Door("grey", is_locked=True))
    world.grid.set(5, 6, Wall())
    told = describe_view(world)
    assert told.startswith("You face north. You carry a blue key. You see ")
    for part in ("a red ball 2 ahead", "a locked grey door 1 ahead 1 left", "a wall 1 right"):
        assert part in told
    world.agent_dir = 0
    assert "a wall 1 ahead" in describe_view(world) and "red ball" in describe_view(world)


def test_key_events_are_told_and_typed(baby_ai, episodes):
    texts, things = survey(baby_ai, games_of("babyai", "train", 6), steps=40)
    tokenizer = build_tokenizer(texts, things, often=20, extra_texts=baby_ai.possible_mistakes())
    messages = to_messages(episodes[0])
    texts = [message["content"] for message in messages]
    assert all(same_text(tokenizer.decode(tokenizer(text)["input_ids"]), text) for text in texts)
    events = [text for text in texts if text.startswith(("You pick up", "You unlock", "You open", "You drop"))]
    assert any(text.startswith("You unlock the red door") or text.startswith("You open") for text in events)
    assert any(text.startswith("You pick up the") for text in events)

    row = encode_conversation(tokenizer, messages, HSAConfig(rules=typing_rules(baby_ai)))
    by_token = list(zip(tokenizer.convert_ids_to_tokens(row["input_ids"]), row["semantic_ids"], strict=True))
    by_token = by_token[by_token.index(("<|act|>", 2)) :]  # behind the mission
    assert {kind for token, kind in by_token if token in ("pick up", "drop", "toggle")} == {1}
    assert {kind for token, kind in by_token if token in ("turn left", "turn right", "move forward")} == {2}


def test_a_text_of_the_last_observations_is_that_of_training(baby_ai, episodes):
    from experiments.playing import Play, Seat
    from experiments.systems import keep_last
    from experiments.vocabulary import ACT, END

    texts, things = survey(baby_ai, games_of("babyai", "train", 6), steps=40)
    tokenizer = build_tokenizer([*texts, "."], things, often=20, extra_texts=baby_ai.possible_mistakes())
    seat = Seat(0, baby_ai)
    seat.begin(episodes[0].game, Play("babyai", LIMIT))
    for action in episodes[0].actions[:6]:
        seat.take(action)
    messages, ids = keep_last(to_messages(episodes[0])[: 2 + 2 * 6], 4), []
    for message in messages:
        end = {"system": "", "user": ACT, "assistant": END}[message["role"]]
        ids += tokenizer(message["content"] + end)["input_ids"]
    assert tokenizer(seat.text(4))["input_ids"] == ids


def test_mistakes_are_said(baby_ai):
    baby_ai.reset(games_of("babyai", "dev", 1)[0])
    step = baby_ai.step("jump")
    assert step.invalid and baby_ai.last_mistake() in baby_ai.possible_mistakes()
    step = baby_ai.step("drop")
    assert not step.invalid and step.observation.startswith("That did not change anything. You face")


def test_pictures_go_with_the_observations(baby_ai, tmp_path):
    game = games_of("babyai", "dev", 1, levels=("BossLevel",), pictures=True)[0]
    episode = expert_episode(baby_ai, game, LIMIT).first(5)
    row = json.loads(write_episodes(tmp_path, "seen", [episode]).read_text("utf-8"))[0]
    seen = [message for message in row["messages"] if message["role"] == "user"]
    assert len(row["images"]) == len(seen) == 5 and all(message["content"].startswith("<image>") for message in seen)
    assert json.loads((tmp_path / "dataset_info.json").read_text("utf-8"))["seen"]["columns"]["images"] == "images"
    assert episode.picture.size == (112, 112)


def test_what_is_not_told_is_seen_in_pictures_alone(baby_ai):
    game = games_of("babyai", "dev", 1, levels=("KeyCorridorS3R1",), pictures=True, words=False)[0]
    episode = expert_episode(baby_ai, game, LIMIT)
    texts = {episode.observation, *(turn.step.observation for turn in episode.turns)}
    assert (
        "" in texts and any(text.startswith("You open") for text in texts) and not any("You see" in t for t in texts)
    )
