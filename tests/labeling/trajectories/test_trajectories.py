"""Conversations as agents leave them, a small file for each format: what is read of it, and what is left out."""

import copy
import json
from collections import Counter
from pathlib import Path

import pytest

from hsa_factory import cli
from hsa_factory.labeling.detect import detect_entry, tagged_entry
from hsa_factory.labeling.formats import DatasetFormat, read_sample
from hsa_factory.labeling.job import parse_sample
from hsa_factory.labeling.trajectories import composed
from hsa_factory.labeling.trajectories.blocks import LOST_REASONING
from hsa_factory.labeling.trajectories.files import read_samples
from hsa_factory.labeling.trajectories.normalise import normalise
from hsa_factory.labeling.trajectories.sessions import LEFT_OUT


FILES = Path(__file__).with_name("files")
LAST_LEFT_OUT = "messages after the last reply left out"


def thought(text):
    return f"<think>\n{text}\n</think>\n\n"


def calls(*named):
    listed = [{"name": name, "arguments": arguments} for name, arguments in named]
    return f"<tool_call>{json.dumps(listed)}</tool_call>"


BASH = "\n<function=bash>\n<parameter=command>ls</parameter>\n</function>"
EXPECTED = {
    "swe_rebench.jsonl": [
        ("system", "You are OpenHands."),
        ("user", "Fix it."),
        ("function", "Let me look.\n" + calls(("execute_bash", {"command": "ls"}))),
        ("observation", "a.py"),
        ("function", calls(("finish", {"message": "done"}))),
    ],
    "swe_smith.jsonl": [
        ("system", "s"),
        ("user", "u"),
        ("assistant", "I look." + BASH),
        ("user", "OBSERVATION:\na.py"),
        ("assistant", "Done."),
    ],
    "swe_agent.traj": [
        ("system", "s"),
        ("user", "demo\n\nissue"),
        ("assistant", "Let me.\n```\nls\n```"),
        ("user", "a.py"),
        ("assistant", "```\nsubmit\n```"),
    ],
    "swe_agent_rows.jsonl": [
        ("system", "s"),
        ("user", "u"),
        ("assistant", "Look\n```\nls\n```"),
        ("user", "a.py"),
        ("assistant", "```\nsubmit\n```"),
    ],
    "mini_swe_agent.traj.json": [
        ("system", "s"),
        ("user", "Please solve"),
        ("assistant", "THOUGHT: ls\n\n```bash\nls\n```"),
        ("user", "<returncode>0</returncode>\n<output>\na\n</output>"),
        ("assistant", "THOUGHT: done\n\n```bash\necho COMPLETE\n```"),
    ],
    "anthropic.jsonl": [
        ("system", "s"),
        ("user", "Fix."),
        ("function", thought("Hm.") + "I look.\n" + calls(("ls", {"path": "."}), ("ls", {"path": "/"}))),
        ("observation", "a.py"),
        ("observation", "b\n\ngo on"),
        ("assistant", "Done."),
    ],
    "responses.jsonl": [
        ("system", "s"),
        ("user", "Fix."),
        ("function", thought("Hm.") + calls(("ls", {"path": "."}))),
        ("observation", "a.py"),
        ("assistant", "Done."),
    ],
    "responses_parts.jsonl": [("user", "Fix."), ("assistant", "Done.")],
    "developer.jsonl": [("system", "s"), ("user", "u"), ("assistant", thought("2+2") + "4")],
    "functions.jsonl": [
        ("user", "Weather?"),
        ("function", calls(("w", {"at": "B"}))),
        ("observation", "12"),
        ("assistant", "12."),
    ],
    "agent_gym.json": [
        ("user", "Interact."),
        ("assistant", "OK."),
        ("user", "Your task is to: put."),
        ("assistant", "Thought:\na\n\nAction:\ngo to desk 1"),
    ],
    "session.jsonl": [
        ("user", "time?"),
        ("function", thought("hm") + calls(("get_time", {}))),
        ("observation", "15:00"),
        ("assistant", "15:00"),
    ],
    "session_pi.jsonl": [  # the branch that was left is not in it
        ("user", "fix"),
        ("function", thought("hm") + calls(("read", {"path": "a"}))),
        ("observation", "x"),
        ("assistant", "done"),
    ],
    "session_claude_code.jsonl": [  # a message for each block
        ("user", "fix"),
        ("function", "Look.\n" + calls(("Bash", {"command": "ls"}))),
        ("observation", "a"),
        ("assistant", "Done."),
    ],
    "session_codex.jsonl": [
        ("system", "rules"),
        ("user", "fix"),
        ("function", calls(("shell", {"command": ["ls"]}))),
        ("observation", '{"output": "a"}'),
        ("assistant", "Done."),
    ],
}
NOTES = {
    "swe_rebench.jsonl": {composed.KEPT_TEXT: 1},
    "swe_agent.traj": {LAST_LEFT_OUT: 1},
    "anthropic.jsonl": {LOST_REASONING: 1, composed.KEPT_REASONING: 1, composed.KEPT_TEXT: 1},
    "responses.jsonl": {composed.KEPT_REASONING: 1},
    "developer.jsonl": {composed.KEPT_REASONING: 1},
    "agent_gym.json": {composed.NOT_TRAINED: 1},
    "session.jsonl": {composed.KEPT_REASONING: 1},
    "session_pi.jsonl": {LEFT_OUT: 1, composed.KEPT_REASONING: 1},
    "session_claude_code.jsonl": {LEFT_OUT: 1, composed.KEPT_TEXT: 1},
    "session_codex.jsonl": {LEFT_OUT: 1, LOST_REASONING: 1},
}


