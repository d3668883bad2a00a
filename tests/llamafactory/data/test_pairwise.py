"""Pairs: ids as LLaMA-Factory makes them, types and loss masks of both sides, what is dropped and why."""

import pytest

from hsa_factory import FeedbackConfig, HSAConfig, LossWeightsConfig


HSA, FEEDBACK = HSAConfig(), FeedbackConfig()
COLUMNS = {"messages": "messages", "chosen": "chosen", "rejected": "rejected"}
SIDES = ("chosen", "rejected")


@pytest.fixture
def prepare(lf, tmp_path):
    """Prepare pairs of a number of samples; return what came of them."""

    def call(samples, hsa=HSA, feedback=None, weights=None, entry=None, **more):
        columns = COLUMNS | ({"images": "images"} if any("images" in sample for sample in samples) else {})
        entry = entry or {"formatting": "sharegpt", "ranking": True, "columns": columns, "tags": lf.TAGS}
        directory = lf.write_data(tmp_path / "data", pairs=(entry, samples))
        values = {"stage": "dpo", "output_dir": str(tmp_path / "out"), **more}
        return lf.prepare(lf.args(directory, "pairs", **values), hsa, feedback, weights)

    return call


@pytest.fixture
def pair(lf):
    def call(chosen="red apple", rejected="the fridge", **more):
        prompt = [lf.say("user", lf.MARKS[0] * 3, "GLOBAL"), lf.say("assistant", lf.MARKS[1] * 4, "NOISE")]
        prompt.append(lf.say("user", lf.MARKS[2] * 5, "LANDMARK"))
        values = {"messages": prompt, "chosen": lf.say("assistant", chosen), "rejected": lf.say("assistant", rejected)}
        return {**values, **more}

    return call


def trained(prepared, row, side):
    """The text of a side that is trained."""
    facts = zip(row[f"{side}_labels"], row[f"{side}_loss_mask"])
    return prepared.text([label for label, keep in facts if label != -100 and keep])


@pytest.mark.parametrize("workers", [None, 2])
def test_ids_and_labels_are_llamafactorys(prepare, pair, workers):
    samples = [pair("red apple " * (k + 1), "the fridge") for k in range(4)]
    ours = prepare(samples, preprocessing_num_workers=workers).rows()
    plain = prepare(samples, None, preprocessing_num_workers=workers).rows()
    names = [f"{side}_{name}" for side in SIDES for name in ("input_ids", "attention_mask", "labels")]
    assert [[row[name] for name in names] for row in ours] == [[row[name] for name in names] for row in plain]


def test_every_token_has_the_type_of_its_message(lf, prepare, pair):
    sample = pair(chosen=lf.MARKS[3] * 2, rejected=lf.MARKS[4] * 2)
    sample["chosen"]["semantic_type"], sample["rejected"]["semantic_type"] = "LANDMARK", "NOISE"
    prepared = prepare([sample], HSAConfig(noise_turns=1))
    (row,), marks = prepared.rows(), lf.mark_ids(prepared.tokenizer)
    expected = {0: (0, 0), 1: (2, 0), 2: (1, 1), 3: (1, 1), 4: (2, 1)}
    for side, own in zip(SIDES, (3, 4)):
        columns = (row[f"{side}_{name}"] for name in ("input_ids", "semantic_ids", "turn_ids"))
        found = {marks[token]: (kind, turn) for token, kind, turn in zip(*columns) if token in marks}
        assert found == {mark: expected[mark] for mark in (0, 1, 2, own)}


def test_alpaca_pairs_rules_and_parts(lf, prepare, pair):
    columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    texts = {"instruction": "The table.", "input": "", "chosen": lf.MARKS[1] * 2, "rejected": lf.MARKS[2]}
    rules = HSAConfig(rules=[{"type": "NOISE", "contains": lf.MARKS[2]}])
    prepared = prepare([texts], rules, entry={"ranking": True, "columns": columns})
    (row,), marks = prepared.rows(), lf.mark_ids(prepared.tokenizer)
    for side, mark, kind in zip(SIDES, (1, 2), (0, 2)):
        facts = zip(row[f"{side}_input_ids"], row[f"{side}_semantic_ids"])
        assert {(marks[token], own) for token, own in facts if token in marks} == {(mark, kind)}

    parts = [{"type": "text", "text": lf.MARKS[5], "semantic_type": "NOISE"}, {"type": "text", "text": lf.MARKS[6]}]
    (row,) = prepare([pair(chosen=parts)]).rows()
    facts = zip(row["chosen_input_ids"], row["chosen_semantic_ids"])
    assert {marks[token]: kind for token, kind in facts if marks.get(token) in (5, 6)} == {5: 2, 6: 0}


