"""The feedback marker from the data file to the labels, the tokenizer and the embeddings."""

import json

import pytest
import torch

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.llamafactory import integrate


M = "<|feedback|>"
HSA = HSAConfig()
G, L, N = 0, 1, 2


@pytest.fixture(scope="module")
def model_dir(lf):
    return lf.model_dir("qwen3", extra=(M,))


def dialogue(lf, *contents, system=None):
    messages = [lf.say(("user", "assistant")[k % 2], text, k % 3) for k, text in enumerate(contents)]
    return [lf.say("system", system), *messages] if system else messages


def trained(lf, prepared, feedback, row=0):
    """Return the text that the loss counts, as the collator leaves it."""
    features = prepared.rows()[row]
    batch = lf.collator(prepared, HSA, feedback)([dict(features)])
    labels = batch["labels"][0].tolist()
    assert all(label in (-100, token) for label, token in zip(labels, batch["input_ids"][0].tolist()))
    return prepared.text([label for label in labels if label != -100])


def run(lf, tmp_path, model_dir, samples, feedback, **options):
    """Prepare data; the template without thinking keeps the expected texts short."""
    data = lf.write_data(tmp_path, data=samples)
    return lf.prepare(lf.args(data, "data", model_dir, **{"template": "qwen3_nothink", **options}), HSA, feedback)


END = "<|im_end|>\n"


@pytest.mark.parametrize(
    ("contents", "occurrence", "expected"),
    [
        (["<m0>", "<m1>", "<m2>" + M + "<m3>", "<m4>"], "first", "<m4>" + END),  # in a user message
        (["<m0>", "<m1>" + M + "<m2>", "<m3>", "<m4>"], "first", "<m2>" + END + "<m4>" + END),  # assistant
        (["<m0>", "<m1>" + M, "<m3>", "<m4>"], "first", END + "<m4>" + END),  # last of its message
        (["<m0>", "<m1>" + M + "<m2>" + M + "<m3>"], "first", "<m2>" + M + "<m3>" + END),
        (["<m0>", "<m1>" + M + "<m2>" + M + "<m3>"], "last", "<m3>" + END),
        (["<m0>" + M, "<m1>", "<m2>" + M, "<m3>"], "first", "<m1>" + END + "<m3>" + END),
        (["<m0>" + M, "<m1>", "<m2>" + M, "<m3>"], "last", "<m3>" + END),
        (["<m0>", "<m1>op" + M + "en<m2>"], "first", "en<m2>" + END),  # in the middle of a word
        (["<m0>", M + M + "<m1>"], "first", M + "<m1>" + END),
        (["<m0>", "<m1>", "<m2>", "<m3>"], "first", "<m1>" + END + "<m3>" + END),  # none
    ],
)
def test_only_what_stands_after_the_marker_is_trained(lf, model_dir, tmp_path, contents, occurrence, expected):
    feedback = FeedbackConfig(occurrence=occurrence)
    prepared = run(lf, tmp_path, model_dir, [dialogue(lf, *contents)], feedback)
    assert trained(lf, prepared, feedback) == expected
    assert prepared.counts["with_marker"] == int(M in "".join(contents))
    assert prepared.counts["trained_tokens"] == len(prepared.tokenizer.encode(expected))


def test_a_marker_in_the_system_prompt(lf, model_dir, tmp_path):
    feedback = FeedbackConfig()
    prepared = run(lf, tmp_path, model_dir, [dialogue(lf, "<m0>", "<m1>", system="<m9>" + M)], feedback)
    assert trained(lf, prepared, feedback) == "<m1>" + END
    assert prepared.counts["with_marker"] == 1


def test_a_marker_at_the_very_end_leaves_the_end_of_turn(lf, model_dir, tmp_path):
    """And where the template's end of turn is not there either, the sample is dropped."""
    feedback = FeedbackConfig()
    samples = [dialogue(lf, "<m0>", "<m1>" * 40 + M), dialogue(lf, "<m2>", "<m3>")]
    prepared = run(lf, tmp_path, model_dir, samples, feedback)
    assert trained(lf, prepared, feedback) == END

    whole = len(prepared.rows()[0]["input_ids"])
    ends = len(prepared.tokenizer.encode(END))
    prepared = run(lf, tmp_path, model_dir, samples, feedback, cutoff_len=whole - ends)
    assert prepared.counts["dropped_samples"] == {"nothing left to train": [0]}


