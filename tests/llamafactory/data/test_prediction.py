"""`predict_with_generate`: typed prompts, references as they are, and the answers of `model.generate` with HSA."""

import json
from pathlib import Path

import pytest
import torch


for name in ("jieba", "nltk", "rouge_chinese"):  # LLaMA-Factory's metrics
    pytest.importorskip(name)

from hsa_factory import FeedbackConfig, HSAConfig  # noqa: E402


HSA = HSAConfig(noise_window=3, noise_decay=0.4, default_type="LANDMARK", generated_type="NOISE")
TURNS = HSAConfig(noise_turns=0, landmark_turns=1, default_type="NOISE", backend="dense")
FEEDBACK = FeedbackConfig()
NEW = 10
PREDICT = {
    "do_train": False,
    "do_predict": True,
    "predict_with_generate": True,
    "per_device_eval_batch_size": 2,
    "max_new_tokens": NEW,
    "do_sample": False,
    "template": "qwen3_nothink",
}
TYPES = ["GLOBAL", "NOISE", "LANDMARK", "NOISE", None, "NOISE"]


def samples(lf):
    """Return conversations of 2, 4 and 6 messages."""
    return [lf.dialogue(TYPES[: 2 * number], words=2 + number, first_mark=8 * number) for number in (1, 2, 3)]


def predict_args(lf, directory, data, model=None, **more):
    data_dir = lf.write_data(directory, data=data)
    return lf.args(data_dir, None, model, eval_dataset="data", **{**PREDICT, **more})