def read_file(*paths):
    """Return the samples of files, and the format that is detected."""
    chunks = list(read_samples(list(map(str, paths))))
    samples = [parse_sample(row) for chunk in chunks for row in chunk.samples]
    return samples, DatasetFormat.from_entry(tagged_entry(detect_entry(samples)))


def read(sample, dataset_format, **options):
    turns = read_sample(normalise(sample, dataset_format, **options), dataset_format)
    return [(turn.message.role, turn.message.text) for turn in turns]


def chat(*messages, **columns):
    """Return what is read of one sample, and what was counted."""
    sample = {"messages": [dict(message) for message in messages], **columns}
    notes = Counter()
    before = copy.deepcopy(sample)
    result = read(sample, DatasetFormat.from_entry(tagged_entry(detect_entry([sample]))), notes=notes)
    assert sample == before
    return result, notes


@pytest.mark.parametrize("name", EXPECTED)
def test_each_format(name):
    samples, dataset_format = read_file(FILES / name)
    notes = Counter()
    assert read(samples[0], dataset_format, notes=notes) == EXPECTED[name]
    assert notes == NOTES.get(name, {})


@pytest.mark.parametrize("name", EXPECTED)
def test_what_was_read_stays_as_it_is(name):
    """A labelled file can be labelled again, and read in training."""
    samples, dataset_format = read_file(FILES / name)
    once = normalise(samples[0], dataset_format)
    assert normalise(once, dataset_format) is once


def test_there_is_a_file_for_each_format():
    assert sorted(EXPECTED) == sorted(path.name for path in FILES.iterdir())