@pytest.mark.parametrize(
    ("missing", "kept", "dropped"), [("train", 2, {}), ("drop", 1, {"no feedback marker": 1}), ("error", None, None)]
)
def test_samples_without_a_marker(lf, model_dir, tmp_path, missing, kept, dropped):
    samples = [dialogue(lf, "<m0>", M + "<m1>"), dialogue(lf, "<m2>", "<m3>")]
    feedback = FeedbackConfig(missing=missing)
    if missing == "error":
        with pytest.raises(
            ValueError, match=r"dataset 'data', sample 1: it has no <\|feedback\|>.*missing is 'error'"
        ):
            run(lf, tmp_path, model_dir, samples, feedback)
        return
    prepared = run(lf, tmp_path, model_dir, samples, feedback)
    assert (prepared.counts["kept"], prepared.counts["dropped"]) == (kept, dropped)
    assert len(prepared.rows()) == kept


def test_samples_with_nothing_left(lf, model_dir, tmp_path):
    samples = [dialogue(lf, "<m0>", "<m1>", "<m2>", M + "<m3>"), dialogue(lf, "<m4>", "<m5>")]
    options = {"cutoff_len": 22}
    prepared = run(lf, tmp_path, model_dir, samples, FeedbackConfig(empty="drop"), **options)
    assert prepared.counts["dropped"] == {"nothing left to train": 1}
    with pytest.raises(ValueError, match="dataset 'data', sample 0: nothing is left to train.*empty is 'error'"):
        run(lf, tmp_path, model_dir, samples, FeedbackConfig(empty="error"), **options)


def test_a_marker_that_is_cut_away_never_trains_the_flawed_actions(lf, model_dir, tmp_path):
    """At every cut: either the reflection is there and trained alone, or the sample is dropped and counted."""
    feedback = FeedbackConfig()
    flawed = ["<m0>" * 4, "<m1>" * 4, "<m2>", "<m3>" * 4]
    sample = dialogue(lf, *flawed, "<m4>" * 3, M + "<m5>" * 8)
    outcomes = set()
    whole = run(lf, tmp_path, model_dir, [sample], feedback).rows()[0]["input_ids"]
    for cutoff_len in range(8, len(whole) + 2, 3):
        data = lf.write_data(tmp_path, data=[sample, dialogue(lf, "<m9>", "<m10>")])
        args = lf.args(data, "data", model_dir, template="qwen3_nothink", cutoff_len=cutoff_len)
        prepared = lf.prepare(args, HSA, feedback)
        marks = lf.mark_ids(prepared.tokenizer)
        rows = [row for row in prepared.rows() if marks.keys() & set(row["input_ids"]) and 0 in kept_marks(row, marks)]
        dropped = prepared.counts["dropped_samples"].get("nothing left to train", [])
        assert (0 in dropped) == (not rows)
        outcomes.add(bool(rows))
        for row in rows:
            labels = lf.collator(prepared, HSA, feedback)([dict(row)])["labels"][0].tolist()
            assert {marks[label] for label in labels if label in marks} <= {5}
    assert outcomes == {True, False}


def kept_marks(row, marks):
    return {marks[token] for token in row["input_ids"] if token in marks}


def test_the_last_marker_counts_even_where_the_cut_removes_it(lf, model_dir, tmp_path):
    """Decided on the whole sample: an earlier marker that remains is not the one that counts."""
    sample = dialogue(lf, "<m0>", M + "<m1>" * 3, "<m2>", "<m3>", "<m4>", M + "<m5>")
    spare = dialogue(lf, M + "<m9>", "<m10>")
    first = run(lf, tmp_path, model_dir, [sample, spare], FeedbackConfig(), cutoff_len=30)
    assert "<m5>" not in first.text(first.rows()[0]["input_ids"])
    assert "<m1><m1><m1>" in trained(lf, first, FeedbackConfig())

    last = run(lf, tmp_path, model_dir, [sample, spare], FeedbackConfig(occurrence="last"), cutoff_len=30)
    assert last.counts["dropped_samples"] == {"nothing left to train": [0]}


