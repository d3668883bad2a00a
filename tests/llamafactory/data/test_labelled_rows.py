"""Stage `kto`: ids are those of plain LLaMA-Factory, and both halves of a row carry the types and masks of their replies."""

import pytest

from hsa_factory import FeedbackConfig, HSAConfig, LossWeightsConfig


HSA = HSAConfig()
G, L, N = 0, 1, 2
M = "<|feedback|>"
NO_LABEL = "no label (`kto_tag`) that is true or false, or roles in a wrong order"
NOTHING = "nothing left to train"
PLAIN_COLUMNS = ("input_ids", "attention_mask", "labels", "kl_input_ids", "kl_attention_mask", "kl_labels", "kto_tags")


def labelled(lf, number=5, turns=1, words=3):
    """Return samples of GLOBAL users and LANDMARK and NOISE replies in turn; message m of sample k consists of mark 4k + m."""
    samples = []
    for k in range(number):
        kinds = ["GLOBAL", "LANDMARK" if k % 2 else "NOISE"] * turns
        samples.append({"messages": lf.dialogue(kinds, words + k, first_mark=4 * k), "label": k % 2 == 0})
    return samples


def entry(lf, *columns):
    names = {name: name for name in ("messages", *columns)}
    return {"formatting": "sharegpt", "columns": {**names, "kto_tag": "label"}, "tags": lf.TAGS}


def arguments(lf, directory, samples, **more):
    data = lf.write_data(directory, data=(entry(lf, *more.pop("columns", ())), samples))
    return lf.args(data, "data", **{"stage": "kto", "template": "qwen3_nothink", **more})


def marks(lf, prepared, row, prefix=""):
    """Return the messages that a sequence consists of, and the type of each."""
    numbers, found = lf.mark_ids(prepared.tokenizer), {}
    for token, kind in zip(row[prefix + "input_ids"], row[prefix + "semantic_ids"], strict=True):
        if token in numbers:
            found.setdefault(numbers[token], set()).add(kind)
    return {mark: kinds.pop() for mark, kinds in found.items() if len(kinds) == 1}


def trained(prepared, row, prefix=""):
    """Return the text that a sequence trains."""
    facts = zip(row[prefix + "labels"], row[prefix + "loss_mask"], strict=True)
    return prepared.text([label for label, keep in facts if keep and label != -100])


@pytest.mark.parametrize("options", [{}, {"cutoff_len": 30}, {"template": "qwen3"}, {"template": "llama2"}])
def test_ids_are_those_without_hsa_and_both_halves_are_typed(lf, tmp_path, options):
    args = arguments(lf, tmp_path, labelled(lf, turns=2), **options)
    plain, prepared = lf.prepare(args), lf.prepare(args, HSA)
    for row, expected in zip(prepared.rows(), plain.rows(), strict=True):
        assert {name: row[name] for name in PLAIN_COLUMNS} == {name: expected[name] for name in PLAIN_COLUMNS}
    if options:
        return
    for k, row in enumerate(prepared.rows()):
        own, other = (L if k % 2 else N), (k - 1) % 5
        prompt = {4 * k: G, 4 * k + 1: own, 4 * k + 2: G}
        assert marks(lf, prepared, row) == {**prompt, 4 * k + 3: own}
        assert marks(lf, prepared, row, "kl_") == {**prompt, 4 * other + 3: L if other % 2 else N}
    assert prepared.counts["messages"] == prepared.counts["typed_messages"] == 20


@pytest.mark.parametrize("lost", [(4,), (0,), (2,), (1, 2), (0, 4)])
def test_the_kl_half_has_no_reply_that_is_left_out(lf, tmp_path, lost):
    """It would measure nothing. What is kept is as if the others had never been there."""
    samples = labelled(lf)
    for k in lost:
        samples[k]["messages"][1]["loss"] = False
    rest = [sample for k, sample in enumerate(samples) if k not in lost]
    prepared = lf.prepare(arguments(lf, tmp_path / "all", samples), HSA)
    expected = lf.prepare(arguments(lf, tmp_path / "rest", rest), HSA)
    assert [{name: row[name] for name in PLAIN_COLUMNS} for row in prepared.rows()] == [
        {name: row[name] for name in PLAIN_COLUMNS} for row in expected.rows()
    ]
    assert prepared.counts["dropped"] == {NOTHING: len(lost)}
    assert prepared.counts["dropped_samples"] == {NOTHING: list(lost)}
    assert prepared.counts["tokens"] == expected.counts["tokens"]


def test_feedback_masks_a_reply_wherever_it_stands(lf, tmp_path):
    samples = labelled(lf, 3)
    samples[0]["messages"][1]["content"] = f"<m1><m1>{M}<m2><m2>"
    samples[1]["messages"][1]["content"] = f"<m5>{M}"
    prepared = lf.prepare(arguments(lf, tmp_path, samples), HSA, FeedbackConfig())
    first, second, third = prepared.rows()
    assert trained(prepared, first) == "<m2><m2><|im_end|>\n"
    assert trained(prepared, second) == "<|im_end|>\n"
    assert trained(prepared, second, "kl_") == "<m2><m2><|im_end|>\n"  # that of the first
    assert trained(prepared, first, "kl_") == trained(prepared, third) == "<m9>" * 5 + "<|im_end|>\n"
    assert prepared.counts["with_marker"] == 2


