"""What changes between two ways to prepare the same tokens, against what the attention says pair by pair."""

import io
import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from hsa_factory import HSAConfig
from hsa_factory.attention.layer_rules import LayerRules
from hsa_factory.inspection.compare import SampleChange, Side, compare, seen_by, seen_in_name_only
from hsa_factory.inspection.compare_output import ChangeSummary, write_json, write_page, write_text
from hsa_factory.inspection.inspected_sample import InspectedSample, Part, Turn
from hsa_factory.inspection.sample_cost import Tokens


EVIL = "</style><script>window.hacked = 1</script>\x1b[2J"


def make_sample(types, trained, turns, ids=None, numbers=None):
    n = len(types)
    return InspectedSample(
        index=0,
        dataset="d",
        input_ids=ids or list(range(n)),
        semantic_ids=list(types),
        labels=[1 if one else -100 for one in trained],
        tokens=[f"t{k} " for k in range(n)],
        reasons=[None] * n,
        documents=[1] * n,
        parts=[Part("d", 7, 0, n, 0, False)],
        turns=turns,
        turn_ids=numbers,
    )


def random_side(rng, n):
    limits = {}
    for name, values in (("window", [None, 0, 3, 20]), ("turns", [None, None, 0, 2])):
        limits |= {f"{kind}_{name}": rng.choice(values) for kind in ("global", "landmark", "noise")}
    hide = rng.sample(list(itertools.product(range(3), range(3))), rng.choice([0, 0, 3]))
    return HSAConfig(hide=hide, **limits), [rng.randrange(3) for _ in range(n)]


@pytest.mark.parametrize("seed", range(20))
def test_a_change_of_visibility_is_one_of_the_tokens_that_see_it(seed):
    rng, n = random.Random(seed), 40
    numbers = np.sort([rng.randrange(6) for _ in range(n)]).tolist()
    turns = [Turn(0, 0, "user", 0, 10), Turn(0, 1, "assistant", 10, n, number=1)]
    configs, sides, seen = [], [], []
    types = None
    for _ in range(2):
        config, drawn = random_side(rng, n)
        types = drawn if types is None or rng.random() < 0.5 else types
        sample = make_sample(types, [True] * n, turns, numbers=numbers)
        sides.append(Side.of(sample, 0, config))
        plan = Tokens(np.array(types, np.int8), np.array(numbers), np.zeros(n, np.bool_)).plan()
        seen.append((plan.dense_bias(torch.float32, LayerRules.of(config))[0, 0] != float("-inf")).numpy())
        configs.append(config)
    counts = seen_by(*sides)
    both = seen[0] & seen[1]
    assert (counts == np.stack([one.sum(0) for one in (*seen, both)])).all()

    change = compare(Part("d", 7, 0, n, 0, False), *sides)
    differs = (seen[0] != seen[1]).any(axis=0)
    assert change.counts["visibility"] == differs.sum()
    places = {token["place"]: token for message in change.to_dict()["messages"] for token in message["tokens"]}
    assert {place for place, token in places.items() if "visibility" in token["changes"]} == set(
        np.flatnonzero(differs)
    )
    for place, token in places.items():
        assert token["seen_by"] == [int(one[:, place].sum()) for one in seen] and token["token"] == f"t{place} "


def two_sides(**more):
    turns = [Turn(0, None, "system", 0, 2), Turn(0, 0, "user", 2, 6), Turn(0, 1, "assistant", 6, 10)]
    first = make_sample([0, 0, 2, 2, 2, 2, 1, 1, 1, 1], [False] * 6 + [True] * 4, turns)
    second = make_sample([0, 0, 1, 1, 2, 2, 1, 1, 1, 1], [False] * 8 + [True] * 2, turns, **more)
    config = HSAConfig(noise_window=3)
    return compare(Part("d", 7, 0, 10, 0, False), Side.of(first, 0, config), Side.of(second, 0, config))


def test_changes_stand_by_message_and_are_joined_to_runs():
    change = two_sides()
    assert dict(change.counts) == {"type": 2, "visibility": 2, "decay": 2, "label": 2, "weight": 0, "tokens": 4}
    user, reply = change.messages
    assert (user.turn.message, user.changed, reply.turn.message, reply.changed) == (0, 2, 1, 2)
    (run,) = user.runs
    assert run.text == "t2 t3 " and run.describe() == "NOISE → LANDMARK, seen by 4 → 8 tokens, decay 0.5 → 0.001"
    (run,) = reply.runs
    assert run.text == "t6 t7 " and run.describe() == "LANDMARK, trained → not trained"