def test_mask_history(lf, model_dir, tmp_path):
    feedback = FeedbackConfig()
    sample = dialogue(lf, "<m0>", M + "<m1>", "<m2>", "<m3>")
    prepared = run(lf, tmp_path, model_dir, [sample], feedback, mask_history=True)
    assert trained(lf, prepared, feedback) == "<m3>" + END

    # The marker's turn is cut away from the front; what remains stands after it, and is trained.
    prepared = run(lf, tmp_path, model_dir, [sample], feedback, mask_history=True, cutoff_len=14)
    row = prepared.rows()[0]
    assert prepared.tokenizer.convert_tokens_to_ids(M) not in row["input_ids"]
    assert trained(lf, prepared, feedback) == "<m3>" + END

    # A marker in the last turn masks what stands before it there, though the row starts with another turn.
    sample = dialogue(lf, "<m0>", "<m1>", "<m2>", "<m3>" + M + "<m4>")
    prepared = run(lf, tmp_path, model_dir, [sample], feedback, mask_history=True)
    assert trained(lf, prepared, feedback) == "<m4>" + END


def test_train_on_prompt(lf, model_dir, tmp_path):
    feedback = FeedbackConfig()
    sample = dialogue(lf, "<m0>", "<m1>", "<m2>" + M + "<m3>", "<m4>")
    prepared = run(lf, tmp_path, model_dir, [sample], feedback, train_on_prompt=True)
    assert trained(lf, prepared, feedback) == "<m3><|im_end|>\n<|im_start|>assistant\n<m4>" + END


FAILURES = ["<m0>", "<m1>", "<m2>" + M, "<m3>", "<m4>", "<m5>", M + "<m6>", "<m7>"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"occurrence": "every"}, ["<m3>", "<m7>"]),
        ({"train": "recovery"}, ["<m3>", "<m7>"]),
        ({"scope": "user"}, ["<m3>", "<m5>", "<m7>"]),
        ({"scope": "assistant"}, ["<m1>", "<m3>", "<m5>", "<m7>"]),
        ({"scope": "user", "occurrence": "last"}, ["<m7>"]),
    ],
)
def test_rules_beyond_the_first_marker(lf, model_dir, tmp_path, options, expected):
    feedback = FeedbackConfig(**options)
    prepared = run(lf, tmp_path, model_dir, [dialogue(lf, *FAILURES)], feedback)
    assert trained(lf, prepared, feedback) == "".join(f"{text}{END}" for text in expected)
    assert prepared.counts["with_marker"] == int(options.get("scope") != "assistant")


def test_recovery_trains_what_came_before_the_first_failure(lf, model_dir, tmp_path):
    feedback = FeedbackConfig(train="recovery")
    sample = dialogue(lf, "<m0>", "<m1>", "<m2>", "<m3>", M + "<m4>", "<m5>")
    prepared = run(lf, tmp_path, model_dir, [sample], feedback)
    assert trained(lf, prepared, feedback) == f"<m1>{END}<m5>{END}"


@pytest.mark.parametrize(("scope", "expected"), [("system", "<m1>"), ("user", ""), (None, "<m1>")])
def test_scope_tells_the_system_prompt_from_the_user(lf, model_dir, tmp_path, scope, expected):
    feedback = FeedbackConfig(scope=scope)
    sample = dialogue(lf, "<m0>", "<m1>", "<m2>" + M, "<m3>", system="<m9>" + M)
    prepared = run(lf, tmp_path, model_dir, [sample], feedback)
    assert trained(lf, prepared, feedback) == (expected and expected + END) + "<m3>" + END


