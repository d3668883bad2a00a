"""The experiment from vocabulary to tables, with a model that learns for three steps."""

import csv
import json
import re

import pytest
from experiments.conversations import read_samples
from experiments.encoding import encode
from experiments.forms import all_forms
from experiments.plan import Plan
from experiments.playing import read_games
from experiments.report import write_report
from experiments.settings import FORMS, Phase, Settings, Training, settings_from
from experiments.stages import run_stage
from experiments.systems import SYSTEMS, system_named
from experiments.vocabulary import FEEDBACK
from transformers import AutoTokenizer

from hsa_factory.semantics import SemanticType


TINY = Settings(
    name="tiny",
    seeds=(0,),
    systems=("dense", "hsa_002_64", "sliding", "random_types", "keep_last", "dense_hsa_late"),
    gold_games=40,
    survey_games=150,
    dev_games=0,
    curve_games=4,
    curve_systems=("hsa_002_64", "random_types", "keep_last"),
    test_games=6,
    step_limit=30,
    training=Training(phases=(Phase(2, 5e-3), Phase(1, 3e-3)), saves=1),
    own_games=6,
    bases=("hsa_002_64",),
    further=Training(phases=(Phase(1, 1e-3),), saves=1),
    preference=Training(phases=(Phase(1, 5e-5),), saves=1),
)
FURTHER = [f"{kind}/hsa_002_64/0" for kind in ("own", "own_data", "further_recovery", "told_recovery", "further_dpo")]
TRIED = ("hsa_002_64", "random_types", "keep_last")


@pytest.mark.parametrize("settings", all_forms().values(), ids=all_forms())
def test_settings_survive_json(settings):
    assert settings_from(json.loads(json.dumps(settings.to_dict()))) == settings


def test_plans_begin_with_what_is_needed_and_name_no_stage_twice():
    for settings in all_forms().values():
        known = set()
        for stage in Plan(settings).stages:
            assert {need.name for need in stage.needs} <= known and stage.name not in known
            known.add(stage.name)
    names = [stage.name for stage in Plan(FORMS["full"]).stages]
    assert names.index("play/test/recipe_noise/0") < names.index("init/1"), "a seed is done before the next begins"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cooking):
    pytest.importorskip("llamafactory")
    out, plan = tmp_path_factory.mktemp("evidence"), Plan(TINY)
    for stage in plan.stages:
        if stage.name.split("/")[0] in ("vocabulary", "gold", "gold_dev", "shown", "init") or any(
            stage.name == f"{kind}/{name}/0" for name in TRIED for kind in ("train", "verbs", "curve", "play/test")
        ):
            run_stage(stage, out)
        elif stage.name in FURTHER:
            run_stage(stage, out)
    return plan, out


def test_all_that_is_read_is_trained_and_played(finished):
    plan, out = finished
    for name in TRIED:
        made = plan.named(f"train/{name}/0").result(out)
        assert made["tokens"] > 1000 and made["cpu_seconds"] > 0 and len(made["checkpoints"]) == 2
        games = read_games(plan.named(f"play/test/{name}/0").folder(out))
        assert len(games) == 6 and all(1 <= len(game.actions) <= 30 for game in games)
        assert len(plan.named(f"curve/{name}/0").result(out)["points"]) == 2
        assert sum(cases for _, cases in plan.named(f"verbs/{name}/0").result(out)["verbs"].values()) > 500


class Killed(BaseException):
    """The end of a process in the midst of a checkpoint."""


def test_a_killed_training_goes_on_with_equal_numbers(finished, tmp_path, monkeypatch):
    from experiments.imitation import Run, train
    from transformers import Trainer

    plan, out = finished
    training = Training(phases=(Phase(1, 5e-3), Phase(4, 3e-3)), rows=2, row_tokens=300, saves=2)
    start, data = plan.named("init/0").folder(out) / "model", plan.gold.folder(out)
    run = Run(start, data, "gold", training, 0, plan.hsa_block(system_named("hsa_002_64")))
    expected = train(tmp_path / "in one go", run)

    whole_states, save_state = [], Trainer._save_rng_state

    def killed_in_the_third_checkpoint(trainer, folder):
        save_state(trainer, folder)
        whole_states.append(folder)
        if len(whole_states) == 3:  # steps 1 of the first phase, 2 and 4 of the second: its state is not written yet
            raise Killed

    monkeypatch.setattr(Trainer, "_save_rng_state", killed_in_the_third_checkpoint)
    with pytest.raises(Killed):
        train(tmp_path / "killed", run)
    found = train(tmp_path / "killed", run)
    assert len(whole_states) == 4, "it went on behind step 2"
    assert len(found["parts"]) == 2 and len(expected["parts"]) == 1
    assert found["cpu_seconds"] == pytest.approx(sum(part["cpu_seconds"] for part in found["parts"]), abs=0.1)
    for key in ("tokens", "epochs", "loss", "shares", "checkpoints"):
        assert found[key] == expected[key], key
    weights = sorted(path.relative_to(tmp_path / "killed") for path in (tmp_path / "killed").rglob("*.safetensors"))
    assert len(weights) == 2 + 3
    for path in weights:
        assert (tmp_path / "killed" / path).read_bytes() == (tmp_path / "in one go" / path).read_bytes(), path
    assert not list(tmp_path.rglob("optimizer.pt")), "it is of no use when the phase is done"


