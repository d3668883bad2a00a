"""Rows, types and counts of a whole data preparation: truncation, workers, caches, splits, streams, saved data."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments

from hsa_factory import FeedbackConfig, HSAConfig


HSA, FEEDBACK = HSAConfig(), FeedbackConfig()
COLUMNS = ("input_ids", "attention_mask", "labels")
COUNTS = ("samples", "with_marker", "kept", "text_truncated", "tokens", "trained_tokens", "marker_cut")


TEMPLATE_NAMES = ("qwen3", "bailing", "llama2")  # with thinking, with one EOS at the end, with a fused system prompt


@pytest.fixture(scope="module")
def encoders(lf):
    """By name, a template and a tokenizer that knows the marker."""
    tokenizers = {name: lf.new_tokenizer(lf.MARKER) for name in TEMPLATE_NAMES}
    return {
        name: (get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name)), tokenizer)
        for name, tokenizer in tokenizers.items()
    }


@pytest.fixture(scope="module")
def model_dir(lf):
    return lf.model_dir("qwen3", extra=(lf.MARKER,))


def trajectories(lf, number, seed=0, turns=3, marker_every=3):
    """Return conversations of mixed lengths and types; every third holds the marker."""
    rng = random.Random(seed)
    samples = []
    for index in range(number):
        types = [rng.randrange(3) for _ in range(2 * rng.randint(1, turns))]
        messages = lf.dialogue(types, words=rng.randint(1, 6))
        if index % marker_every == 1:
            message = messages[rng.randrange(len(messages))]
            message["content"] += lf.MARKER + message["content"]
        samples.append(messages)
    return samples


def as_samples(conversations):
    """Return conversations as the oracle takes them."""
    return [(messages, "", 0, "") for messages in conversations]


def stripped(rows, names):
    return [{name: row[name] for name in names} for row in rows]


def same_rows(prepared, oracle):
    names = (*COLUMNS, "semantic_ids", "loss_mask")
    assert stripped(prepared.rows(), names) == stripped(oracle.rows, names)


def same_counts(account, oracle):
    assert {name: account[name] for name in COUNTS} == oracle.counts
    total = sum(oracle.counts["tokens"].values())
    assert account["total_tokens"] == total
    assert account["trained_share"] == (round(oracle.counts["trained_tokens"] / total, 6) if total else 0.0)
    reasons = list(oracle.dropped.values())
    assert account["dropped"] == {reason: reasons.count(reason) for reason in set(reasons)}
    assert account["dropped_samples"] == {
        reason: [number for number, why in oracle.dropped.items() if why == reason] for reason in set(reasons)
    }


@st.composite
def runs(draw):
    """Return (system prompt, conversations, options, feedback).

    A message is (type, words before the marker, words after it or None without one, weight).
    """
    words = st.none() | st.none() | st.integers(0, 4)
    message = st.tuples(st.integers(0, 2), st.integers(0, 5), words, st.sampled_from([1, 1, 1, 0]))
    turns = st.lists(st.tuples(message, message), min_size=1, max_size=4)
    conversations = draw(st.lists(turns, min_size=1, max_size=4))
    name = draw(st.sampled_from(TEMPLATE_NAMES))
    modes = [{}, {"mask_history": True}] + ([{"train_on_prompt": True}] if name != "bailing" else [])
    system = draw(st.sampled_from([("", 0), ("<m40>" * 3, 0), ("<m40>", 2)])) if name != "llama2" else ("", 0)
    options = {
        "template": name,
        **draw(st.sampled_from(modes)),
        "cutoff_len": draw(st.integers(2, 150)),
        "packing": draw(st.booleans()),
    }
    if options["packing"]:
        options["neat_packing"] = draw(st.booleans())
    missing = st.sampled_from(["train", "drop"])
    after = st.builds(FeedbackConfig, occurrence=st.sampled_from(["first", "last", "every"]), missing=missing)
    recovery = st.builds(FeedbackConfig, train=st.just("recovery"), missing=missing)
    feedback = draw(st.none() | after | recovery)
    return system, conversations, options, feedback


@given(runs())
@settings(max_examples=250)
def test_types_and_sides_line_up_whatever_is_cut_or_packed(lf, encoders, run):
    system, conversations, options, feedback = run
    template, tokenizer = encoders[options["template"]]
    samples = []
    for turns in conversations:
        messages = []
        for k, (kind, before, after, weight) in enumerate(message for turn in turns for message in turn):
            content = lf.MARKS[2 * k] * before
            if after is not None:
                content += lf.MARKER + lf.MARKS[2 * k + 1] * after
            messages.append({**lf.say(("user", "assistant")[k % 2], content, kind), "weight": weight})
        samples.append((messages, *system, ""))

    data_args = DataArguments(**options)
    oracle = lf.Oracle(template, tokenizer, data_args, samples, feedback)
    rows, account = lf.typed_rows(template, tokenizer, data_args, samples, feedback)
    names = (*COLUMNS, "semantic_ids", "loss_mask", "turn_ids")
    assert stripped(rows, names) == stripped(oracle.rows, names)
    same_counts(account, oracle)
    described = [part for row in rows for part in json.loads(row["hsa_samples"])]
    assert sorted(part["index"] for part in described) == oracle.kept
    for part in described:
        whole = len(oracle.places.samples[part["index"]][1])
        assert part["dataset"] == "data" and 0 <= part["cut"] < whole

    # What a mark alone tells: which message, and on which side of a marker within it.
    marks = lf.mark_ids(tokenizer)
    if len(samples) == 1:
        for row in rows:
            for token, kind in zip(row["input_ids"], row["semantic_ids"]):
                if marks.get(token) == 40:
                    assert kind == system[1]
                elif token in marks:
                    assert kind == samples[0][0][marks[token] // 2]["semantic_type"]


def test_unnatural_cutoffs_drop_samples_and_say_so(lf):
    """Where nothing of a sample is left there is nothing to fail at, with an EOS at the end neither."""
    for name in ("qwen3", "bailing"):
        tokenizer = lf.new_tokenizer(lf.MARKER)
        template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name))
        samples = as_samples([lf.dialogue([0, 1])])
        for cutoff_len in (0, 1):
            rows, account = lf.typed_rows(template, tokenizer, DataArguments(cutoff_len=cutoff_len), samples)
            assert rows == []
            assert account["dropped"] == {"nothing left to train": 1}


@pytest.mark.parametrize("feedback", [None, FEEDBACK])
@pytest.mark.parametrize(
    "options", [{}, {"cutoff_len": 60, "mask_history": True}, {"cutoff_len": 128, "packing": True}]
)
def test_a_whole_preparation(lf, model_dir, tmp_path, options, feedback):
    conversations = trajectories(lf, 24)
    data = lf.write_data(tmp_path, data=conversations)
    args = lf.args(data, "data", model_dir, **options)
    prepared = lf.prepare(args, HSA, feedback)
    oracle = lf.Oracle(prepared.template, prepared.tokenizer, prepared.data_args, as_samples(conversations), feedback)
    same_rows(prepared, oracle)
    same_counts(prepared.counts, oracle)
    assert prepared.counts["messages"] == prepared.counts["typed_messages"] == sum(map(len, conversations))
    assert {row["hsa_dataset"] for row in prepared.rows()} == {"data"}
    assert "hsa_account" not in prepared.module["train_dataset"].column_names

    if not oracle.dropped:  # and plain LLaMA-Factory makes the same, whatever its cache holds now
        plain = lf.prepare(args)
        assert stripped(plain.rows(), COLUMNS) == stripped(prepared.rows(), COLUMNS)
        assert "semantic_ids" not in plain.module["train_dataset"].column_names


def test_the_columns_are_there_whatever_is_on(lf, model_dir, tmp_path):
    data = lf.write_data(tmp_path, data=trajectories(lf, 3))
    for hsa, feedback in ((HSA, None), (None, FEEDBACK)):
        prepared = lf.prepare(lf.args(data, "data", model_dir), hsa, feedback)
        assert {"loss_mask", "semantic_ids"} <= set(prepared.module["train_dataset"].column_names)


def test_two_workers_and_small_batches_give_the_same(lf, model_dir, tmp_path):
    conversations = trajectories(lf, 23, seed=1)
    data = lf.write_data(tmp_path, data=conversations)
    args = lf.args(data, "data", model_dir, cutoff_len=70)
    one = lf.prepare(args, HSA, FEEDBACK)
    for more in ({"preprocessing_num_workers": 2}, {"preprocessing_batch_size": 4}):
        other = lf.prepare({**args, **more}, HSA, FEEDBACK)
        assert other.rows() == one.rows()
        assert other.report == one.report
    oracle = lf.Oracle(one.template, one.tokenizer, one.data_args, as_samples(conversations), FEEDBACK)
    same_counts(one.counts, oracle)


def test_a_cache_hit_gives_the_same_report_and_other_settings_miss_it(lf, model_dir, tmp_path):
    data = lf.write_data(tmp_path, data=trajectories(lf, 12, seed=2))
    cache = tmp_path / "cache"
    args = lf.args(data, "data", model_dir, cutoff_len=70, cache_dir=str(cache))
    files = lambda: sorted(cache.rglob("cache-*.arrow"))  # noqa: E731
    first = lf.prepare(args, HSA, FEEDBACK)
    made = files()
    again = lf.prepare(args, HSA, FEEDBACK)
    assert made and files() == made
    assert again.rows() == first.rows()
    assert again.report == first.report

    untyped = lf.prepare(args, HSAConfig(default_type="NOISE"), FEEDBACK)
    assert files() != made
    last = lf.prepare(args, HSA, FeedbackConfig(occurrence="last", missing="drop"))
    assert last.counts["dropped"]["no feedback marker"] == 8
    assert last.rows() != first.rows()
    assert lf.prepare(args, HSA, None).counts["with_marker"] == 0
    assert lf.prepare(args, HSA, FEEDBACK).report == first.report == untyped.report


def test_the_default_type_is_part_of_what_is_cached(lf, model_dir, tmp_path):
    data = lf.write_data(tmp_path, data=[[lf.say("user", "<m0>"), lf.say("assistant", "<m1>")]])
    args = lf.args(data, "data", model_dir)
    for name, number in (("GLOBAL", 0), ("NOISE", 2), ("KEY_EVENT", 1)):
        (row,) = lf.prepare(args, HSAConfig(default_type=name)).rows()
        assert set(row["semantic_ids"]) == {number}


def test_max_samples(lf, model_dir, tmp_path):
    conversations = trajectories(lf, 9)
    data = lf.write_data(tmp_path, data=conversations)
    prepared = lf.prepare(lf.args(data, "data", model_dir, max_samples=4), HSA, FEEDBACK)
    oracle = lf.Oracle(
        prepared.template, prepared.tokenizer, prepared.data_args, as_samples(conversations[:4]), FEEDBACK
    )
    same_rows(prepared, oracle)
    same_counts(prepared.counts, oracle)


def test_val_size_splits_rows_and_report(lf, model_dir, tmp_path):
    data = lf.write_data(tmp_path, data=trajectories(lf, 20))
    args = lf.args(data, "data", model_dir, val_size=0.3)
    prepared = lf.prepare(args, HSA)
    plain = lf.prepare(args)
    assert prepared.report["datasets"]["data"]["samples"] == 14
    assert prepared.report["eval_datasets"]["data"]["samples"] == 6
    for split in ("train", "eval"):
        assert stripped(prepared.rows(split), COLUMNS) == stripped(plain.rows(split), COLUMNS)
    lengths = sum(len(row["input_ids"]) for row in prepared.rows("eval"))
    assert prepared.report["eval_datasets"]["data"]["total_tokens"] == lengths


def test_evaluation_data_of_its_own(lf, model_dir, tmp_path):
    first, second, third = (trajectories(lf, number, seed=number) for number in (5, 3, 4))
    data = lf.write_data(tmp_path, train=first, near=second, far=third)
    args = lf.args(data, "train", model_dir, eval_dataset="near,far")
    together = lf.prepare(args, HSA, FEEDBACK)
    assert {name: account["samples"] for name, account in together.report["eval_datasets"].items()} == {
        "near": 3,
        "far": 4,
    }
    assert {row["hsa_dataset"] for row in together.rows("eval")} == {"near", "far"}

    apart = lf.prepare({**args, "eval_on_each_dataset": True}, HSA, FEEDBACK)
    assert set(apart.module["eval_dataset"]) == {"near", "far"}
    assert apart.report == together.report
    rows = [row for name in ("near", "far") for row in apart.module["eval_dataset"][name]]
    assert rows == together.rows("eval")
    assert all("semantic_ids" in row and "hsa_account" not in row for row in rows)


def test_evaluation_data_without_anything_to_train_stops_the_run(lf, model_dir, tmp_path):
    data = lf.write_data(tmp_path, train=trajectories(lf, 3), blind=[lf.dialogue([0, 1])])
    args = lf.args(data, "train", model_dir, eval_dataset="blind")
    with pytest.raises(ValueError, match="Nothing is left to train in 'train', 'blind'|in 'blind'"):
        lf.prepare(args, HSA, FeedbackConfig(missing="drop"))


# -- streams ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feedback", [None, FEEDBACK])
def test_a_stream_has_the_same_rows(lf, model_dir, tmp_path, feedback):
    conversations = trajectories(lf, 12)
    data = lf.write_data(tmp_path, data=conversations)
    args = lf.args(data, "data", model_dir, cutoff_len=70)
    whole = lf.prepare(args, HSA, feedback)
    args |= {"streaming": True, "max_steps": 2, "dataloader_num_workers": 1}
    stream = lf.prepare({**args, "buffer_size": 1}, HSA, feedback)
    assert [{k: v for k, v in row.items() if v is not None} for row in stream.rows()] == [
        {k: v for k, v in row.items() if v is not None} for row in whole.rows()
    ]
    note = stream.report.pop("note")
    assert stream.report == whole.report
    assert "first 1,000 rows" in note

    shuffled = lf.prepare({**args, "buffer_size": 16}, HSA, feedback)
    key = lambda row: (row["input_ids"], row["semantic_ids"])  # noqa: E731
    assert sorted(map(key, shuffled.rows())) == sorted(map(key, whole.rows()))
    assert list(map(key, shuffled.rows())) != list(map(key, whole.rows()))


def test_a_stream_with_held_out_samples(lf, model_dir, tmp_path):
    data = lf.write_data(tmp_path, data=trajectories(lf, 12))
    args = lf.args(data, "data", model_dir, streaming=True, dataloader_num_workers=1, buffer_size=1, val_size=3)
    prepared = lf.prepare(args, HSA)
    assert len(prepared.rows("train")) == 9
    assert len(prepared.rows("eval")) == 3
    assert prepared.report["eval_datasets"]["data"]["samples"] == 3


def test_streams_mix(lf, model_dir, tmp_path):
    first, second = trajectories(lf, 5, seed=1), trajectories(lf, 5, seed=2)
    data = lf.write_data(tmp_path, first=first, second=second)
    args = lf.args(data, "first,second", model_dir, streaming=True, dataloader_num_workers=1, buffer_size=1)
    for strategy in ("concat", "interleave_under", "interleave_over"):
        prepared = lf.prepare({**args, "mix_strategy": strategy}, HSA)
        assert {row["hsa_dataset"] for row in prepared.rows()} == {"first", "second"}


# -- what is printed -------------------------------------------------------------------------------------------


def test_the_example_and_the_table_are_printed(lf, model_dir, tmp_path, capsys):
    conversations = [lf.dialogue([0, 1]), [lf.say("user", "<m2>", 1), lf.say("assistant", "<m3>" + lf.MARKER, 2)]]
    data = lf.write_data(tmp_path, data=conversations)
    prepared = lf.prepare(lf.args(data, "data", model_dir), HSA, FEEDBACK)
    printed = capsys.readouterr().out
    assert f"input_ids:\n{prepared.rows()[0]['input_ids']}" in printed
    assert "Training data with HSA / Feedback" in printed
    assert "GLOBAL" in printed and "trained" in printed
    # template's tokens after the marker are trained: the second sample keeps its end-of-turn
    assert prepared.counts["kept"] == 2


def test_an_account_is_never_shown_as_an_example(lf, model_dir, tmp_path, capsys):
    blind = [lf.say("user", "<m0>"), lf.say("assistant", "<m1>")]
    good = [lf.say("user", "<m2>"), lf.say("assistant", lf.MARKER + "<m3>")]
    data = lf.write_data(tmp_path, data=[blind, blind, good])
    args = lf.args(data, "data", model_dir, preprocessing_batch_size=1)
    prepared = lf.prepare(args, HSA, FeedbackConfig(missing="drop"))
    assert len(prepared.rows()) == 1
    assert "input_ids:\n[0]" not in capsys.readouterr().out
    assert prepared.counts["dropped_samples"] == {"no feedback marker": [0, 1]}