def test_a_failed_turn_is_masked_though_the_marker_is_cut_away(lf, model_dir, tmp_path):
    """At every cut: never a label of a failed reply, whatever is left of what answered it."""
    feedback = FeedbackConfig(train="recovery")
    sample = dialogue(lf, "<m0>", "<m1>" * 3, "<m2>" * 3, "<m3>" * 6, "<m4>" * 9 + M, "<m5>" * 3)
    whole = run(lf, tmp_path, model_dir, [sample], feedback).rows()[0]["input_ids"]
    seen = set()
    for cutoff_len in range(12, len(whole) + 1, 4):
        prepared = run(lf, tmp_path, model_dir, [sample], feedback, cutoff_len=cutoff_len)
        text = trained(lf, prepared, feedback)
        assert "<m3>" not in text and "<m1>" in text
        seen.add(M in prepared.text(prepared.rows()[0]["input_ids"]))
    assert seen == {True, False}


def test_packed_neighbours_keep_their_own_rules(lf, model_dir, tmp_path):
    feedback = FeedbackConfig(train="recovery")
    samples = [dialogue(lf, "<m10>", "<m11>"), dialogue(lf, *FAILURES), dialogue(lf, M + "<m12>", "<m13>")]
    prepared = run(lf, tmp_path, model_dir, samples, feedback, packing=True, neat_packing=True, cutoff_len=256)
    assert len(prepared.rows()) == 1
    text = trained(lf, prepared, feedback)
    assert sorted(text.split(END)) == ["", "<m11>", "<m13>", "<m3>", "<m7>"]


# -- weights ---------------------------------------------------------------------------------------------------


def weigh(messages, weights):
    """Give the messages these weights; `...` leaves the key out."""
    return [
        message if weight is ... else {**message, "weight": weight}
        for message, weight in zip(messages, weights, strict=True)
    ]


@pytest.mark.parametrize("feedback", [None, FeedbackConfig(), FeedbackConfig(train="recovery")])
def test_weight_0_masks_a_turn(lf, model_dir, tmp_path, feedback):
    """With and without feedback; where only some messages have one, JSON gives None to the others."""
    contents = ["<m0>" + (M if feedback else ""), "<m1>", "<m2>", "<m3>", "<m4>", "<m5>", "<m6>", "<m7>"]
    samples = [
        weigh(dialogue(lf, *contents), [..., 0, 0, 1, None, ..., 1.0, 0.0]),
        dialogue(lf, M + "<m8>", "<m9>"),
    ]
    prepared = run(lf, tmp_path, model_dir, samples, feedback)
    assert trained(lf, prepared, feedback) == f"<m3>{END}<m5>{END}"
    assert trained(lf, prepared, feedback, row=1) == "<m9>" + END
    data = lf.write_data(tmp_path, data=samples)
    plain = lf.prepare(lf.args(data, "data", model_dir, template="qwen3_nothink"))
    assert [row["input_ids"] for row in plain.rows()] == [row["input_ids"] for row in prepared.rows()]


def test_weights_and_prompts_that_are_trained(lf, model_dir, tmp_path):
    sample = weigh(dialogue(lf, "<m0>", "<m1>", "<m2>", "<m3>"), [1, 1, 0, 1])
    prepared = run(lf, tmp_path, model_dir, [sample], None, train_on_prompt=True)
    text = trained(lf, prepared, None)
    assert "<m0>" in text and "<m1>" in text and "<m3>" in text and "<m2>" not in text
    sample = [{**lf.say("system", "<m9>"), "weight": 0}, *dialogue(lf, "<m0>", "<m1>")]
    assert "<m9>" not in trained(lf, run(lf, tmp_path, model_dir, [sample], None), None)
    with pytest.raises(ValueError, match="dataset 'data', sample 0, turn 0: .*weight 0 cannot be honoured"):
        run(lf, tmp_path, model_dir, [sample], None, train_on_prompt=True)


def test_a_sample_whose_weights_leave_nothing(lf, model_dir, tmp_path):
    samples = [weigh(dialogue(lf, "<m0>", "<m1>"), [1, 0]), dialogue(lf, "<m2>", "<m3>")]
    prepared = run(lf, tmp_path, model_dir, samples, None)
    assert prepared.counts["dropped_samples"] == {"nothing left to train": [0]}