def test_random_types_have_the_shares_of_rules(finished):
    plan, out = finished
    drawn = plan.named("train/random_types/0").result(out)["shares"]
    ruled = plan.named("train/hsa_002_64/0").result(out)["shares"]
    for kind, share in ruled.items():
        assert abs(drawn[kind] - share) < 0.15, kind


def test_training_files_say_what_the_system_is(finished):
    plan, out = finished
    text = (plan.named("train/hsa_002_64/0").folder(out) / "train_1.yaml").read_text()
    for line in (
        "noise_decay: 0.02",
        "noise_window: 64",
        "neat_packing: true",
        "max_steps: 1",
        "user: 0.1",
        "seed: 0",
    ):
        assert line in text


def test_tokens_and_types_of_play_are_those_of_training(finished):
    """A gold game that is forced upon a player: ids, types and turns as `encode` gives them, which training's are."""
    from experiments.playing import load_player
    from experiments.vocabulary import ACT, END

    from hsa_factory.models import AgentBatch

    plan, out = finished
    system = system_named("hsa_002_64")
    config = plan.config(system)
    model, tokenizer = load_player(plan.named("train/hsa_002_64/0").folder(out) / "model", config)
    for messages in read_samples(plan.gold.folder(out), "gold")[:3]:
        agents = AgentBatch(model, tokenizer, rows=1, max_new_tokens=12, stop=END)
        agents.append({0: messages[0]["content"]}, role="system")
        for observation, action in zip(messages[1::2], messages[2::2]):
            agents.append({0: observation["content"] + ACT})
            agents.act({0: [action["content"]]})
        history, encoded = agents.history(0), encode(tokenizer, messages, config)
        assert history == {"input_ids": encoded.ids, "semantic_ids": encoded.types, "turn_ids": encoded.turns}


def test_tables_are_written_of_what_is_finished(finished):
    plan, out = finished
    names = {path.name for path in write_report(plan, out)}
    assert {"success.csv", "cost.csv", "curve.csv", "verbs.csv", "success.png", "curve.png", "about.json"} <= names
    with (out / "results" / "success.csv").open() as file:
        rows = list(csv.DictReader(file))
    titles = {system.title for system in SYSTEMS if system.name in TRIED}
    assert {row["system"] for row in rows} == titles and all(row["games"] == "6" for row in rows)


def test_further_training_stands_beside_its_control_and_the_page_shows_it(finished, monkeypatch):
    from experiments import further_tables
    from experiments.page import page_with_results

    plan, out = finished
    monkeypatch.setattr(further_tables, "CONTROL", "recovery")
    rows = {row[1]: row for row in further_tables.further_table(plan, out).rows}
    row = dict(zip(further_tables.COLUMNS, rows["reflections + gold, train: recovery"], strict=True))
    assert row["games"] == 6 and row["play"] == "told of mistakes" and row["p (sign test)"] == "", "it is the control"
    write_report(plan, out)
    page = page_with_results("a <!-- success:start -->old<!-- success:end --> b", out / "results")
    assert "old" not in page and "| HSA 0.02/64 | 6 |" in page and page.endswith("<!-- success:end --> b")
    assert page_with_results(page, out / "results / nothing").count("Not finished yet") == 1


def test_the_page_holds_the_committed_results():
    from experiments.page import PAGE, page_with_results

    text = PAGE.read_text("utf-8")
    assert page_with_results(text) == text, "write it anew: python -m experiments.page"


def test_pairs_train_on_as_many_tokens_as_packed_rows(finished):
    from experiments.further import matched, pair_tokens

    plan, out = finished
    data = plan.named("own_data/hsa_002_64/0").folder(out)
    mean = pair_tokens(data, plan.named("vocabulary").folder(out) / "tokenizer")
    pairs = Training(phases=(Phase(0, 5e-5), Phase(3, 1e-5)), rows=8)
    packed = Training(phases=(Phase(400, 1e-3), Phase(1, 1e-3)), rows=2, row_tokens=1300)
    first, second = matched(pairs, packed, mean).phases
    assert 0 <= first.steps * 8 * mean - 400 * 2 * 1300 < 8 * mean and second.steps == 3