def predictions(args):
    lines = (Path(args["output_dir"]) / "generated_predictions.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def run(lf, args, *settings):
    """Run LLaMA-Factory; return its predictions."""
    from llamafactory.train.tuner import run_exp

    from hsa_factory.llamafactory import integrate

    with integrate(*settings):
        run_exp(dict(args))
    return predictions(args)


def generate_alone(lf, args, prepared, row, config):
    """Return what the model with HSA makes of one prompt, without any padding."""
    model = lf.model(Path(args["model_name_or_path"]), config)
    turns = {"turn_ids": torch.tensor([row["turn_ids"]])} if "turn_ids" in row else {}
    tokenizer = prepared.tokenizer
    extra = tokenizer.convert_tokens_to_ids([str(token) for token in tokenizer._extra_special_tokens])
    output = model.generate(
        input_ids=torch.tensor([row["input_ids"]]),
        attention_mask=torch.ones(1, len(row["input_ids"]), dtype=torch.long),
        semantic_ids=torch.tensor([row["semantic_ids"]]),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=[tokenizer.eos_token_id, *extra],
        pad_token_id=tokenizer.pad_token_id,
        **turns,
    )
    return tokenizer.decode(output[0, len(row["input_ids"]) :], skip_special_tokens=True)


def eval_rows(lf, args, *settings):
    prepared = lf.prepare(args, *settings)
    return prepared, prepared.rows("eval")


# -- data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["qwen3", "qwen3_nothink", "llama3", "gemma"])
def test_rows_are_those_of_plain_llamafactory_with_types(lf, tmp_path, template):
    data = [{"messages": messages, "system": lf.MARKS[0]} for messages in samples(lf)]
    args = predict_args(lf, tmp_path, data, template=template)
    _, plain = eval_rows(lf, args)
    prepared, typed = eval_rows(lf, args, HSA)
    marks = lf.mark_ids(prepared.tokenizer)
    assert len(plain) == len(typed) == 3
    for number, (theirs, ours) in enumerate(zip(plain, typed), start=1):
        assert list(ours["input_ids"]) == theirs["input_ids"] and list(ours["labels"]) == theirs["labels"]
        assert len(ours["semantic_ids"]) == len(ours["input_ids"])
        found = {}
        for token, kind in zip(ours["input_ids"], ours["semantic_ids"]):
            if token in marks:
                found.setdefault(marks[token], set()).add(kind)
        wanted = {0: {0}, **{8 * number: {0}, 8 * number + 1: {2}, 8 * number + 2: {1}}}
        wanted |= {8 * number + 3: {2}, 8 * number + 4: {1}}
        assert found == {mark: wanted[mark] for mark in (0, *range(8 * number, 8 * number + 2 * number - 1))}
    account = prepared.report["eval_datasets"]["data"]
    assert (account["samples"], account["kept"], account["trained_tokens"]) == (3, 3, 0)


@pytest.mark.parametrize("template", ["qwen3", "qwen3_nothink", "glm4"])
def test_turns_of_prompts(lf, tmp_path, template):
    """The reply that is asked for is not among them; a cut takes them from the end, as the ids."""
    args = predict_args(lf, tmp_path, samples(lf), template=template)
    prepared, rows = eval_rows(lf, args, TURNS)
    marks = lf.mark_ids(prepared.tokenizer)
    for number, row in enumerate(rows, start=1):
        turns = list(row["turn_ids"])
        assert len(turns) == len(row["input_ids"]) and turns == sorted(turns) and turns[-1] == number - 1
        found = {marks[token] - 8 * number: turn for token, turn in zip(row["input_ids"], turns) if token in marks}
        assert found == {place: place // 2 for place in range(2 * number - 1)}
    _, cut = eval_rows(lf, args | {"cutoff_len": 20, "output_dir": str(tmp_path / "cut")}, TURNS)
    assert len(cut[2]["input_ids"]) < len(rows[2]["input_ids"])
    assert list(cut[2]["turn_ids"]) == list(rows[2]["turn_ids"])[: len(cut[2]["input_ids"])]


def test_parts_and_rules_type_prompts_too(lf, tmp_path):
    messages = [lf.say("user", f"{lf.MARKS[1]} <think>{lf.MARKS[2]}</think>"), lf.say("assistant", lf.MARKS[3])]
    config = HSAConfig(rules=[{"tag": "think", "type": "NOISE"}])
    prepared, (row,) = eval_rows(lf, predict_args(lf, tmp_path, [messages]), config)
    marks = lf.mark_ids(prepared.tokenizer)
    kinds = {marks[token]: kind for token, kind in zip(row["input_ids"], row["semantic_ids"]) if token in marks}
    assert kinds == {1: 0, 2: 2}


def test_broken_conversations_are_counted(lf, tmp_path):
    data = [*samples(lf), [lf.say("assistant", "a"), lf.say("user", "b")]]
    prepared, rows = eval_rows(lf, predict_args(lf, tmp_path, data), HSA)
    assert len(rows) == 3 and sum(prepared.report["eval_datasets"]["data"]["dropped"].values()) == 1


def test_a_prompt_whose_picture_would_be_cut_is_dropped(lf, tmp_path):
    images = lf.images(tmp_path / "images", [(56, 56), (56, 56)])
    texts = [lf.MARKS[1] * 3 + "<image>", lf.MARKS[2] * 200 + "<image>"]
    data = [
        {"messages": [lf.say("user", text), lf.say("assistant", lf.MARKS[3])], "images": [image]}
        for text, image in zip(texts, images)
    ]
    args = predict_args(lf, tmp_path, data, lf.model_dir("qwen2_5_vl"), template="qwen2_vl", cutoff_len=100)
    prepared, rows = eval_rows(lf, args, HSA)
    assert len(rows) == 1
    assert prepared.report["eval_datasets"]["data"]["dropped"] == {"media do not fit into cutoff_len": 1}


# -- answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [HSA, TURNS])
def test_predictions_are_those_of_generate(lf, tmp_path, config):
    """Of prompts of different lengths, in different turns, padded on the left by LLaMA-Factory."""
    args = predict_args(lf, tmp_path, samples(lf))
    prepared, rows = eval_rows(lf, args, config)
    expected = [generate_alone(lf, args, prepared, row, config) for row in rows]
    found = run(lf, args, config)
    assert [line["predict"] for line in found] == expected
    assert len(set(expected)) == 3
    metrics = json.loads((Path(args["output_dir"]) / "predict_results.json").read_text("utf-8"))
    assert "predict_bleu-4" in metrics

    plain = run(lf, args, None, FEEDBACK)
    assert [line["predict"] for line in plain] != expected


def test_rules_that_read_the_answer(lf, tmp_path):
    config = HSAConfig(rules=[{"role": "assistant", "tag": "think", "type": "NOISE"}])
    assert len(run(lf, predict_args(lf, tmp_path, samples(lf)), config)) == 3


def test_pictures(lf, tmp_path):
    data = lf.with_pictures(samples(lf), tmp_path / "images")
    args = predict_args(lf, tmp_path, data, lf.model_dir("qwen2_5_vl"), template="qwen2_vl")
    args["per_device_eval_batch_size"] = 1
    alone = run(lf, args, HSA)
    args["per_device_eval_batch_size"] = 3
    args["output_dir"] += "-batch"
    assert [line["predict"] for line in run(lf, args, HSA)] == [line["predict"] for line in alone]
    assert len({line["predict"] for line in alone}) > 1


def test_evaluation_while_training(lf, tmp_path):
    data_dir = lf.write_data(tmp_path, data=samples(lf))
    more = {
        **PREDICT,
        "do_train": True,
        "do_predict": False,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "max_steps": 2,
        "generation_max_length": 96,  # LLaMA-Factory takes `cutoff_len` otherwise, and the model never ends
    }
    args = lf.args(data_dir, "data", eval_dataset="data", **more)
    losses = lf.train(args, HSA, FEEDBACK)
    state = json.loads((Path(args["output_dir"]) / "trainer_state.json").read_text("utf-8"))
    assert len(losses) == 2
    assert len([entry for entry in state["log_history"] if "eval_bleu-4" in entry]) == 2


def test_references_are_not_masked_by_feedback(lf, tmp_path):
    """Not even where reference and prompt happen to be equally long."""
    messages = [lf.say("user", lf.MARKS[1]), lf.say("assistant", lf.MARKS[2] * 4 + lf.MARKER + lf.MARKS[3])]
    prepared, (row,) = eval_rows(lf, predict_args(lf, tmp_path, [messages]), HSA, FEEDBACK)
    extra = len(row["input_ids"]) - len(row["labels"])
    messages[1]["content"] = lf.MARKS[2] * (4 + extra) + lf.MARKER + lf.MARKS[3]
    prepared, (row,) = eval_rows(lf, predict_args(lf, tmp_path / "again", [messages]), HSA, FEEDBACK)
    assert len(row["input_ids"]) == len(row["labels"])
    batch = lf.collator(prepared, HSA, FEEDBACK, pad_to_multiple_of=None)([row])
    assert batch["labels"][0].tolist() == list(row["labels"])
    assert batch["semantic_ids"].shape == batch["input_ids"].shape