class TestNothingChanges:
    @pytest.mark.parametrize(
        "message",
        [
            {"role": "assistant", "content": "b", "name": "x", "weight": 0},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "a", "arguments": "{}"}}]},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "a", "arguments": {}}}]},
            {"role": "assistant", "content": "b", "tool_calls": None, "reasoning_content": None, "loss": None},
            {"role": "assistant", "content": "b", "tool_calls": [], "reasoning_content": " ", "loss": True},
            {"role": "assistant", "content": [{"type": "text", "text": "b"}, {"type": "image", "image": "x.png"}]},
            {"role": "user", "content": "b", "reasoning_content": "not a reply's"},
            {"role": "robot", "content": "b"},
            {"role": "assistant"},
            {"role": ["a"], "content": "b"},
            3,
        ],
    )
    def test_of_what_is_read_whole(self, message):
        entry = detect_entry([{"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}])
        dataset_format = DatasetFormat.from_entry(tagged_entry(entry))
        sample = {"messages": [{"role": "user", "content": "a"}, message]}
        assert normalise(sample, dataset_format) is sample

    def test_of_alpaca(self):
        sample = {"instruction": "a", "output": "b", "messages": "[]"}
        assert normalise(sample, DatasetFormat()) is sample


class TestCalls:
    USER = {"role": "user", "content": "a"}

    def call(self, content, arguments, **more):
        return {
            "role": "assistant",
            "content": content,
            "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
            **more,
        }

    def test_a_closing_word_in_an_argument_does_not_end_the_call(self):
        (_, (role, text)), _ = chat(self.USER, self.call("So.", {"code": "print('</tool_call>')"}))
        assert role == "function" and text.count("</tool_call>") == 1
        inner = text.split("<tool_call>")[1].removesuffix("</tool_call>")
        assert json.loads(inner) == [{"name": "f", "arguments": {"code": "print('</tool_call>')"}}]

    @pytest.mark.parametrize(
        ("given", "read_as"),
        [('{"a": 1}', {"a": 1}), ("", {}), (None, {}), ("ls", {"input": "ls"}), ("[1]", {"input": "[1]"})],
    )
    def test_arguments(self, given, read_as):
        (_, (_, text)), _ = chat(self.USER, self.call("So.", given))
        assert text == "So.\n" + calls(("f", read_as))

    def test_all_calls_of_a_sample_are_written_in_one_way(self):
        messages, _ = chat(
            self.USER, self.call("So.", "{}"), {"role": "tool", "content": "b"}, self.call("", '{"a": 1}')
        )
        assert [text for role, text in messages if role == "function"] == [
            "So.\n" + calls(("f", {})),
            calls(("f", {"a": 1})),
        ]

    def test_parts_beside_a_call(self):
        content = [{"type": "text", "text": "So."}, {"type": "image", "image": "x.png"}]
        (_, (role, text)), _ = chat(self.USER, self.call(content, {}, reasoning_content="hm"))
        assert (role, text) == ("function", thought("hm") + "So.<image>\n" + calls(("f", {})))

    def test_given_spans_stay_on_the_call(self):
        spans = [{"start": 3, "end": 7, "semantic_type": "GLOBAL"}]
        sample = {"messages": [self.USER, self.call("So.", {}, semantic_type="NOISE", semantic_spans=spans)]}
        dataset_format = DatasetFormat.from_entry(tagged_entry(detect_entry([sample])))
        message = read_sample(normalise(sample, dataset_format), dataset_format)[1].message
        ((start, end, kind),) = message.spans
        assert (message.text[start:end], kind, message.semantic_type) == ("name", 0, 2)

    def test_a_thought_that_the_text_has_too_is_written_once(self):
        message = {"role": "assistant", "content": "<think>hm</think>b", "reasoning_content": "hm"}
        assert chat(self.USER, message)[0][1] == ("assistant", "<think>hm</think>b")

    def test_sharegpt_has_calls_as_text(self):
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
        tags |= {"observation_tag": "tool", "function_tag": "call", "system_tag": "system"}
        entry = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
        sample = {"messages": [self.USER, self.call(None, {})]}
        assert read(sample, DatasetFormat.from_entry(entry))[1] == ("function", calls(("f", {})))

    def test_tags_without_a_place_for_calls_lose_the_text_and_it_is_counted(self):
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
        entry = {"formatting": "openai", "columns": {"messages": "messages"}, "tags": tags}
        notes = Counter()
        sample = {"messages": [self.USER, self.call("So.", {})]}
        messages = read(sample, DatasetFormat.from_entry(entry), notes=notes)
        assert messages[1][1] == '[{"name": "f", "arguments": {}}]' and notes == {composed.LOST_TEXT: 1}

    def test_the_words_of_a_template(self):
        words = composed.Words(("<t>", "</t>"), ("[c]", "[/c]"))
        sample = {"messages": [self.USER, self.call("So.", {}, reasoning="hm")]}
        dataset_format = DatasetFormat.from_entry(tagged_entry(detect_entry([sample])))
        assert (
            read(sample, dataset_format, words=words)[1][1] == '<t>hm</t>So.\n[c][{"name": "f", "arguments": {}}][/c]'
        )

    def test_a_call_that_is_none_names_the_turn(self):
        with pytest.raises(ValueError, match="turn 1: a tool call cannot be read"):
            chat(self.USER, {"role": "assistant", "content": "So.", "tool_calls": [{"id": 1}]})


class TestFunctionsOfOldData:
    def test_a_reply_is_no_call(self, tmp_path):
        talk = [{"role": "user", "content": "a"}, {"role": "function", "name": "f", "content": "b"}]
        samples = [{"messages": [*talk, {"role": "assistant", "content": "c"}]}]
        assert detect_entry(samples)["tags"]["observation_tag"] == "function"

    def test_a_call_without_a_name_is_one(self):
        talk = [{"role": "user", "content": "a"}, {"role": "function", "content": "{}"}]
        assert detect_entry([{"messages": talk}])["tags"]["function_tag"] == "function"

    def test_beside_tools_replies(self):
        call = {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}}
        replies = [{"role": "tool", "content": "b"}, {"role": "function", "name": "f", "content": "c"}]
        messages, _ = chat(TestCalls.USER, call, replies[0], call, replies[1])
        assert [role for role, _ in messages] == ["user", "function", "observation", "function", "observation"]


class TestBlocks:
    def test_a_developer_after_the_system_prompt_joins_it(self):
        messages, _ = chat({"role": "system", "content": "s"}, {"role": "developer", "content": "d"}, TestCalls.USER)
        assert messages == [("system", "s\n\nd"), ("user", "a")]

    def test_types_of_parts_stay(self):
        content = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "b", "semantic_type": "GLOBAL"}]
        sample = {"messages": [TestCalls.USER, {"role": "assistant", "content": content}]}
        dataset_format = DatasetFormat.from_entry(tagged_entry(detect_entry([sample])))
        message = read_sample(normalise(sample, dataset_format), dataset_format)[1].message
        ((start, end, kind),) = message.spans
        assert (message.text[start:end], kind) == ("b", 0)

    def test_images_in_results(self):
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
        result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [image]}]}
        sample = {"messages": [TestCalls.USER, result]}
        dataset_format = DatasetFormat.from_entry(tagged_entry(detect_entry([sample])))
        turn = read_sample(normalise(sample, dataset_format), dataset_format)[1]
        assert (turn.message.role, turn.message.text) == ("observation", "<image>")
        assert turn.media == ((0, "image", "data:image/png;base64,AAAA"),)

    def test_tools_of_the_server_answer_within_the_reply(self):
        content = [
            {"type": "server_tool_use", "id": "t", "name": "search", "input": {"q": "x"}},
            {"type": "web_search_tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "found"}]},
            {"type": "text", "text": "So."},
        ]
        messages, _ = chat(TestCalls.USER, {"role": "assistant", "content": content})
        assert [role for role, _ in messages] == ["user", "function", "observation", "assistant"]

    def test_a_system_prompt_as_blocks(self):
        blocks = [{"type": "text", "text": "s"}, {"type": "text", "text": "t"}]
        assert chat(TestCalls.USER, {"role": "assistant", "content": "b"}, system=blocks)[0][0] == ("system", "s\n\nt")

    def test_a_block_of_an_unknown_kind_is_named(self):
        with pytest.raises(ValueError, match="turn 1: part 1: expected a `text`.*container_upload"):
            content = [{"type": "thinking", "thinking": "hm"}, {"type": "container_upload"}]
            chat(TestCalls.USER, {"role": "assistant", "content": content})


class TestFiles:
    def test_a_directory_of_trajectories(self, tmp_path, capsys):
        for number in range(3):
            target = tmp_path / "runs" / f"task{number}" / "x.traj"
            target.parent.mkdir(parents=True)
            target.write_bytes((FILES / "swe_agent.traj").read_bytes())
        out = tmp_path / "out.jsonl"
        arguments = ["label", tmp_path / "runs", "--rules", "react", "--out", out, "--workers", "1"]
        assert cli.main(list(map(str, arguments))) == 0
        assert len(out.read_text("utf-8").splitlines()) == 3
        assert f"{LAST_LEFT_OUT}: 3" in capsys.readouterr().out
        (tmp_path / "empty").mkdir()
        assert cli.main(["label", str(tmp_path / "empty"), *map(str, arguments[2:]), "--overwrite"]) == 2
        assert "neither a dataset_info.json nor files of trajectories" in capsys.readouterr().err

    def test_sessions_one_after_the_other_in_a_file(self, tmp_path):
        text = (FILES / "session.jsonl").read_text("utf-8")
        path = tmp_path / "all.jsonl"
        path.write_text("\ufeff" + text + "\n" + text, "utf-8")
        samples, dataset_format = read_file(path, FILES / "session_pi.jsonl")
        assert [len(read(sample, dataset_format)) for sample in samples] == [4, 4, 4]
        (chunk,) = read_samples([str(path)])
        assert chunk.where(1) == f"{path}, session 1"

    def test_a_broken_event_is_named(self, tmp_path):
        path = tmp_path / "s.jsonl"
        path.write_text((FILES / "session.jsonl").read_text("utf-8") + '{"type": "mess', "utf-8")
        with pytest.raises(ValueError, match=r"s.jsonl, line 6: a session's event that is not JSON"):
            list(read_samples([str(path)]))

    def test_samples_with_a_type_are_no_events(self, tmp_path):
        path = tmp_path / "data.jsonl"
        sample = {"type": "message", "messages": [TestCalls.USER, {"role": "assistant", "content": "b"}]}
        path.write_text(f"{json.dumps(sample)}\n" * 2, "utf-8")
        assert len(read_file(path)[0]) == 2

    def test_files_of_all_kinds_are_numbered_through(self, tmp_path):
        names = ("swe_agent.traj", "swe_smith.jsonl", "session.jsonl", "agent_gym.json", "mini_swe_agent.traj.json")
        chunks = list(read_samples([str(FILES / name) for name in names]))
        assert [chunk.index for chunk in chunks] == [0, 1, 2, 3, 4]
        assert chunks[-1].bytes_read == sum((FILES / name).stat().st_size for name in names)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"id": 0, "source": "agent", "action": "run", "args": {}}], "these are events of OpenHands"),
        ([{"prompt": [{}], "chosen": [{}], "rejected": [{}]}], "`chosen` and `rejected` are conversations"),
    ],
)
def test_formats_that_are_refused_say_why(samples, message):
    with pytest.raises(ValueError, match=message):
        detect_entry(samples)


