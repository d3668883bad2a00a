"""`hsa-factory pairs`: pairs of any file, whole or not at all, ready to train on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_files import SUFFIXES, load, write

from hsa_factory import cli
from hsa_factory.labeling import job, records
from hsa_factory.labeling.formats import DatasetFormat, read_sample


F = "<|feedback|>"
EMBODIED = Path(__file__).parents[2].parent / "shared" / "data" / "embodied"
TALK = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "<image>q שלום \u202e🙂 \\n"},
    {"role": "assistant", "content": "<act>A</act>", "semantic_type": "NOISE"},
    {"role": "user", "content": f"{F} no<image>"},
    {"role": "assistant", "content": "<act>B</act>", "semantic_type": "LANDMARK"},
]
PAIR = {
    "messages": TALK[:2],
    "images": ["0.jpg"],
    "chosen": TALK[4],
    "rejected": TALK[2],
}


def samples(number):
    return [{"messages": TALK, "images": ["0.jpg", "1.jpg"], "id": k} for k in range(number)]


def run(*arguments):
    return cli.main(["pairs", *map(str, arguments)])


def without_nulls(value):
    """Return data without the keys that a table adds."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return list(map(without_nulls, value)) if isinstance(value, list) else value


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("out_suffix", SUFFIXES)
def test_every_format(tmp_path, suffix, out_suffix):
    rows = samples(5)
    for row in rows[:2]:  # a chunk may have nothing to give
        row |= {"messages": TALK[:2] + TALK[4:], "images": ["0.jpg"]}
    source, out = write(tmp_path / f"in{suffix}", rows), tmp_path / f"out{out_suffix}"
    assert run(source, "--out", out, "--workers", 1) == 0
    assert without_nulls(load(out)) == [PAIR | {"id": number} for number in (2, 3, 4)]
    assert sorted(os.listdir(tmp_path)) == sorted({source.name, out.name})


def test_processes_give_what_one_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "CHUNK_SAMPLES", 2)
    source = write(tmp_path / "in.jsonl", samples(7))
    assert run(source, "--out", tmp_path / "one.jsonl", "--workers", 1) == 0
    assert run(source, "--out", tmp_path / "two.jsonl", "--workers", 2) == 0
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_pictures_in_a_table(tmp_path, monkeypatch):
    """Their bytes stay bytes, and rows that hold them are read few at a time."""
    monkeypatch.setattr(records, "CHUNK_BYTES", 3000)
    rows = samples(4)
    for row in rows:
        row["images"] = [{"bytes": os.urandom(1000), "path": None} for _ in range(2)]
    source, out = write(tmp_path / "in.parquet", rows), tmp_path / "out.parquet"
    assert [chunk.samples.num_rows for chunk in records.read_chunks([str(source)])] == [1] * 4
    assert run(source, "--out", out, "--workers", 1) == 0
    assert [pair["images"] for pair in load(out)] == [row["images"][:1] for row in rows]
    assert run(source, "--out", tmp_path / "out.json", "--workers", 1) == 2


def test_registered_and_read_again(tmp_path, capsys):
    entry = {"file_name": "raw.json", "formatting": "sharegpt", "columns": {"messages": "talk", "images": "pictures"}}
    entry["tags"] = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry["tags"]["system_tag"] = "system"
    write(tmp_path / "raw.json", [{"talk": TALK, "pictures": ["0.jpg", "1.jpg"]}])
    info = write(tmp_path / "dataset_info.json", {"raw": entry})
    assert run(tmp_path, "--dataset", "raw", "--out", tmp_path / "pairs.json", "--register") == 0
    described = json.loads(info.read_text("utf-8"))["pairs"]
    assert described == {
        "file_name": "pairs.json",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "talk", "chosen": "chosen", "rejected": "rejected", "images": "pictures"},
        "tags": entry["tags"],
    }
    (pair,) = load(tmp_path / "pairs.json")
    turns = read_sample(pair, DatasetFormat.from_entry(described))
    assert [turn.message.role for turn in turns] == ["system", "user", "assistant", "assistant"]
    assert "1 sample; 5 messages, 1 feedback turn: 1 pair" in capsys.readouterr().out
    assert run(tmp_path, "--dataset", "pairs", "--out", tmp_path / "again.json") == 2
    assert "are pairs already (`ranking`)" in capsys.readouterr().err