@pytest.mark.parametrize("weight", [-1, "0", True])
def test_other_weights_are_refused(lf, model_dir, tmp_path, weight):
    samples = [dialogue(lf, "<m0>", "<m1>"), weigh(dialogue(lf, "<m2>", "<m3>"), [..., weight])]
    with pytest.raises(ValueError, match=rf"dataset 'data', sample 1, turn 1: weight {weight!r} is not allowed: 0 "):
        run(lf, tmp_path, model_dir, samples, None)


def test_real_trajectories(lf, tmp_path):
    """Every reply that the simulator answered with feedback is masked, and no other."""
    path = lf.SHARED / "data" / "embodied" / "embodied_text.json"
    if not path.is_file():
        pytest.skip("../shared is absent")
    samples = [sample["messages"] for sample in json.loads(path.read_text("utf-8"))]
    feedback = FeedbackConfig(train="recovery")
    model_dir = lf.model_dir("qwen3", extra=(M,))
    data = lf.write_data(tmp_path, data=samples)
    prepared = lf.prepare(lf.args(data, "data", model_dir, template="qwen3_nothink", cutoff_len=65536), HSA, feedback)
    for number, messages in enumerate(samples):
        following = [*messages[1:], {"content": ""}]
        expected = [
            message["content"]
            for message, after in zip(messages, following)
            if message["role"] == "assistant" and M not in after["content"]
        ]
        assert 0 < len(expected) < sum(message["role"] == "assistant" for message in messages)
        assert trained(lf, prepared, feedback, row=number) == "".join(f"{text}{END}" for text in expected)


def test_another_token(lf, model_dir, tmp_path):
    feedback = FeedbackConfig(token="<m7>")
    prepared = run(lf, tmp_path, model_dir, [dialogue(lf, "<m0>", "<m1>" + M + "<m7><m2>")], feedback)
    assert trained(lf, prepared, feedback) == "<m2>" + END


def test_feedback_without_hsa(lf, model_dir, tmp_path):
    feedback = FeedbackConfig()
    data = lf.write_data(tmp_path, data=[dialogue(lf, "<m0>", "<m1>" + M + "<m2>")])
    args = lf.args(data, "data", model_dir, template="qwen3_nothink")
    prepared = lf.prepare(args, None, feedback)
    batch = lf.collator(prepared, None, feedback)([dict(prepared.rows()[0])])
    assert prepared.text([label for label in batch["labels"][0].tolist() if label != -100]) == "<m2>" + END
    assert "semantic_ids" not in batch and "loss_mask" not in batch
    plain = lf.prepare(args)
    expected = lf.collator(plain)([dict(plain.rows()[0])])
    assert set(batch) == set(expected)
    assert all(torch.equal(batch[name], expected[name]) for name in set(batch) - {"labels"})


# -- the run as a whole ----------------------------------------------------------------------------------------


def test_a_data_set_with_nothing_to_train_stops_the_run(lf, model_dir, tmp_path, capsys, monkeypatch):
    import llamafactory.train.sft.workflow as workflow
    from llamafactory.train.tuner import run_exp

    monkeypatch.setattr(workflow, "load_model", lambda *args: pytest.fail("the model was loaded"))
    good, bad = dialogue(lf, "<m0>", M + "<m1>"), dialogue(lf, "<m2>", "<m3>")
    data = lf.write_data(tmp_path, good=[good], bad=[bad, bad])
    args = lf.args(data, "good,bad", model_dir)
    with pytest.raises(ValueError, match=r"Nothing is left to train in 'bad': see the table above .*hsa_report.json"):
        with integrate(HSA, FeedbackConfig(missing="drop")):
            run_exp(args)
    printed = capsys.readouterr().out
    assert "bad: 2 dropped, no feedback marker (samples 0, 1)" in printed
    report = json.loads((tmp_path / "out" / "hsa_report.json").read_text("utf-8"))
    assert report["datasets"]["bad"]["kept"] == 0 and report["datasets"]["good"]["kept"] == 1
    assert report["datasets"]["bad"]["dropped"] == {"no feedback marker": 2}
    assert report["feedback"]["missing"] == "drop"
    assert report["hsa"]["noise_window"] == 50