TABLES = ("swe_smith.jsonl", "swe_rebench.jsonl", "anthropic.jsonl", "responses.jsonl", "functions.jsonl")
TABLES += ("agent_gym.json", "developer.jsonl", "swe_agent_rows.jsonl")


@pytest.mark.parametrize("name", TABLES)
def test_from_table_to_table(tmp_path, name):
    """Columns of a Parquet file change where the messages do; the rest stays."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    samples = [parse_sample(row) for chunk in read_samples([str(FILES / name)]) for row in chunk.samples]
    for sample in samples:
        for column in ("messages", "conversations"):
            for message in sample.get(column, []) if name == "anthropic.jsonl" else []:
                if isinstance(message["content"], str):
                    message["content"] = [{"type": "text", "text": message["content"]}]
    if name == "anthropic.jsonl":
        for message in samples[0]["messages"]:
            for block in message["content"]:
                if isinstance(block.get("content"), list):
                    block["content"] = block["content"][0]["text"]
    pq.write_table(pa.Table.from_pylist([{**sample, "id": b"\x00"} for sample in samples]), tmp_path / "in.parquet")
    arguments = ["label", tmp_path / "in.parquet", "--rules", "tool-calls", "--out", tmp_path / "out.parquet"]
    assert cli.main([*map(str, arguments), "--workers", "1"]) == 0
    row = pq.read_table(tmp_path / "out.parquet").to_pylist()[0]
    samples, dataset_format = read_file(FILES / name)
    assert row["id"] == b"\x00"
    assert read(row, dataset_format) == EXPECTED[name]
    messages = row[dataset_format.messages]
    assert all(message["semantic_type"] for message in messages)
    assert [message["weight"] for message in messages if message.get("weight") is not None] == (
        [0] if name == "agent_gym.json" else []
    )
