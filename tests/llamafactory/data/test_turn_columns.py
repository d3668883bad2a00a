"""Turn numbers from the data file to the batch: whose message a token is of says its turn, whatever format it came in."""

import json

import numpy as np
import pytest
import torch

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.llamafactory.data.turns import number_tokens, run_on, to_stored


TURNS = HSAConfig(noise_turns=1)
WINDOW = HSAConfig(noise_window=4)
N = 2


@pytest.fixture(scope="module")
def model_dir(lf):
    return lf.model_dir("qwen3", extra=(lf.MARKER,))


def turns_by_mark(lf, prepared, split="train"):
    """Return, for each row, the turn of each mark, or all its turns if it has several."""
    marks, rows = lf.mark_ids(prepared.tokenizer), []
    for row in prepared.rows(split):
        seen = {}
        for token, turn in zip(row["input_ids"], row["turn_ids"], strict=True):
            if token in marks:
                seen.setdefault(marks[token], set()).add(turn)
        rows.append({mark: turns.pop() if len(turns) == 1 else turns for mark, turns in sorted(seen.items())})
    return rows


def prepare(lf, directory, config=TURNS, dataset="data", **data):
    options = {name: data.pop(name) for name in list(data) if name in ("val_size", "streaming", "template")}
    lf.write_data(directory, **data)
    return lf.prepare(lf.args(directory, dataset, **options), config)


# -- formats -----------------------------------------------------------------------------------------------------


def test_the_system_prompt_and_each_exchange_of_sharegpt_data(lf, tmp_path):
    roles = ("system", "user", "assistant", "user", "function", "observation", "assistant", "user", "assistant")
    call = json.dumps({"name": "look", "arguments": {"at": "<m4>"}})
    messages = [lf.say(role, call if role == "function" else f"<m{k}>", N) for k, role in enumerate(roles)]
    (turns,) = turns_by_mark(lf, prepare(lf, tmp_path, data=[messages]))
    assert turns == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 2, 6: 2, 7: 3, 8: 3}


def test_parallel_calls_and_their_results_in_openai_data(lf, tmp_path):
    """LLaMA-Factory joins the results of a reply's calls; two replies in a row it leaves out."""
    calls = [{"type": "function", "function": {"name": "look", "arguments": f'{{"at": "<m{k}>"}}'}} for k in (2, 3)]
    messages = [
        {"role": "system", "content": "<m0>"},
        {"role": "user", "content": "<m1>"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "<m4>"},
        {"role": "tool", "content": "<m5>"},
        {"role": "assistant", "content": "<m6>"},
        {"role": "user", "content": "<m7>"},
        {"role": "assistant", "content": "<m8>"},
    ]
    twice = [*messages[:6], {"role": "assistant", "content": "<m7>"}, *messages[6:]]
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    tags |= {"observation_tag": "tool", "function_tag": "function_call", "system_tag": "system"}
    entry = {"formatting": "openai", "columns": {"messages": "messages"}, "tags": tags}
    prepared = prepare(lf, tmp_path, data=(entry, [{"messages": messages}, {"messages": twice}]))
    (turns,) = turns_by_mark(lf, prepared)
    assert turns == {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 1, 7: 2, 8: 2}
    assert list(prepared.counts["dropped_samples"].values()) == [[1]]


def test_the_history_of_alpaca_data(lf, tmp_path):
    columns = {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "history": "history",
        "system": "system",
    }
    sample = {"instruction": "<m5>", "input": "<m6>", "output": "<m7>", "system": "<m0>"}
    sample["history"] = [["<m1>", "<m2>"], ["<m3>", "<m4>"]]
    alone = {**sample, "history": []}
    entry = {"formatting": "alpaca", "columns": columns}
    rows = turns_by_mark(lf, prepare(lf, tmp_path, data=(entry, [sample, alone])))
    assert rows == [{0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 2, 6: 2, 7: 2}, {0: 0, 5: 0, 6: 0, 7: 0}]


# -- splits, streams, runs without turns --------------------------------------------------------------------------