def test_text_json_and_page_say_the_same(tmp_path):
    change, names = two_sides(), ("a.yaml", f"b {EVIL}")
    lost = SampleChange("d", 8, 3, change.counts, [], "it is dropped")
    texts = {}
    for form, write in (("text", write_text), ("html", write_page)):
        out = io.StringIO()
        summary = ChangeSummary()
        write(out, [change, lost], names, summary)
        texts[form] = out.getvalue()
        assert summary.lines() == [
            "4 of 10 tokens change in 1 sample: NOISE → LANDMARK 2, seen by more tokens 2, fading more slowly 2, no longer trained 2.",
            "d, sample 8: not compared, it is dropped.",
        ]
        assert all(line in texts[form] for line in summary.lines())
        for said in (
            "d, sample 7: 4 of 10 tokens change (type 2, visibility 2, decay 2, label 2, weight 0)",
            "t2 t3 ",
        ):
            assert said in texts[form]
        assert "message 0, user, turn 0: 2 of 4 tokens" in texts[form]
        assert "\x1b" not in texts[form]
    assert "<script" not in texts["html"] and "default-src 'none'" in texts["html"]
    out = io.StringIO()
    write_json(out, [change, lost], ChangeSummary())
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first["changed"] == {"tokens": 4, "type": 2, "visibility": 2, "decay": 2, "label": 2, "weight": 0}
    assert first["messages"][0]["tokens"][0] == {
        "place": 2,
        "token": "t2 ",
        "changes": ["type", "visibility", "decay"],
        "types": ["NOISE", "LANDMARK"],
        "seen_by": [4, 8],
        "in_name_only": [0, 0],
        "decays": [0.5, 0.001],
        "trained": [False, False],
        "weights": [0.0, 0.0],
    }
    assert second == {"dataset": "d", "index": 8, "length": 3, "not_compared": "it is dropped"}


def test_what_is_seen_in_name_only_and_what_weighs_otherwise():
    """A decay that another distance makes matter, another decay, and weights of tokens that are trained on both sides."""
    n, turns = 60, [Turn(0, 0, "user", 0, 30), Turn(0, 1, "assistant", 30, 60)]
    sample = make_sample([2] * n, [False] * 30 + [True] * 30, turns)
    weighed = replace(sample, loss_weights=[1.0] * 30 + [0.5] * 10 + [1.0] * 20)
    rules = [HSAConfig(noise_window=50, noise_decay=decay) for decay in (0.5, 0.0, 1.0)]
    part = Part("d", 7, 0, n, 0, False)

    summary, changes = ChangeSummary(), []
    for first, second in (((sample, rules[0]), (weighed, rules[1])), ((weighed, rules[0]), (sample, rules[2]))):
        changes.append(compare(part, Side.of(first[0], 0, first[1]), Side.of(second[0], 0, second[1])))
        summary.add(changes[-1])
    for config in (rules[0], rules[2]):
        bias = Tokens(np.full(n, 2, np.int8), None, np.zeros(n, np.bool_)).plan()
        bias = bias.dense_bias(torch.float32, LayerRules.of(config))[0, 0]
        expected = ((bias < -20) & (bias > float("-inf"))).sum(0)
        assert seen_in_name_only(Side.of(sample, 0, config)).tolist() == expected.tolist() and expected.any()
    assert not seen_in_name_only(Side.of(sample, 0, rules[1])).any()

    assert dict(changes[0].counts) == {
        "type": 0, "visibility": 0, "decay": n - 1, "label": 0, "weight": 10, "tokens": n - 1,
    }  # fmt: skip
    user, reply = changes[0].messages
    assert [run.describe() for run in user.runs] == ["NOISE, decay 0.5 → 0, in name only by 5 → 0"]
    assert [run.describe() for run in reply.runs] == ["NOISE, decay 0.5 → 0, weight 1 → 0.5", "NOISE, decay 0.5 → 0"]
    (line,) = summary.lines()
    assert "in name only by fewer tokens 19" in line and "in name only by more tokens 39" in line
    assert "fading more slowly 59, fading faster 59, weighing less 10, weighing more 10." in line


def test_other_ids_are_not_compared():
    change = two_sides(ids=[9, *range(1, 10)])
    assert "its token ids differ" in change.obstacle and not change.messages


def test_turn_numbers_must_be_known():
    sample = make_sample([2] * 4, [True] * 4, [])
    with pytest.raises(ValueError, match="no turn numbers"):
        Side.of(sample, 0, HSAConfig(noise_turns=1))
    assert Side.of(sample, 0, None).last.tolist() == [3] * 4