def test_a_marker_in_a_reply_masks_what_stands_before_it(lf, prepare, pair):
    prepared = prepare([pair(chosen=f"It opens {lf.MARKER} red apple")], feedback=FEEDBACK)
    (row,) = prepared.rows()
    assert trained(prepared, row, "chosen").split() == ["red", "apple<|im_end|>"]
    assert "the fridge" in trained(prepared, row, "rejected")
    assert prepared.counts["with_marker"] == 1


@pytest.mark.parametrize("side", SIDES)
def test_a_pair_with_nothing_left_is_dropped_and_counted(prepare, pair, side):
    masked = pair()
    masked[side]["loss"] = False
    prepared = prepare([masked, pair()])
    assert prepared.counts["dropped"] == {f"nothing left to train in {side}": 1}
    assert (
        prepared.counts["dropped_samples"] == {f"nothing left to train in {side}": [0]} and len(prepared.rows()) == 1
    )
    with pytest.raises(ValueError, match=f"dataset 'pairs', sample 0: {side}: nothing is left to train"):
        prepare([masked, pair()], feedback=FeedbackConfig(empty="error"))


def test_a_mask_in_the_prompt_means_nothing(prepare, pair):
    masked = pair()
    masked["messages"][1]["loss"] = False
    assert [row["chosen_labels"] for row in prepare([masked]).rows()] == [
        row["chosen_labels"] for row in prepare([pair()]).rows()
    ]
    masked["messages"][1] |= {"loss": None, "weight": 0.5}
    assert prepare([masked]).counts["notes"]["weights of messages of prompts, which this stage does not train"] == 1


def test_a_weight_that_the_loss_cannot_honour_is_refused(prepare, pair):
    weighed = pair()
    weighed["rejected"]["weight"] = 0.5
    with pytest.raises(
        ValueError, match=r"dataset 'pairs', sample 1: rejected, .* weight 0.5: the loss of this stage"
    ):
        prepare([pair(), weighed])
    with pytest.raises(ValueError, match=r"sample 0: chosen, .* weight 2: the loss of this stage"):
        prepare([pair()], weights=LossWeightsConfig(roles={"assistant": 2}))


def test_samples_without_two_replies_are_dropped(lf, prepare, pair):
    wrong = pair()
    wrong["messages"] = wrong["messages"][:2]
    assert prepare([wrong, pair()]).counts["dropped"] == {
        "no two replies to choose between, or roles in a wrong order": 1
    }


def test_a_cut_prompt_is_counted(prepare, pair):
    whole, short = prepare([pair()]), prepare([pair()], cutoff_len=30)
    assert (whole.counts["prompts_cut"], short.counts["prompts_cut"]) == (0, 1)
    (row,) = short.rows()
    (plain,) = prepare([pair()], None, cutoff_len=30).rows()
    for side in SIDES:
        assert row[f"{side}_input_ids"] == plain[f"{side}_input_ids"]
        assert len(row[f"{side}_semantic_ids"]) == len(row[f"{side}_input_ids"])


def test_media_are_never_cut_in_half(lf, prepare, pair, tmp_path):
    (image,) = lf.images(tmp_path / "images", [(112, 112)])
    shown = pair(images=[image])
    shown["messages"][2]["content"] = "<image>" + shown["messages"][2]["content"]
    more = {"model": lf.model_dir("qwen2_5_vl"), "template": "qwen2_vl"}
    prepared = prepare([shown], **more)
    pads = prepared.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    (row,) = prepared.rows()
    length, number = len(row["chosen_input_ids"]), row["chosen_input_ids"].count(pads)
    assert number > 2 and row["rejected_input_ids"].count(pads) == number
    short = pair(images=None)
    cut = prepare([shown, short], cutoff_len=length - 13 - number // 2, **more)
    assert cut.counts["dropped"] == {"media do not fit into cutoff_len": 1} and len(cut.rows()) == 1
