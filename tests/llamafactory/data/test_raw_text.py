"""Stage `pt`: rows are those of plain LLaMA-Factory, and every token has the type of the text it stands for."""

import pytest
from transformers import PreTrainedTokenizerFast

from hsa_factory import FeedbackConfig, HSAConfig, LossWeightsConfig
from hsa_factory.llamafactory.data.pretrain_collator import HSAPretrainCollator
from hsa_factory.llamafactory.data.text_tokenizer import TypedTextTokenizer


G, L, N = 0, 1, 2
M = "<|feedback|>"
RULES = [
    {"name": "event", "tag": "ev", "type": "LANDMARK"},
    {"name": "walk", "pattern": "(<m2>)+", "type": "NOISE"},
    {"name": "task", "contains": "<m3>", "type": "GLOBAL"},
]
HSA = HSAConfig(default_type="NOISE", rules=RULES)
ACROSS = "blocks whose texts see those before them, as in LLaMA-Factory (`packing: false` makes a row of each text)"
NO_BLOCK = "in no block: the texts left at the end of a batch do not fill one of cutoff_len tokens"
TEXTS = [
    "<m0><m0><ev><m1></ev><m2><m2><m2><m0>" * 2,
    "<m3><m0><m0><ev><m1><m1></ev>",
    "",
    "<m0><m0><m0>",
    "<m2><m2>" * 9,
]


def texts(lf, directory, samples=TEXTS, hsa=HSA, feedback=None, **more):
    """Prepare texts."""
    columns = {"columns": {"prompt": "text"}}
    data = lf.write_data(directory, data=(columns, [{"text": text} for text in samples]))
    return lf.prepare(lf.args(data, "data", **{"stage": "pt", "cutoff_len": 16, **more}), hsa, feedback)


def by_mark(lf, prepared):
    numbers, found = lf.mark_ids(prepared.tokenizer), {}
    for row in prepared.rows():
        for token, kind in zip(row["input_ids"], row["semantic_ids"], strict=True):
            if token in numbers:
                found.setdefault(numbers[token], set()).add(kind)
    return found


@pytest.mark.parametrize(
    "more", [{}, {"packing": False}, {"cutoff_len": 1}, {"cutoff_len": 5, "packing": False}], ids=str
)
def test_rows_are_those_without_hsa(lf, tmp_path, more):
    plain, prepared = texts(lf, tmp_path, hsa=None, **more), texts(lf, tmp_path, **more)
    names = ("input_ids", "attention_mask")
    assert [[row[name] for name in names] for row in prepared.rows()] == [
        [row[name] for name in names] for row in plain.rows()
    ]


def test_rules_type_parts_of_a_text(lf, tmp_path):
    prepared = texts(lf, tmp_path, packing=False, cutoff_len=100)
    assert by_mark(lf, prepared) == {0: {G, N}, 1: {L}, 2: {N}, 3: {G}}
    first, second = prepared.rows()[:2]
    assert first["semantic_ids"][-1] == N and second["semantic_ids"][-1] == L  # the EOS goes with what it ends
    assert prepared.counts["rules"] == {"event": 3, "walk": 3, "task": 1}
    assert (prepared.counts["messages"], prepared.counts["typed_messages"], prepared.counts["ruled_messages"]) == (
        5,
        0,
        3,
    )
    assert sum(prepared.counts["tokens"].values()) == prepared.counts["trained_tokens"]


def test_blocks_are_counted_by_data_set(lf, tmp_path):
    """Texts run on from block to block; what fills no block is lost, as without HSA, and said."""
    samples = {"one": ["<m0>" * 20, "<m1>" * 4], "two": ["<m2>" * 6, "<m3>" * 2]}
    columns = {"columns": {"prompt": "text"}}
    data = {name: (columns, [{"text": text} for text in values]) for name, values in samples.items()}
    args = lf.args(lf.write_data(tmp_path, **data), "one,two", stage="pt", cutoff_len=16)
    prepared = lf.prepare(args, HSA)
    one, two = prepared.counts_of("one"), prepared.counts_of("two")
    assert len(prepared.rows()) == 2  # of 21 + 5 + 7 + 3 tokens
    assert (one["kept"], one["tokens"]["NOISE"]) == (2, 26)
    assert (two["kept"], two["tokens"]["NOISE"], two["text_truncated"]) == (1, 6, 1)
    assert two["dropped_samples"] == {NO_BLOCK: [1]}
    assert one["notes"] == {ACROSS: 1}


def test_a_type_of_its_own_and_what_is_not_read(lf, tmp_path):
    messages = lf.dialogue(["LANDMARK", "NOISE", "NOISE", "NOISE"])
    lf.write_data(tmp_path, data=[messages])
    prepared = lf.prepare(lf.args(tmp_path, "data", stage="pt", packing=False), HSA)
    assert by_mark(lf, prepared) == {0: {L}}
    (note,) = prepared.counts["notes"].items()
    assert note == ("messages that stage pt does not read: the first of a conversation is its text", 3)


def test_feedback_masks_a_text_up_to_the_marker(lf, tmp_path):
    samples = [f"<m0><m0>{M}<m1>", "<m2><m2>", f"<m3>{M}<m4>{M}<m4>"]
    prepared = texts(lf, tmp_path, samples, feedback=FeedbackConfig(occurrence="last"), packing=False)
    kept = [prepared.text([t for t, keep in zip(r["input_ids"], r["loss_mask"]) if keep]) for r in prepared.rows()]
    assert kept == ["<m1><|im_end|>", "<m2><m2><|im_end|>", "<m4><|im_end|>"]
    collator = HSAPretrainCollator(prepared.tokenizer, mlm=False, hsa_config=HSA, feedback_config=FeedbackConfig())
    batch = collator(prepared.rows())
    assert [prepared.text(row[row != -100]) for row in batch["labels"]] == kept
    assert batch["semantic_ids"].shape == batch["input_ids"].shape == (3, 6)
    assert batch["semantic_ids"][1, 3:].tolist() == [N] * 3  # padding
    with pytest.raises(ValueError, match="No token of this batch"):
        collator([{**row, "loss_mask": [0] * len(row["loss_mask"])} for row in prepared.rows()])