def test_evaluation_data_and_streams_have_the_column(lf, tmp_path):
    data = [lf.dialogue([0, 2, 1, 2, 2, 1][: 2 + 2 * (k % 3)], words=1 + k) for k in range(8)]
    prepared = prepare(lf, tmp_path, data=data, val_size=0.25)
    assert prepared.module["train_dataset"].features["turn_ids"].feature.dtype == "uint16"
    rows = turns_by_mark(lf, prepared) + turns_by_mark(lf, prepared, "eval")
    assert sorted(map(len, rows)) == [2, 2, 2, 4, 4, 4, 6, 6]
    for turns in rows:
        assert turns == {mark: mark // 2 for mark in turns}
    streamed = lf.prepare(lf.args(tmp_path, "data", streaming=True, dataloader_num_workers=1), TURNS)
    rows = turns_by_mark(lf, streamed)  # LLaMA-Factory shuffles streams
    assert sorted(rows, key=len) == [{mark: mark // 2 for mark in range(len(each))} for each in sorted(data, key=len)]


def test_a_run_without_turns_has_no_column(lf, tmp_path):
    prepared = prepare(lf, tmp_path, WINDOW, data=[lf.dialogue([0, 2, 2, 1])])
    assert "turn_ids" not in prepared.module["train_dataset"].column_names


# -- the cut, media in front, one EOS behind -----------------------------------------------------------------------


def test_what_stands_around_the_messages():
    """PaliGemma's pictures stand in front of what is left, an EOS behind it."""
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant") * 3]
    assert number_tokens(messages, 2, [2, 1, 3, 0], 2, 1).tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert number_tokens(messages, 0, [1, 1], 0, 0).tolist() == [0, 0]


def test_two_replies_in_a_row_are_one():
    """A converter of one's own may let them through."""
    roles = ("user", "assistant", "assistant", "observation", "observation", "assistant")
    messages = [{"role": role, "content": "x"} for role in roles]
    assert number_tokens(messages, 0, [1] * 6, 0, 0).tolist() == [0, 0, 0, 1, 1, 1]


def test_samples_that_see_each_other_are_counted_on():
    turn_ids = np.array([0, 0, 1, 3, 4, 0, 0, 2, 2, 0], np.int32)
    is_padding = np.array([0, 0, 0, 0, 0, 1, 0, 0, 0, 1], np.bool_)
    numbers = run_on(turn_ids, np.array([0, 6, 10]), np.array([0, 3, 6, 8]), is_padding)
    assert numbers.tolist() == [0, 0, 1, 2, 3, 3, 0, 2 - 0, 3, 3]


def test_more_turns_than_two_bytes_number():
    most = np.array([0, 65_535], np.int32)
    assert to_stored(most).dtype == np.uint16 and to_stored(most).tolist() == [0, 65_535]
    with pytest.raises(ValueError, match="65536 replies.* at most 65535: cut it up, or use windows"):
        to_stored(most + 1)


# -- batches --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["qwen3", "qwen2_5_vl"])
def batches(request, lf, tmp_path_factory):
    """Prepared data, and the model for their collator (its dummy picture stands beside the text)."""
    directory = lf.model_dir(request.param, extra=(lf.MARKER,))
    template = {"qwen3": "qwen3", "qwen2_5_vl": "qwen2_vl"}[request.param]
    data = lf.write_data(tmp_path_factory.mktemp("batches"), data=conversations(lf))
    args = lf.args(data, "data", directory, template=template)
    return args, lf.prepare(args, TURNS), lf.model(directory, TURNS)


def conversations(lf):
    kinds = [[0, 2, 2, 2, 1, 2], [1, 2], [0, 2, 2, 1, 2, 2, 2, 0]]
    return [lf.dialogue(types, words=2 + k, first_mark=10 * k) for k, types in enumerate(kinds)]


@pytest.mark.parametrize("side", ["right", "left"])
def test_turns_lie_where_the_ids_lie(lf, batches, side):
    _, prepared, model = batches
    prepared.tokenizer.padding_side = side
    rows = prepared.rows()
    batch = lf.collator(prepared, TURNS, None, model)([dict(row) for row in rows])
    prepared.tokenizer.padding_side = "right"
    assert batch["turn_ids"].shape == batch["input_ids"].shape and batch["turn_ids"].dtype == torch.int64
    for i, row in enumerate(rows):
        is_real = batch["attention_mask"][i] != 0
        assert batch["input_ids"][i][is_real].tolist() == row["input_ids"]
        assert batch["turn_ids"][i][is_real].tolist() == row["turn_ids"]
        assert not batch["turn_ids"][i][~is_real].any()


def test_features_without_turns_or_with_too_few_are_errors(lf, batches):
    _, prepared, model = batches
    collate = lf.collator(prepared, TURNS, None, model)
    first, *rest = prepared.rows()
    lacking = {name: value for name, value in first.items() if name != "turn_ids"}
    with pytest.raises(ValueError, match="has no `turn_ids`.*without a rule with turns .*must be tokenized again"):
        collate([*rest, lacking])
    with pytest.raises(ValueError, match=f"3 turn_ids do not fit {len(first['input_ids'])} input_ids"):
        collate([{**first, "turn_ids": [0, 0, 0]}])


def test_rules_without_turns_leave_the_column_out(lf, batches):
    _, prepared, model = batches
    for settings in ((WINDOW, None), (None, FeedbackConfig())):
        assert "turn_ids" not in lf.collator(prepared, *settings, model)([dict(row) for row in prepared.rows()])


# -- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TURNS, HSAConfig(noise_turns=0, landmark_turns=1, noise_decay=0.01)])
@pytest.mark.parametrize("packing", [{"neat_packing": True}, {"packing": True}])
def test_a_packed_row_is_what_its_documents_are(lf, batches, config, packing):
    """With `neat_packing` each sample alone; without it one conversation after the other."""
    args, prepared, model = batches
    model = lf.model(args["model_name_or_path"], config)
    packed = lf.prepare({**args, "cutoff_len": 400, **packing}, config)
    (row,) = packed.rows()
    tensors = lf.collator(packed, config, None, model)([dict(row)])
    length = max(i for i, mask in enumerate(row["labels"]) if mask != -100) + 1
    with torch.no_grad():
        together = model(**{name: value for name, value in tensors.items() if value is not None}).logits[0]
    if not packing.get("neat_packing"):
        turns = row["turn_ids"]
        assert turns == sorted(turns) and turns[length - 1] == sum(len(each) // 2 for each in conversations(lf)) - 1
        assert torch.isfinite(together[:length]).all()
        return
    single = {tuple(sample["input_ids"]): sample for sample in prepared.rows()}
    for part, stop in spans(row, length):
        sample = single[tuple(row["input_ids"][part:stop])]
        assert row["turn_ids"][part:stop] == sample["turn_ids"]
        alone = lf.collator(prepared, config, None, model)([dict(sample)])
        with torch.no_grad():
            expected = model(**alone).logits[0, : stop - part]
        assert torch.allclose(together[part:stop], expected, atol=1e-4)


def spans(row, length):
    starts = [part["start"] for part in json.loads(row["hsa_samples"])]
    return zip(starts, [*starts[1:], length])


def test_the_loss_of_a_step_is_that_of_a_forward_by_hand(lf, model_dir, tmp_path):
    """And another one than with all of NOISE in sight."""
    data = lf.write_data(tmp_path, data=conversations(lf)[:1])
    config = HSAConfig(noise_turns=0)
    args = lf.args(data, "data", model_dir, max_steps=1)
    (trained,) = lf.train(args, config)
    (row,) = lf.prepare(args, config).rows()
    keys = ("input_ids", "labels", "semantic_ids", "turn_ids")
    inputs = {name: torch.tensor([row[name]]) for name in keys}
    losses = []
    for turns in (0, 5):
        with torch.no_grad():
            losses.append(float(lf.model(model_dir, HSAConfig(noise_turns=turns))(**inputs).loss))
    assert trained == pytest.approx(losses[0], abs=2e-4)
    assert abs(losses[0] - losses[1]) > 1e-3


# -- what cannot be -------------------------------------------------------------------------------------------------


def test_tokenized_data_made_without_turns_are_refused(lf, model_dir, tmp_path):
    data = lf.write_data(tmp_path, data=conversations(lf))
    args = lf.args(data, "data", model_dir, tokenized_path=str(tmp_path / "saved"))
    lf.prepare(args, WINDOW)
    with pytest.raises(ValueError, match="no column 'turn_ids': it was made without a rule with turns.*Remove it"):
        lf.prepare(args, TURNS)


def test_tokenized_data_made_with_turns_serve_every_rule(lf, model_dir, tmp_path):
    data = lf.write_data(tmp_path, data=conversations(lf))
    args = lf.args(data, "data", model_dir, tokenized_path=str(tmp_path / "saved"))
    rows = lf.prepare(args, TURNS).rows()
    for config in (HSAConfig(landmark_turns=3), WINDOW):
        assert lf.prepare(args, config).rows() == rows


def replies(lf, *texts):
    return [[lf.say("user", "<m1>", N), lf.say("assistant", text, N)] for text in texts]


def test_data_without_replies_are_refused_where_only_turns_hide(lf, tmp_path):
    """The template's stop token is all there is to train."""
    lf.write_data(tmp_path, silent=replies(lf, "", " \n"), fine=replies(lf, "<m2>", ""))
    args = lf.args(tmp_path, "fine,silent")
    with pytest.raises(ValueError, match=r"No sample of 'silent' has a reply.*hsa\.noise_turns would never hide"):
        lf.prepare(args, TURNS)
    prepared = lf.prepare(args, HSAConfig(noise_turns=1, noise_window=20))
    assert {name: prepared.counts_of(name)["without_reply"] for name in ("fine", "silent")} == {"fine": 1, "silent": 2}
    assert lf.prepare(args, WINDOW).counts_of("silent")["without_reply"] == 0


def test_samples_without_a_reply_stand_below_the_table(lf, tmp_path, capsys):
    prepare(lf, tmp_path, data=replies(lf, "<m2>", "", "<m3>"))
    assert "data: 1 has no reply, so that all their tokens are turn 0" in " ".join(capsys.readouterr().out.split())