def test_policies_of_feedback(lf, tmp_path):
    samples = labelled(lf, 3)
    samples[1]["messages"][1]["content"] = f"<m5><m5>{M}<m5><m5>"
    args = arguments(lf, tmp_path, samples)
    prepared = lf.prepare(args, HSA, FeedbackConfig(missing="drop"))
    (row,) = prepared.rows()
    assert prepared.counts["dropped"] == {"no feedback marker": 2}
    assert row["kl_input_ids"] == row["input_ids"]  # LLaMA-Factory gives the only sample its own reply, too
    with pytest.raises(ValueError, match="dataset 'data', sample 0: it has no <.feedback.>"):
        lf.prepare(args, HSA, FeedbackConfig(missing="error"))
    cut = {**args, "cutoff_len": 12}
    assert lf.prepare(cut, HSA, FeedbackConfig()).counts["marker_cut_samples"] == [1]
    with pytest.raises(ValueError, match="dataset 'data', sample 1: nothing is left to train"):
        lf.prepare(cut, HSA, FeedbackConfig(empty="error"))


def test_weights_besides_0_and_1_are_refused(lf, tmp_path):
    samples = labelled(lf, 3)
    samples[2]["messages"][1]["weight"] = 0.5
    with pytest.raises(
        ValueError, match=r"dataset 'data', sample 2: reply, turn 1 \(assistant\): weight 0.5: .* 0 and 1"
    ):
        lf.prepare(arguments(lf, tmp_path, samples), HSA)
    with pytest.raises(ValueError, match="sample [04]: reply, .*weight 0.3.*loss_weights"):
        lf.prepare(arguments(lf, tmp_path, labelled(lf)), HSA, weights=LossWeightsConfig(roles={"assistant": 0.3}))


@pytest.mark.parametrize("batch", [1000, 1, 2])
def test_samples_without_a_label_are_dropped_and_named(lf, tmp_path, batch):
    """Also where no sample of a batch is left, and where plain LLaMA-Factory stops at the one after a broken sample."""
    samples = labelled(lf, 5)
    samples[0]["label"] = None
    samples[2]["messages"] = samples[2]["messages"][1:]
    prepared = lf.prepare(arguments(lf, tmp_path, samples, preprocessing_batch_size=batch), HSA)
    assert prepared.counts["dropped_samples"] == {NO_LABEL: [0, 2]}
    assert [row["kto_tags"] for row in prepared.rows()] == [False, False, True]
    lf.write_data(tmp_path, none=(entry(lf), [{**sample, "label": "yes"} for sample in samples]))
    with pytest.raises(ValueError, match="Nothing is left to train in 'none'"):
        lf.prepare(lf.args(tmp_path, "none", stage="kto"), HSA)


def test_streams_workers_and_tokenized_data_give_the_same(lf, tmp_path):
    args = arguments(lf, tmp_path, labelled(lf))
    hsa = HSAConfig(noise_turns=1)
    expected = lf.prepare(args, hsa, FeedbackConfig()).rows()
    assert all(len(row["kl_turn_ids"]) == len(row["kl_input_ids"]) for row in expected)
    tokenized = {**args, "tokenized_path": str(tmp_path / "tokenized")}
    lf.prepare(tokenized, hsa, FeedbackConfig())
    assert lf.prepare(tokenized, hsa, FeedbackConfig()).rows() == expected
    stream = lf.prepare(
        {**args, "streaming": True, "max_steps": 1, "dataloader_num_workers": 1}, hsa, FeedbackConfig()
    )
    own = ("input_ids", "labels", "semantic_ids", "loss_mask", "turn_ids", "kto_tags")  # a stream is shuffled
    streamed = sorted(stream.rows(), key=lambda row: row["hsa_samples"])
    assert [[row[name] for name in own] for row in streamed] == [[row[name] for name in own] for row in expected]
    assert all(len(row["kl_input_ids"]) == len(row["kl_semantic_ids"]) for row in streamed)
    with pytest.raises(ValueError, match="no column 'turn_ids'"):
        lf.prepare({**args, "tokenized_path": str(tmp_path / "other")}, HSA)
        lf.prepare({**args, "tokenized_path": str(tmp_path / "other")}, hsa)


def test_pictures_are_never_cut_in_half_in_either_half(lf, tmp_path):
    paths = lf.images(tmp_path / "images", [(224, 224), (56, 56), (56, 56)])
    samples = labelled(lf, 3)
    for sample, path in zip(samples, paths):
        sample["messages"][0]["content"] = "<m0>" * 30 + "<image>"
        sample["images"] = [path]
    model = lf.model_dir("qwen2_5_vl")
    args = arguments(lf, tmp_path, samples, columns=["images"], model=model, template="qwen2_vl")
    first, second, third = lf.prepare(args, HSA).rows()
    assert len(first["input_ids"]) > len(second["kl_input_ids"]) == len(second["input_ids"]) - 1
    prepared = lf.prepare({**args, "cutoff_len": len(third["input_ids"])}, HSA)
    picture = prepared.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert prepared.counts["dropped"] == {"media do not fit into cutoff_len": 1}
    for row in prepared.rows():
        assert row["input_ids"].count(picture) == row["kl_input_ids"].count(picture) == 4
