"""`hsa-factory label`: files in, files out, nothing lost, nothing half-written, everything wrong said."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_files import SUFFIXES, load, write

from hsa_factory import cli
from hsa_factory.labeling import job


RULES = [
    {"name": "system", "role": "system", "type": "GLOBAL"},
    {"name": "task", "role": "user", "turn": "first", "type": "GLOBAL"},
    {"name": "act", "tag": "act", "verbs": ["take"], "type": "LANDMARK"},
    {"name": "rest", "role": ["assistant", "observation"], "type": "NOISE"},
    {"name": "call", "role": "function", "type": "LANDMARK"},
]
ODD = "<script>alert('<act>')</act></script> שלום \u202e冰箱 👩‍👧 e\u0301 \u0000 <image> &amp; \\n"
TALK = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": ODD},
    {"role": "assistant", "content": "so <act>take x</act>", "weight": 0},
    {"role": "user", "content": "on", "semantic_type": "KEY_EVENT"},
    {"role": "assistant", "content": "<act>take y</act>"},
    {"role": "user", "content": "off"},
    {"role": "assistant", "content": ""},
]
TYPES = ["GLOBAL", "GLOBAL", "NOISE", "KEY_EVENT", "LANDMARK", None, "NOISE"]


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(json.dumps(RULES), "utf-8")
    return str(path)


def run(*arguments):
    return cli.main(["label", *map(str, arguments)])


def label(source, rules, out, *more):
    assert run(source, "--rules", rules, "--out", out, "--workers", 1, *more) == 0
    return load(out)


def without_types(value):
    """Return data without the keys that labelling adds, and without those that a table adds."""
    if isinstance(value, dict):
        added = ("semantic_type", "semantic_spans", "semantic_types")
        return {k: without_types(v) for k, v in value.items() if k not in added and v is not None}
    return list(map(without_types, value)) if isinstance(value, list) else value


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("out_suffix", SUFFIXES)
@pytest.mark.parametrize("workers", [1, 2])
def test_every_format(tmp_path, rules, suffix, out_suffix, workers):
    samples = [{"messages": TALK, "images": [f"{k}.jpg"], "id": k} for k in range(5)]
    source, out = write(tmp_path / f"in{suffix}", samples), tmp_path / f"out{out_suffix}"
    assert run(source, "--rules", rules, "--out", out, "--workers", workers) == 0
    result = load(out)
    assert without_types(result) == without_types(samples)
    assert [[message["semantic_type"] for message in sample["messages"]] for sample in result] == [TYPES] * 5
    assert result[3]["messages"][2]["semantic_spans"] == [{"start": 3, "end": 20, "semantic_type": "LANDMARK"}]
    assert sorted(os.listdir(tmp_path)) == sorted({"rules.yaml", source.name, out.name})


def test_text_stays_byte_for_byte(tmp_path, rules):
    odd = {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": ODD}]}
    source = write(tmp_path / "in.jsonl", [{"messages": TALK}, odd])
    assert without_types(label(source, rules, tmp_path / "out.jsonl")) == without_types([{"messages": TALK}, odd])
    assert ODD.replace("\\", "\\\\").split("\0")[0] in (tmp_path / "out.jsonl").read_text("utf-8")  # not escaped


@pytest.mark.parametrize("where", ["content", "a key of another column"])
def test_half_a_character_is_refused_as_in_training(tmp_path, rules, capsys, where):
    half = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    if where == "content":
        half["messages"][0]["content"] = "half \ud83d"
    else:
        half["meta"] = {"\ud800": 1}
    source, out = write(tmp_path / "in.jsonl", [{"messages": TALK}, half]), tmp_path / "out.jsonl"
    assert run(source, "--rules", rules, "--out", out) == 1 and not out.exists()
    said = capsys.readouterr().err
    assert "is half of a character (a surrogate), which no tokenizer reads" in said and "line 2" in said
    assert ("messages[0].content: " if where == "content" else "a key: ") in said


def test_the_first_sample_tells_readers_that_there_are_spans(tmp_path, rules):
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    source = write(tmp_path / "in.json", [{"messages": plain}] * 2)
    first, second = label(source, rules, tmp_path / "out.json")
    assert first["messages"][0]["semantic_spans"] == [{"start": 0, "end": 0, "semantic_type": "GLOBAL"}]
    assert all("semantic_spans" not in message for message in second["messages"])


class TestLayouts:
    def test_sharegpt_with_a_system_column(self, tmp_path, rules):
        talk = [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{}"}]
        talk += [{"from": "observation", "value": "c"}, {"from": "gpt", "value": "d"}]
        source = write(tmp_path / "in.json", [{"conversations": talk, "system": "s"}])
        (sample,) = label(source, rules, tmp_path / "out.json")
        assert [message["semantic_type"] for message in sample["conversations"]] == [
            "GLOBAL",
            "LANDMARK",
            "NOISE",
            "NOISE",
        ]
        assert [entry["semantic_type"] for entry in sample["semantic_types"]] == ["GLOBAL"]

    def test_openai(self, tmp_path, rules):
        call = {"id": "1", "function": {"name": "go", "arguments": {"a": 1}}}
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        talk += [{"role": "tool", "content": "c"}, {"role": "assistant", "content": "d"}]
        source = write(tmp_path / "in.json", [{"messages": talk}])
        (sample,) = label(source, rules, tmp_path / "out.json", "--register")
        assert [message["semantic_type"] for message in sample["messages"]] == ["GLOBAL", "LANDMARK", "NOISE", "NOISE"]
        entry = json.loads((tmp_path / "dataset_info.json").read_text("utf-8"))["out"]
        assert entry["formatting"] == "openai" and entry["tags"]["observation_tag"] == "tool"

    def test_alpaca(self, tmp_path, rules):
        sample = {
            "instruction": "a",
            "input": "b",
            "output": "<act>take</act> c",
            "history": [["d", "e"]],
            "system": "s",
        }
        (result,) = label(write(tmp_path / "in.json", [sample]), rules, tmp_path / "out.json", "--register")
        assert without_types(result) == sample
        assert [(entry["role"], entry["semantic_type"]) for entry in result["semantic_types"]] == [
            ("system", "GLOBAL"),
            ("user", "GLOBAL"),
            ("assistant", "NOISE"),
            ("user", None),
            ("assistant", "NOISE"),
        ]
        assert result["semantic_types"][-1]["semantic_spans"] == [{"start": 0, "end": 15, "semantic_type": "LANDMARK"}]
        entry = json.loads((tmp_path / "dataset_info.json").read_text("utf-8"))["out"]
        assert entry["columns"]["history"] == "history" and entry["tags"] == {"semantic_tag": "semantic_type"}

    def test_rankings(self, tmp_path, rules):
        replies = {"chosen": {"from": "gpt", "value": "<act>take</act>"}, "rejected": {"from": "gpt", "value": "b"}}
        source = write(tmp_path / "in.json", [{"conversations": [{"from": "human", "value": "a"}], **replies}])
        (sample,) = label(source, rules, tmp_path / "out.json")
        assert (sample["chosen"]["semantic_type"], sample["rejected"]["semantic_type"]) == ("LANDMARK", "NOISE")

    def test_lists_of_parts(self, tmp_path, rules):
        content = [
            {"type": "text", "text": "a <act>"},
            {"type": "image", "image": "x.jpg", "semantic_type": "GLOBAL"},
            "take</act>",
        ]
        talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": content}]
        (sample,) = label(write(tmp_path / "in.jsonl", [{"messages": talk}]), rules, tmp_path / "out.jsonl")
        message = sample["messages"][1]
        assert message["content"] == content and message["semantic_type"] == "NOISE"
        assert message["semantic_spans"] == [{"start": 7, "end": 14, "semantic_type": "GLOBAL"}]

    def test_an_entry_of_dataset_info(self, tmp_path, rules, capsys):
        talk = [{"who": "h", "says": "a"}, {"who": "m", "says": "<act>take</act>"}]
        write(tmp_path / "raw.json", [{"talk": talk}])
        tags = {"role_tag": "who", "content_tag": "says", "user_tag": "h", "assistant_tag": "m"}
        entry = {"file_name": "raw.json", "formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": tags}
        info = write(
            tmp_path / "dataset_info.json",
            {"raw": entry, "other": {"file_name": "none.json"}, "hub": {"hf_hub_url": "x"}},
        )
        (sample,) = label(info, rules, tmp_path / "typed.json", "--dataset", "raw", "--register")
        assert [message["semantic_type"] for message in sample["talk"]] == ["GLOBAL", "LANDMARK"]
        registered = json.loads(info.read_text("utf-8"))
        assert registered["typed"] == {
            **entry,
            "file_name": "typed.json",
            "tags": {**tags, "semantic_tag": "semantic_type"},
        }
        assert list(registered) == ["raw", "other", "hub", "typed"]
        for name, message in (
            ("none", "has no such data set; it has 'raw', 'other', 'hub', 'typed'"),
            ("other", "none.json: there is no such file"),
            ("hub", "only files can be read"),
        ):
            assert run(info, "--dataset", name, "--rules", rules, "--out", tmp_path / "o.json") == 2
            assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("sample", "message"),
        [
            ({"text": "a"}, "expected `messages`, `conversations`, or `instruction` and `output`, found 'text'"),
            (
                {"messages": [{"speaker": "a", "content": "b"}]},
                "expected messages with `role` and `content`, or `from`",
            ),
            ({"messages": [{"role": "user", "content": "a"}, {"role": "human", "content": "a"}]}, "has several names"),
        ],
    )
    def test_what_is_not_known_is_to_be_described(self, tmp_path, rules, capsys, sample, message):
        source = write(tmp_path / "in.json", [sample])
        assert run(source, "--rules", rules, "--out", tmp_path / "out.json") == 2
        error = capsys.readouterr().err
        assert message in error and "dataset_info.json" in error


class TestBadInput:
    def lines(self, tmp_path):
        good = json.dumps({"messages": TALK})
        path = tmp_path / "in.jsonl"
        bad = [
            '{"messages": [',
            '{"messages": 3}',
            '{"messages": [{"role": "robot", "content": "a"}]}',
            '{"messages": [{"role": "user"}]}',
            "[]",
        ]
        path.write_bytes("\n".join([good, *bad, good, ""]).encode() + b'{"messages": "\xff"}\n')
        return path

    MESSAGES = [
        "line 2: not JSON: Expecting value at character 14",
        "line 3: messages: expected a list of messages, got 3",
        "line 4: turn 0: role = 'robot' is not allowed: one of 'user', 'assistant'",
        "line 5: turn 0: 'content' (content_tag) is missing; it has 'role'",
        "line 6: expected an object, got []",
        "line 8: not UTF-8: invalid start byte at byte 14",
    ]

    def test_the_first_stops(self, tmp_path, rules, capsys):
        assert run(self.lines(tmp_path), "--rules", rules, "--out", tmp_path / "out.jsonl") == 1
        error = capsys.readouterr().err
        assert self.MESSAGES[0] in error and "--skip-bad" in error
        assert not (tmp_path / "out.jsonl").exists()

    @pytest.mark.usefixtures("small_chunks")
    @pytest.mark.parametrize("workers", [1, 2])
    def test_all_are_left_out_and_counted_if_asked_for(self, tmp_path, rules, capsys, workers):
        source, out = self.lines(tmp_path), tmp_path / "out.jsonl"
        assert run(source, "--rules", rules, "--out", out, "--skip-bad", "--workers", workers) == 0
        printed = capsys.readouterr().out
        assert len(load(out)) == 2 and "6 samples were left out" in printed
        for message in self.MESSAGES:
            assert message in printed

    def test_nothing_but_bad_samples(self, tmp_path, rules, capsys):
        path = tmp_path / "in.jsonl"
        path.write_text('{"messages": 3}\n', "utf-8")
        entry = {"file_name": "in.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}}
        info = write(tmp_path / "dataset_info.json", {"in": entry})
        out = tmp_path / "out.jsonl"
        assert run(info, "--dataset", "in", "--rules", rules, "--out", out, "--skip-bad") == 2
        assert (
            "in.jsonl: there is no sample: all 1 were left out, first line 1: messages: expected"
            in capsys.readouterr().err
        )
        assert sorted(os.listdir(tmp_path)) == ["dataset_info.json", "in.jsonl", "rules.yaml"]

    @pytest.mark.parametrize("text", ["", "[]", "\n"])
    def test_an_empty_data_set(self, tmp_path, rules, capsys, text):
        path = tmp_path / "in.json"
        path.write_text(text, "utf-8")
        assert run(path, "--rules", rules, "--out", tmp_path / "out.json") == 2
        assert "there is no sample" in capsys.readouterr().err
        assert not (tmp_path / "out.json").exists()

    def test_a_pattern_that_takes_for_ever(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("hsa_factory.labeling.matching.PATTERN_TIMEOUT", 0.1)
        rules = tmp_path / "slow.yaml"
        rules.write_text("- {name: slow, pattern: '(a|aa)+$', type: 0}", "utf-8")
        talk = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "a" * 60 + "!"}]
        source = write(tmp_path / "in.json", [{"messages": talk}, {"messages": talk[:1]}])
        assert run(source, "--rules", rules, "--out", tmp_path / "out.json", "--workers", 1) == 1
        assert "sample 0: turn 1: rule 'slow': pattern '(a|aa)+$' took longer than 0.1 s" in capsys.readouterr().err
        assert len(label(source, rules, tmp_path / "out.json", "--skip-bad")) == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["none.json", "--rules", "react", "--out", "o.json"], "none.json: there is no such file"),
            (["in.json", "--rules", "reakt", "--out", "o.json"], "Did you mean 'react'"),
            (["in.json", "--rules", "react", "--out", "o.txt"], "must end with .json, .jsonl, .parquet"),
            (["in.json", "--rules", "react", "--out", "in.json"], "exists. Use --overwrite"),
            (["in.json", "--rules", "react", "--out", "o.json", "--workers", "0"], "--workers 0: expected"),
            (["in.json", "--rules", "react", "--out", "o.json", "--tokenizer", "x"], "no tokenizer.json there"),
        ],
    )
    def test_arguments(self, tmp_path, monkeypatch, capsys, arguments, message):
        monkeypatch.chdir(tmp_path)
        write(tmp_path / "in.json", [{"messages": TALK}])
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err

    def test_values_that_json_cannot_hold(self, tmp_path, rules, capsys):
        source = write(tmp_path / "in.parquet", [{"messages": TALK, "image": b"\x00"}])
        assert run(source, "--rules", rules, "--out", tmp_path / "out.json", "--workers", 1) == 2
        assert "JSON cannot hold a value of type bytes; choose a .parquet" in capsys.readouterr().err
        (sample,) = label(source, rules, tmp_path / "out.parquet")
        assert sample["image"] == b"\x00"


class TestSummary:
    def test_counts(self, tmp_path, rules, capsys):
        label(write(tmp_path / "in.json", [{"messages": TALK}]), rules, tmp_path / "out.json")
        printed = capsys.readouterr().out
        assert "1 sample, 7 messages: 5 typed by rules, 1 with types of their own, 1 without a type" in printed
        assert f"GLOBAL {1 + len(ODD)}" in printed and "LANDMARK 36" in printed and "default 3" in printed
        assert "these rules never matched: 'call'" in printed

    def test_tokens(self, tmp_path, rules, capsys, tiny_tokenizer):
        tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
        source = write(tmp_path / "in.json", [{"messages": TALK}])
        label(source, rules, tmp_path / "out.json", "--tokenizer", tmp_path / "tokenizer")
        text = "".join(message["content"] for message in TALK if message["content"] == "off")
        printed = capsys.readouterr().out
        total = sum(len(tiny_tokenizer(m["content"], add_special_tokens=False)["input_ids"]) for m in TALK)
        default = len(tiny_tokenizer(text, add_special_tokens=False)["input_ids"])
        assert f"{total:,} tokens of text" in printed and f"default {default:,}" in printed

    def test_rules_can_be_printed_and_read_again(self, tmp_path, capsys):
        assert run("--rules", "embodied-reasoner", "--print-rules") == 0
        path = tmp_path / "mine.yaml"
        path.write_text(capsys.readouterr().out, "utf-8")
        from hsa_factory.labeling.rule_set import RuleSet

        assert RuleSet.parse(str(path)) == RuleSet.parse("embodied-reasoner")

    def test_the_documented_example(self, tmp_path, capsys):
        examples = Path(__file__).parents[2] / "examples" / "labelling"
        out = tmp_path / "labelled.jsonl"
        assert len(label(examples / "raw.jsonl", "embodied-reasoner", out)) == 12
        assert "12 samples, 160 messages: 160 typed by rules" in capsys.readouterr().out
        assert label(examples / "dataset_info.json", examples / "rules.yaml", out, "--dataset", "raw", "--overwrite")
        printed = capsys.readouterr().out
        assert "these rules never matched: 'feedback'" in printed

    def test_names_are_shown_as_they_are(self, tmp_path, capsys):
        path = tmp_path / "rules.yaml"
        path.write_text("- {name: '[red]a[/red] [/]', type: NOISE}\n- {name: '[b]', type: NOISE}", "utf-8")
        label(write(tmp_path / "in.json", [{"messages": TALK}]), path, tmp_path / "out.json")
        printed = capsys.readouterr().out
        assert "[red]a[/red] [/]" in printed and "never matched: '[b]'" in printed


class TestStopping:
    def data(self, tmp_path, number):
        return write(tmp_path / "in.jsonl", [{"messages": TALK, "id": k} for k in range(number)])

    @pytest.mark.usefixtures("small_chunks")
    def test_what_was_done_is_not_done_again(self, tmp_path, rules, monkeypatch, capsys):
        source, out = self.data(tmp_path, 10), tmp_path / "out.jsonl"
        stock, done = job._process_chunk, []

        def stop_at_3(chunk):
            if chunk.index == 3 and len(done) == 3:
                raise KeyboardInterrupt
            done.append(chunk.index)
            stock(chunk)

        monkeypatch.setattr(job, "_process_chunk", stop_at_3)
        arguments = (source, "--rules", rules, "--out", out, "--workers", 1)
        assert run(*arguments) == 130
        assert "the same command again" in capsys.readouterr().err and not out.exists()
        done.append(None)
        assert run(*arguments) == 0
        assert done == [0, 1, 2, None, 3, 4]
        assert "3 chunks of samples were there" in capsys.readouterr().out
        whole = label(source, rules, tmp_path / "whole.jsonl")
        assert load(out) == whole and [sample["id"] for sample in whole] == list(range(10))
        assert not (tmp_path / "out.jsonl.partial").exists()

    @pytest.mark.usefixtures("small_chunks")
    @pytest.mark.parametrize("change", ["rules", "input", "option"])
    def test_other_rules_or_data_begin_anew(self, tmp_path, rules, monkeypatch, change):
        source, out = self.data(tmp_path, 6), tmp_path / "out.jsonl"
        monkeypatch.setattr(job, "_assemble", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(source, "--rules", rules, "--out", out, "--workers", 1) == 130
        monkeypatch.undo()
        more = ["--skip-bad"] if change == "option" else []
        if change == "rules":
            (tmp_path / "rules.yaml").write_text(json.dumps([{"type": "NOISE"}]), "utf-8")
        if change == "input":
            write(source, [{"messages": TALK, "id": -1}])
        result = label(source, rules, out, *more)
        assert len(result) == (1 if change == "input" else 6)
        assert result[0]["messages"][0]["semantic_type"] == ("NOISE" if change == "rules" else "GLOBAL")

    def test_a_kill_leaves_the_former_result_and_no_process(self, tmp_path, rules):
        source, out = self.data(tmp_path, 20_000), tmp_path / "out.jsonl"
        out.write_text("former", "utf-8")
        command = [
            sys.executable,
            "-m",
            "hsa_factory.cli",
            "label",
            source,
            "--rules",
            rules,
            "--out",
            out,
            "--overwrite",
        ]
        process = subprocess.Popen(list(map(str, [*command, "--workers", 2])), stdout=subprocess.DEVNULL)
        partial = tmp_path / "out.jsonl.partial"
        deadline = time.time() + 60
        while not list(partial.glob("*.summary.json")) and time.time() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert out.read_text("utf-8") == "former" and partial.is_dir()
        result = label(source, rules, out, "--overwrite")
        assert [sample["id"] for sample in result] == list(range(20_000))


def test_two_runs_on_one_output(tmp_path, rules):
    """The second stops and disturbs nothing; a killed one leaves nothing locked."""
    source, out = write(tmp_path / "in.jsonl", [{"messages": TALK, "id": k} for k in range(3)]), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "hsa_factory.cli", "label", "-", "--rules", str(rules), "--out", str(out)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    lock = tmp_path / ".out.jsonl.lock"

    def start():
        """Start a run that waits for its input."""
        process = subprocess.Popen(command, **pipes)
        deadline = time.time() + 60
        while not (lock.exists() and lock.read_text()) and process.poll() is None and time.time() < deadline:
            time.sleep(0.01)
        return process

    first = start()
    second = subprocess.run([*command[:4], str(source), *command[5:]], **pipes | {"stdin": subprocess.DEVNULL})
    assert second.returncode == 2
    assert f"another run (process {first.pid}) is writing {out}. Wait for it to end" in second.stderr.decode()
    assert "Traceback" not in second.stderr.decode()
    first.communicate(source.read_bytes())
    assert first.returncode == 0 and [sample["id"] for sample in load(out)] == [0, 1, 2]
    assert sorted(tmp_path.iterdir()) == sorted([source, out, Path(rules)])

    out.unlink()
    killed = start()
    killed.kill()
    killed.communicate()
    assert lock.exists() and len(label(source, rules, out)) == 3
    assert not lock.exists()


def test_registering_waits_for_the_other_run(tmp_path, rules):
    source = write(tmp_path / "in.jsonl", [{"messages": TALK}])
    outs = [tmp_path / f"out{number}.jsonl" for number in range(4)]
    commands = [
        [sys.executable, "-m", "hsa_factory.cli", "label", source, "--rules", rules, "--out", out, "--register"]
        for out in outs
    ]
    processes = [subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL) for command in commands]
    assert [process.wait() for process in processes] == [0] * 4
    assert set(json.loads((tmp_path / "dataset_info.json").read_text("utf-8"))) == {out.stem for out in outs}


def test_standard_input(tmp_path, rules):
    samples = [{"messages": TALK, "id": k} for k in range(3)]
    text = json.dumps(samples)
    out = tmp_path / "out.json"
    for _ in range(2):
        command = [
            sys.executable,
            "-m",
            "hsa_factory.cli",
            "label",
            "-",
            "--rules",
            rules,
            "--out",
            out,
            "--overwrite",
        ]
        assert subprocess.run(list(map(str, command)), input=text.encode(), stdout=subprocess.DEVNULL).returncode == 0
        assert without_types(load(out)) == without_types(samples)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"messages": [], "messages": []}', "the key 'messages' stands twice"),
        (b'{"messages": "caf\xe9"}', "not UTF-8"),
        (b'"text"', "expected an object, got 'text'"),
        (b'{"messages": [{"role": "user", "content": "a"}], "tools": "go"}', "tools: expected a list of tools.*'go'"),
        (
            b'{"messages": [{"role": "user", "content": "a"}], "tools": {"name": "go"}}',
            "tools: expected a list of tools",
        ),
    ],
)
def test_what_no_sample_can_be_read_for_is_said(tmp_path, rules, capsys, data, message):
    (tmp_path / "in.json").write_bytes(b"[" + data + b"]")
    assert run(tmp_path / "in.json", "--rules", rules, "--out", tmp_path / "out.json", "--workers", 1) != 0
    assert re.search(f"sample 0: {message}", capsys.readouterr().err)