def test_feedback_decides_before_blocks_are_made(lf, tmp_path):
    samples = [f"{'<m0>' * 40}{M}<m1>", f"<m2>{M}<m2>", "<m3>" * 8]
    feedback = FeedbackConfig(missing="drop")
    prepared = texts(lf, tmp_path, samples, feedback=feedback, cutoff_len=4)
    assert prepared.counts["dropped"] == {"no feedback marker": 1}
    assert prepared.counts["notes"] == {"blocks left out in which nothing is trained": 10, ACROSS: 1}
    (row,) = prepared.rows()
    assert row["loss_mask"][:4] == [0, 1, 1, 0] and prepared.text(row["input_ids"]).startswith(
        f"{M}<m1><|im_end|><m2>"
    )
    cut = texts(lf, tmp_path, samples, feedback=FeedbackConfig(), cutoff_len=8, packing=False)
    assert cut.counts["dropped_samples"] == {"nothing left to train": [0]} and cut.counts["marker_cut_samples"] == [0]
    with pytest.raises(ValueError, match="dataset 'data', sample 0: nothing is left to train .*'error'"):
        texts(lf, tmp_path, samples, feedback=FeedbackConfig(empty="error"), cutoff_len=8, packing=False)
    with pytest.raises(ValueError, match="dataset 'data', sample 2: it has no <.feedback.>"):
        texts(lf, tmp_path, samples, feedback=FeedbackConfig(missing="error"))


def test_too_little_for_one_block_is_an_error(lf, tmp_path):
    with pytest.raises(ValueError, match="Nothing is left to train in 'data'"):
        texts(lf, tmp_path, ["<m0>"])


def test_weights_of_texts(lf, tmp_path):
    lf.write_data(tmp_path, data=[lf.dialogue(["NOISE", "NOISE"])] * 2)
    args = lf.args(tmp_path, "data", stage="pt", packing=False)
    with pytest.raises(
        ValueError, match=r"dataset 'data', sample [01]: weight 0.5: stage pt knows no weights but 0 and 1"
    ):
        lf.prepare(args, HSA, weights=LossWeightsConfig(roles={"user": 0.5}))
    with pytest.raises(ValueError, match="Nothing is left"):
        lf.prepare(args, HSA, weights=LossWeightsConfig(roles={"user": 0}))


def test_streams_and_tokenized_data(lf, tmp_path):
    expected = texts(lf, tmp_path).rows()
    tokenized = {"tokenized_path": str(tmp_path / "tokenized")}
    texts(lf, tmp_path, **tokenized)
    assert texts(lf, tmp_path, **tokenized).rows() == expected
    stream = texts(lf, tmp_path, streaming=True, max_steps=1, dataloader_num_workers=1, packing=False)
    together = texts(lf, tmp_path, packing=False)
    for name in ("input_ids", "semantic_ids"):
        assert sorted(row[name] for row in stream.rows()) == sorted(row[name] for row in together.rows())


def test_types_follow_characters(lf):
    """Also where a token is a part of one, and on both sides of truncation."""
    from hsa_factory.typed.text import TypedText

    tokenizer = lf.new_tokenizer()
    text = "The robot 打开冰箱 <ev>takes 🍎</ev> and goes on."
    start, stop = text.index("<ev>"), text.index(" and")
    typed = TypedText(text, N, [(start, stop, L)]) + tokenizer.eos_token
    reader = TypedTextTokenizer(tokenizer)
    for options in ({}, {"truncation": True, "max_length": 7}):
        expected = tokenizer([str(typed)], add_special_tokens=False, **options)
        columns = reader([typed], add_special_tokens=False, **options)
        assert {name: columns[name] for name in expected} == dict(expected)
    (ids,) = reader([typed], add_special_tokens=False)["input_ids"]
    assert tokenizer.decode([token for token in ids if token.semantic_type == L]) == text[start:stop]
    assert isinstance(tokenizer, PreTrainedTokenizerFast) and reader.eos_token == tokenizer.eos_token


def test_a_bos_takes_the_place_of_a_block_s_first_token(lf, tmp_path):
    from llamafactory.data.processor import PretrainDatasetProcessor

    prepared = texts(lf, tmp_path)
    tokenizer = prepared.tokenizer
    tokenizer.bos_token = "<m9>"
    tokenizer.add_bos_token = True
    from hsa_factory.llamafactory.data.pretraining import TypedPretrainProcessor

    message = {"role": "user", "content": "<m0>" * 40, "semantic_type": L}
    examples = {
        "_prompt": [[message]],
        "_response": [[]],
        "_system": [""],
        "_hsa_dataset": ["data"],
        "_hsa_index": [0],
    }
    examples |= {"_hsa_typed_messages": [1], "_hsa_rules": [""]}
    for packing in (True, False):
        prepared.data_args.packing = packing
        parts = (prepared.template, tokenizer, None, prepared.data_args)
        plain = PretrainDatasetProcessor(*parts).preprocess_dataset(examples)
        typed = TypedPretrainProcessor(*parts).preprocess_dataset(examples)
        assert typed["input_ids"] == plain["input_ids"] and typed["semantic_ids"][0] == [L] * 16
        assert typed["input_ids"][0][0] == tokenizer.bos_token_id