def test_own_play_becomes_reflections_and_pairs_that_are_trained(finished):
    plan, out = finished
    data = plan.named("own_data/hsa_002_64/0")
    made = data.result(out)
    assert made["games"] == 6 and made["reflections"] > 0
    for messages in read_samples(data.folder(out), "reflections"):
        told = [n for n, message in enumerate(messages) if message["content"].startswith(FEEDBACK)]
        assert len(told) == 1 and messages[told[0]]["role"] == "user" and told[0] > 1
        assert messages[-1]["content"] == "eat meal", "the expert has won"
    for name in ("recovery", "dpo"):
        assert plan.named(f"further_{name}/hsa_002_64/0").result(out)["tokens"] > 100
    games = read_games(plan.named("told_recovery/hsa_002_64/0").folder(out))
    assert any(game.feedback for game in games) and all(len(game.feedback) <= 3 for game in games)


def test_a_fatal_mistake_is_undone_only_where_feedback_is_given(cooking):
    from experiments.environments import games_of
    from experiments.playing import Play, Seat
    from experiments.reflection import find_mistake, reflect

    for game in games_of("cooking", "train", 30, rooms=5, doors=False):
        seats = [Seat(0, cooking), Seat(1, cooking)]
        for seat, feedback in zip(seats, (0, 3)):
            seat.begin(game, Play("cooking", 50, feedback=feedback))
            while (seat.step is None or not seat.step.done) and len(seat.mistakes) < 1:
                action = cooking.expert_action()
                held = {thing for thing in cooking._expert.recipe or () if thing in cooking._expert._carried}
                seat.take(f"eat {min(held)}" if held else action)
            if feedback:
                assert not seat.step.done and seat.observations[-1].startswith(FEEDBACK)
                while not seat.step.done:
                    seat.take(cooking.expert_action())
                assert seat.step.won and seat.right_next, game
            else:
                assert seat.step.lost, game
        mistake = find_mistake(cooking, game, seats[0].actions, 50)
        assert mistake.is_fatal and reflect(cooking, game, mistake, 50)[-1]["content"] == "eat meal"
        break


def test_moves_back_are_those_into_rooms_that_were_left_long_ago():
    from experiments.encoding import Encoded
    from experiments.measures import returning_moves

    rooms = [
        "You are in the hall.",
        "You are in the pantry.",
        "You take the knife.",
        "You are in the hall.",
        "You are in the pantry.",
    ]
    actions = ["move east", "take knife", "move west", "move east", "look around"]
    messages = [{"role": "system", "content": "task"}]
    for room, action in zip(rooms, actions):
        messages += [{"role": "user", "content": room}, {"role": "assistant", "content": action}]
    far = Encoded([], [], [], [(10, 12), (50, 52), (90, 92), (100, 102), (110, 112)])
    near = Encoded([], [], [], [(10, 12), (50, 52), (60, 62), (70, 72), (80, 82)])
    assert returning_moves(messages, far) == {2} and returning_moves(messages, near) == set()


def test_what_is_played_and_measured_is_what_llamafactory_trains_on(finished, tmp_path):
    """`inspect` shows what training reads; `encode` is compared with play above."""
    from hsa_factory.cli import main

    plan, out = finished
    train, shown = plan.named("train/hsa_002_64/0").folder(out), tmp_path / "shown.json"
    options = ["neat_packing=false", f"output_dir={tmp_path / 'none'}", "--format", "json", "--samples", "0-2"]
    assert main(["inspect", str(train / "train_0.yaml"), *options, "--output", str(shown)]) == 0
    tokenizer = AutoTokenizer.from_pretrained(str(train / "model"))
    samples = [json.loads(line) for line in shown.read_text("utf-8").splitlines()]
    for sample, messages in zip(samples, read_samples(plan.gold.folder(out), "gold")[:3], strict=True):
        encoded = encode(tokenizer, messages, plan.config(system_named("hsa_002_64")))
        kinds = [SemanticType.parse(kind) for kind in sample["semantic_ids"]]
        assert sample["input_ids"] == encoded.ids and kinds == encoded.types


@pytest.mark.parametrize("name", ["long", "babyai"])
def test_a_model_has_positions_for_whoever_walks_in_circles(name, request):
    """A history that is longer than the model's positions would end the play of all games."""
    from experiments.environments import games_of, open_environments

    settings = all_forms()[name]
    if settings.environment == "cooking":
        environment = request.getfixturevalue("cooking")
    else:
        pytest.importorskip("minigrid")
        (environment,) = open_environments(settings.environment)
    longest = 0
    for game in games_of(settings.environment, "dev", 4, **settings.options):
        texts = [environment.reset(game, settings.step_limit)]
        for action in (
            ("look around", "turn left", "turn left") if settings.environment == "babyai" else ("look around",)
        ):
            texts.append(environment.step(action).observation)
        longest = max(longest, *(len(re.findall(r"[\w'-]+|[^\w\s]", text)) for text in texts))
    assert 8192 < settings.step_limit * (longest + 12) < settings.positions, "counted in words: 8192 would be too few"