def test_what_is_left_out_is_said(tmp_path, capsys):
    rows = [{"messages": TALK[:3]}, {"messages": [*TALK[:4], TALK[2]]}, {"messages": TALK}, {"messages": 3}]
    source = write(tmp_path / "in.jsonl", rows)
    for row in rows[:3]:
        row["images"] = ["0.jpg"] * sum("<image>" in entry["content"] for entry in row["messages"])
    write(source, rows)
    assert run(source, "--out", tmp_path / "out.jsonl") == 1
    assert "line 4: messages: expected a list of messages, got 3" in capsys.readouterr().err
    assert run(source, "--out", tmp_path / "out.jsonl", "--skip-bad") == 0
    printed = capsys.readouterr().out
    assert f"3 samples, 1 of them without {F}; 13 messages, 2 feedback turns: 1 pair" in printed
    assert "1: the correction is the mistake again (first: line 2, turn 3)" in printed
    assert "1 sample was left out" in printed and "line 4: messages: expected" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.json", "--out", "o.json", "--token", "[F]"], "no feedback in 1 sample,"),
        (["in.json", "--out", "o.json", "--scope", "assistant"], "another --scope"),
        (["in.json", "--out", "o.json", "--token", "a b"], "PairOptions.token = 'a b'"),
        (["in.json", "--out", "o.txt"], "must end with .json, .jsonl, .parquet"),
        (["in.json", "--out", "in.json"], "exists. Use --overwrite"),
        (["none.json", "--out", "o.json"], "there is no such file"),
    ],
)
def test_arguments(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.json", samples(1))
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err and os.listdir(tmp_path) == ["in.json"]


def test_help(capsys):
    for arguments in (["pairs", "--help"], ["--help"]):
        try:
            cli.main(arguments)
        except SystemExit as ended:
            assert ended.code == 0
    said = capsys.readouterr().out
    assert "the next\none the correction" in said and "pairs IN --out OUT" in said


@pytest.mark.usefixtures("small_chunks")
def test_it_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    source, out = write(tmp_path / "in.jsonl", samples(6)), tmp_path / "out.jsonl"
    stock = job._process_chunk

    def stop(chunk):
        if chunk.index == 2:
            raise KeyboardInterrupt
        stock(chunk)

    monkeypatch.setattr(job, "_process_chunk", stop)
    assert run(source, "--out", out, "--workers", 1) == 130 and not out.exists()
    monkeypatch.undo()
    monkeypatch.setattr(records, "CHUNK_SAMPLES", 2)
    assert run(source, "--out", out, "--workers", 1) == 0
    printed = capsys.readouterr().out
    assert "2 chunks of samples were there" in printed and "6 feedback turns: 6 pairs" in printed
    assert [pair["id"] for pair in load(out)] == list(range(6))


def test_a_kill_leaves_the_former_result(tmp_path):
    source, out = write(tmp_path / "in.jsonl", samples(20_000)), tmp_path / "out.jsonl"
    out.write_text("former", "utf-8")
    command = [sys.executable, "-m", "hsa_factory.cli", "pairs", source, "--out", out, "--overwrite", "--workers", 2]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    partial = tmp_path / "out.jsonl.partial"
    deadline = time.time() + 60
    while not list(partial.glob("*.summary.json")) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert out.read_text("utf-8") == "former" and partial.is_dir()
    assert run(source, "--out", out, "--overwrite", "--workers", 1) == 0
    assert [pair["id"] for pair in load(out)] == list(range(20_000))


@pytest.mark.skipif(not EMBODIED.is_dir(), reason="../shared is absent")
@pytest.mark.parametrize(("failed", "number"), [("follow", 22), ("keep", 22), ("drop", 13)])
def test_real_trajectories(tmp_path, failed, number):
    out = tmp_path / "out.json"
    assert run(EMBODIED, "--dataset", "embodied", "--out", out, "--failed", failed, "--workers", 1) == 0
    made = load(out)
    assert len(made) == number
    raw = json.loads((EMBODIED / "embodied.json").read_text("utf-8"))
    for pair in made:
        prompt = pair["messages"]
        beginnings = [sample["messages"] for sample in raw if sample["messages"][: len(prompt)] == prompt]
        assert any(
            whole[len(prompt)] == pair["rejected"]
            and F in whole[len(prompt) + 1]["content"]
            and pair["chosen"] in whole[len(prompt) + 2 :]
            for whole in beginnings
        )
        assert len(pair["images"]) == sum(entry["content"].count("<image>") for entry in prompt)


def test_replies_of_parallel_calls_in_a_table(tmp_path):
    """What they are joined to has spans, for which the table read has no place."""
    calls = [{"function": {"name": "go", "arguments": "{}"}}] * 2
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    talk += [{"role": "tool", "content": kind, "semantic_type": kind} for kind in ("NOISE", "GLOBAL")]
    talk += [{"role": "assistant", "content": f"A{F}B"}]
    out = tmp_path / "out.parquet"
    assert run(write(tmp_path / "in.parquet", [{"messages": talk}]), "--out", out, "--workers", 1) == 0
    (pair,) = load(out)
    assert pair["messages"][2]["semantic_spans"] == [{"start": 0, "end": 5, "semantic_type": "NOISE"}]
    assert pair["chosen"]["content"] == "B" and pair["messages"][1]["role"] == "function_call"
