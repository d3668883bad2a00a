"""Conversations as agents leave them: labelled and then trained, or trained as they are with rules, they are the same."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from hsa_factory import HSAConfig, cli
from hsa_factory.labeling.formats import DatasetFormat, read_sample
from hsa_factory.labeling.trajectories.composed import DEFAULT_WORDS, KEPT_TEXT, NOT_TRAINED
from hsa_factory.labeling.turn_order import broken_order
from hsa_factory.llamafactory.data.trajectories import template_words


FILES = Path(__file__).parents[2] / "labeling" / "trajectories" / "files"
RAW = ("swe_rebench.jsonl", "swe_smith.jsonl", "anthropic.jsonl", "responses.jsonl", "responses_parts.jsonl")
RAW += ("developer.jsonl", "functions.jsonl", "agent_gym.json", "swe_agent_rows.jsonl")
G, L, N = 0, 1, 2


def register(directory, *names):
    """Label files, and register each raw under the same entry; return the names of the raw ones and of the others."""
    for name in names:
        stem = name.split(".")[0]
        arguments = ["label", FILES / name, "--rules", "tool-calls", "--out", directory / f"{stem}_typed.jsonl"]
        assert cli.main([*map(str, arguments), "--register", "--workers", "1"]) == 0
        path = directory / "dataset_info.json"
        info = json.loads(path.read_text("utf-8"))
        info[stem] = {**info[f"{stem}_typed"], "file_name": name}
        path.write_text(json.dumps(info), "utf-8")
        (directory / name).write_bytes((FILES / name).read_bytes())
    stems = [name.split(".")[0] for name in names]
    return ",".join(stems), ",".join(f"{stem}_typed" for stem in stems)


def test_raw_with_rules_is_labelled(lf, tmp_path, capsys):
    raw, typed = register(tmp_path, *RAW)
    capsys.readouterr()
    prepared = [
        lf.prepare(lf.args(tmp_path, raw), HSAConfig(rules="tool-calls")),
        lf.prepare(lf.args(tmp_path, typed), HSAConfig()),
    ]
    assert f"  swe_rebench: {KEPT_TEXT}: 2" in capsys.readouterr().out
    rows = [[(row["input_ids"], row["labels"], row["semantic_ids"]) for row in p.rows()] for p in prepared]
    assert rows[0] == rows[1] and len(rows[0]) == len(RAW) + 1  # swe_rebench has two samples
    assert prepared[0].counts_of("swe_rebench")["notes"] == {KEPT_TEXT: 2}
    assert prepared[0].counts_of("agent_gym")["notes"] == {NOT_TRAINED: 1}
    assert prepared[1].counts_of("swe_rebench_typed")["notes"] == {}


def test_thoughts_texts_and_calls_stand_in_their_places(lf, tmp_path):
    register(tmp_path, "anthropic.jsonl")
    prepared = lf.prepare(lf.args(tmp_path, "anthropic"), HSAConfig(rules="tool-calls"))
    (row,) = prepared.rows()
    text = prepared.text(row["input_ids"])
    reply = (
        "<|im_start|>assistant\n<think>\nHm.\n</think>\n\nI look.\n"
        '<tool_call>\n{"name": "ls", "arguments": {"path": "."}}\n</tool_call>\n'
        '<tool_call>\n{"name": "ls", "arguments": {"path": "/"}}\n</tool_call><|im_end|>'
    )
    assert reply in text and '"parameters": {"type": "object"}' in text
    assert "<tool_response>\na.py\n</tool_response>\n<tool_response>\nb\n\ngo on\n</tool_response>" in text
    thought = prepared.tokenizer("Hm.\n</think>", add_special_tokens=False)["input_ids"]
    start = next(k for k in range(len(row["input_ids"])) if row["input_ids"][k : k + len(thought)] == thought)
    assert set(row["semantic_ids"][start : start + len(thought)]) == {N}
    assert {G, L, N} == set(row["semantic_ids"])


def test_loss_flags_keep_replies_out_of_the_loss(lf, tmp_path):
    register(tmp_path, "agent_gym.json")
    prepared = lf.prepare(lf.args(tmp_path, "agent_gym"), HSAConfig(rules="react"))
    (row,) = prepared.rows()
    places = zip(row["input_ids"], row["labels"], row["loss_mask"], strict=True)
    trained = prepared.text([token for token, label, mask in places if label != -100 and mask])
    assert "go to desk 1" in trained and "OK." not in trained


def test_a_session_is_refused_with_what_to_do(lf, tmp_path):
    entry = {"formatting": "openai", "columns": {"messages": "messages"}, "tags": lf.TAGS}
    lines = list(map(json.loads, (FILES / "session.jsonl").read_text("utf-8").splitlines()))
    lf.write_data(tmp_path, data=(entry, lines))
    with pytest.raises(ValueError, match=r"dataset 'data', sample 0, a line of a session trace.*hsa-factory label"):
        lf.prepare(lf.args(tmp_path, "data"), HSAConfig())


def test_words_are_those_of_the_template():
    assert template_words("qwen3") == template_words(None) == template_words("none") == DEFAULT_WORDS
    assert template_words("gpt_oss").thought[0] == "<|channel|>analysis<|message|>"
    assert template_words("lfm2").call == ("<|tool_call_start|>", "<|tool_call_end|>")


@pytest.mark.parametrize("formatting", ["sharegpt", "openai"])
@pytest.mark.parametrize("ranking", [False, True])
def test_what_is_said_to_be_left_out_is_left_out(formatting, ranking):
    """Conversations of random roles, against LLaMA-Factory's own converters."""
    from llamafactory.data.converter import DATASET_CONVERTERS
    from llamafactory.data.parser import DatasetAttr

    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    tags |= {"observation_tag": "tool", "function_tag": "call", "system_tag": "system"}
    entry = {"formatting": formatting, "ranking": ranking, "columns": {"messages": "messages"}, "tags": tags}
    entry["columns"] |= {"chosen": "chosen", "rejected": "rejected"} if ranking else {}
    attributes = DatasetAttr("file", "data", formatting, ranking=ranking)
    attributes.join(entry)
    convert = DATASET_CONVERTERS[formatting](attributes, SimpleNamespace(media_dir=""))
    dataset_format, rng = DatasetFormat.from_entry(entry), random.Random(0)
    reply = {"role": "assistant", "content": "r"}
    seen = set()
    for _ in range(600):
        pairs = [(rng.choice(["user", "tool"]), rng.choice(["assistant", "call"])) for _ in range(rng.randrange(4))]
        roles = [*rng.choice([[], ["system"]]), *(role for pair in pairs for role in pair)]
        for _ in range(rng.randrange(3)):
            roles.insert(rng.randrange(len(roles) + 1), rng.choice(["system", "user", "tool", "assistant", "call"]))
        sample = {"messages": [{"role": role, "content": "x"} for role in roles]}
        sample |= {"chosen": reply, "rejected": reply} if ranking else {}
        converted = convert(dict(sample))
        fault = broken_order(read_sample(sample, dataset_format), dataset_format)
        assert (fault is not None) == (not converted["_prompt"]), (roles, fault)
        seen.add(fault)
    assert len(seen) > 5
