"""JSON files as people have them: what they say is trained, in any order of the samples, or the sample is named."""

import itertools
import json

import pytest
from typed_oracle import types_by_mark

from hsa_factory import HSAConfig


HSA = HSAConfig()
G, L, N = 0, 1, 2


def entry(lf, formatting="sharegpt", *columns):
    tags = {**lf.TAGS, "observation_tag": "tool"}
    return {"formatting": formatting, "columns": {name: name for name in ("messages", *columns)}, "tags": tags}


def write(lf, directory, data, described=None, name="data.json"):
    """Write bytes, or samples, as a data set's file; return the arguments of a run on it."""
    directory.mkdir(exist_ok=True)
    if isinstance(data, list):
        lines = (json.dumps(sample) for sample in data)
        data = ("\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]").encode()
    (directory / name).write_bytes(data)
    info = {"data": {"file_name": name, **(described or entry(lf))}}
    (directory / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    return lf.args(directory, "data")


def texts(lf, directory, samples, described=None, name="data.json", **options):
    prepared = lf.prepare({**write(lf, directory, samples, described, name), **options}, HSA)
    return [prepared.text(row["input_ids"]) for row in itertools.islice(prepared.module["train_dataset"], 1002)]


def talk(lf, *messages, **columns):
    return {"messages": [lf.say("user", "<m0>"), *messages, lf.say("assistant", "<m1>")], **columns}


def called(lf, arguments, result="<m2>"):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "go", "arguments": arguments}}]}
    return talk(lf, call, {"role": "tool", "content": result})


# -- values of several types -----------------------------------------------------------------------------------


def test_arguments_and_results_of_any_type_in_any_order(lf, tmp_path):
    """A column of Arrow holds one type, that of its first values, and gives every object the keys of all others."""
    values = [{"command": "ls"}, {"command": 3}, {"path": ["a", 1]}, {"command": {"deep": None}}, '{"text": 1}']
    samples = [called(lf, value, value) for value in values]
    results = [value if isinstance(value, str) else json.dumps(value) for value in values]
    for name, order in (("data.json", [0, 1, 2, 3, 4]), ("data.jsonl", [4, 2, 1, 0, 3])):
        found = texts(lf, tmp_path, [samples[i] for i in order], entry(lf, "openai"), name)
        for text, i in zip(found, order, strict=True):
            assert f'"arguments": {json.dumps(values[i])}}}\n</tool_call>' in text
            assert f"<tool_response>\n{results[i]}\n</tool_response>" in text


def test_the_order_of_samples_changes_nothing_but_the_order(lf, tmp_path):
    """Keys that come late or have several types: tools, system prompts, types, spans, weights, keys of no concern."""
    span = {"start": 0, "end": 4, "semantic_type": "LANDMARK"}
    samples = [
        talk(lf),
        talk(
            lf, tools=[{"name": "go", "description": "<m9>", "parameters": {"properties": {"x": {"type": "string"}}}}]
        ),
        talk(lf, tools='[{"name": "go", "description": "<m8>", "parameters": {"properties": {}}}]', meta={"a": 1}),
        talk(lf, system="<m7>", meta="text", id=3),
    ]
    samples[0]["messages"][0] |= {"semantic_type": "NOISE", "semantic_spans": [span]}
    samples[2]["messages"][0] |= {"semantic_type": 2, "semantic_spans": [{**span, "semantic_type": 1, "note": 7}]}
    samples[3]["messages"][1] |= {"weight": 1.0, "semantic_type": "0"}
    described = entry(lf, "sharegpt", "tools", "system")
    rows = {}
    for order in list(itertools.permutations(range(4)))[::7]:
        prepared = lf.prepare(write(lf, tmp_path, [samples[i] for i in order], described), HSA)
        found = [(row["input_ids"], row["semantic_ids"], row["labels"]) for row in prepared.rows()]
        for i, row in zip(order, found, strict=True):
            assert rows.setdefault(i, row) == row
    marks = [{k for k in range(10) if f"<m{k}>" in prepared.text(rows[i][0])} for i in range(4)]
    assert marks == [{0, 1}, {0, 1, 9}, {0, 1, 8}, {0, 1, 7}]
    assert set(rows[0][1]) == set(rows[2][1]) == {G, L}


def test_columns_that_come_late(lf, tmp_path):
    """After more samples than the types of columns are guessed from."""
    samples = [talk(lf)] * 1001 + [talk(lf, tools='[{"name": "go", "description": "<m9>"}]', system="<m7>")]
    samples[-1]["tools"] = '[{"name": "go", "description": "<m9>", "parameters": {"properties": {}}}]'
    for name in ("data.json", "data.jsonl"):
        found = texts(lf, tmp_path, samples, entry(lf, "sharegpt", "tools", "system"), name)
        assert len(found) == 1002 and "<m9>" in found[-1] and "<m7>" in found[-1]


def test_dates_stay_texts(lf, tmp_path):
    sample = {"messages": [lf.say("user", "2024-01-01"), lf.say("assistant", "2024-01-02T00:00:00")]}
    (text,) = texts(lf, tmp_path, [sample], name="data.jsonl")
    assert "2024-01-01<" in text and "2024-01-02T00:00:00<" in text


# -- files of any layout ---------------------------------------------------------------------------------------

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("data.json", lambda samples: BOM + json.dumps(samples).encode()),
        ("data.jsonl", lambda samples: BOM + b"\r\n\r\n".join(json.dumps(sample).encode() for sample in samples)),
        ("data.json", lambda samples: b"\n \n" + b"\n\n".join(json.dumps(sample).encode() for sample in samples)),
        ("data.jsonl", lambda samples: json.dumps(samples, indent=1).encode()),
        ("data.json", lambda samples: "\n".join(json.dumps(sample, indent=2) for sample in samples).encode()),
        ("data.jsonl", lambda samples: "".join(map(json.dumps, samples)).encode()),
    ],
)
def test_layouts(lf, tmp_path, name, layout):
    samples = [talk(lf, lf.say("assistant", f"<m{k}>"), lf.say("user", "\U0001f600")) for k in range(3, 6)]
    found = texts(lf, tmp_path, layout(samples), name=name)
    assert [f"<m{k}>" in text and "\U0001f600" in text for text, k in zip(found, range(3, 6), strict=True)] == [
        True
    ] * 3


def test_several_files_splits_samples_and_streams(lf, tmp_path):
    samples = [talk(lf, lf.say("assistant", f"<m{k}>"), lf.say("user", "on")) for k in range(3, 9)]
    write(lf, tmp_path, [])
    (tmp_path / "data.json").unlink()
    (tmp_path / "parts").mkdir()
    for number in range(3):
        write(lf, tmp_path / "parts", samples[2 * number : 2 * number + 2], name=f"{number}.jsonl")
    (tmp_path / "parts" / "dataset_info.json").unlink()
    (tmp_path / "parts" / "empty.jsonl").touch()
    info = {"file_name": "parts", **entry(lf)}
    kinds = {"all": {}, "half": {"split": "train[:50%]"}, "some": {"num_samples": 4}, "more": {"num_samples": 8}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({name: {**info, **more} for name, more in kinds.items()}))
    for name, number in (("all", 6), ("half", 3), ("some", 4), ("more", 8)):
        prepared = lf.prepare(lf.args(tmp_path, name, preprocessing_num_workers=2 if name == "all" else None), HSA)
        found = [k for row in prepared.rows() for k in range(3, 9) if f"<m{k}>" in prepared.text(row["input_ids"])]
        assert len(found) == number and len(set(found)) == min(number, 6)
    streamed = lf.prepare(lf.args(tmp_path, "all", streaming=True, dataloader_num_workers=1), HSA)
    assert len(streamed.rows()) == 6


def test_the_cache_is_used_again_and_a_changed_file_read_again(lf, tmp_path, monkeypatch):
    from hsa_factory.llamafactory.data import json_files

    reads = []
    read_chunks = json_files.read_chunks
    monkeypatch.setattr(json_files, "read_chunks", lambda files: reads.append(files) or read_chunks(files))
    for mark, times in (("<m3>", 1), ("<m3>", 1), ("<m4>", 2)):
        samples = [talk(lf, lf.say("assistant", mark), lf.say("user", mark))]
        if mark not in (tmp_path / "data.json").read_text() if (tmp_path / "data.json").exists() else True:
            write(lf, tmp_path, samples)
        prepared = lf.prepare(lf.args(tmp_path, "data"), HSA)
        assert mark in prepared.text(prepared.rows()[0]["input_ids"]) and len(reads) == times


# -- what is wrong is named ------------------------------------------------------------------------------------

GOOD = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("data.json", b"", "dataset 'data': .*data.json: there is no sample"),
        ("data.jsonl", b"\n \n", "dataset 'data': .*data.jsonl: there is no sample"),
        ("data.json", BOM + b"[ ]", "dataset 'data': .*data.json: there is no sample"),
        ("data.json", b"[" + GOOD + b"," + GOOD[:-9], "dataset 'data': .*data.json, sample 1: .*copied whole"),
        ("data.jsonl", GOOD + b"\n" + GOOD[:-9], r"dataset 'data', sample 1, not JSON: .*\(data.jsonl, line 2\)"),
        ("data.jsonl", GOOD + b"\n\n" + GOOD.replace(b"a", b"\xff", 1), r"not UTF-8.*\(data.jsonl, line 3\)"),
        (
            "data.jsonl",
            GOOD + b"\n" + GOOD.replace(b'"b"', b'"\\ud83d"'),
            r"messages\[1\].content: .*half of a char.*line 2",
        ),
        ("data.json", b"[" + GOOD + b", null]", r"sample 1, expected an object, got None. \(data.json, sample 1\)"),
        ("data.json", b"[" + GOOD + b', {"messages": 3}]', "sample 1, messages: expected a list of messages, got 3"),
        ("data.json", b"[[]]", "sample 0, expected an object"),
        ("data.json", GOOD.replace(b'"b"', b'"b", "content": "c"'), "sample 0, the key 'content' stands twice"),
        (
            "data.json",
            GOOD.replace(b'"b"', b"3"),
            "sample 0, turn 1: content: expected a text or a list of parts, got 3",
        ),
        ("data.json", GOOD.replace(b'"b"', b"null"), "sample 0, turn 1: 'content' is null"),
        ("data.json", GOOD.replace(b"messages", b"message"), "sample 0, 'messages' .* is missing; it has 'message'"),
        ("data.parquet", GOOD, "dataset 'data': .*data.parquet cannot be read: .*copied whole"),
        ("data.arrow", GOOD, "dataset 'data': .*data.arrow cannot be read: .*copied whole"),
        ("data.csv", b"", "dataset 'data': .*data.csv cannot be read: it is empty"),
        ("data.csv", b'a,b\n1,2\n"3,4,5\n', "dataset 'data': .*data.csv cannot be read: .*copied whole"),
    ],
)
def test_what_cannot_be_read_is_named(lf, tmp_path, name, data, message):
    args = write(lf, tmp_path, data, name=name)
    with pytest.raises(ValueError, match=message):
        lf.prepare(args, HSA)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_of_several_tables_the_truncated_one_is_named(lf, tmp_path, suffix):
    from datasets import Dataset

    table = Dataset.from_list([talk(lf, lf.say("assistant", "x" * 500), lf.say("user", "on"))] * 40)
    (tmp_path / "parts").mkdir()
    for number in range(3):
        path = tmp_path / "parts" / f"{number}.{suffix}"
        if suffix == "parquet":
            table.to_parquet(str(path))
        else:
            table.save_to_disk(str(tmp_path / "saved"))
            path.write_bytes(next((tmp_path / "saved").glob("*.arrow")).read_bytes())
    (tmp_path / "dataset_info.json").write_text(json.dumps({"data": {"file_name": "parts", **entry(lf)}}))
    assert len(lf.prepare(lf.args(tmp_path, "data"), HSA).rows()) == 120
    broken = tmp_path / "parts" / f"1.{suffix}"
    broken.write_bytes(broken.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=f"dataset 'data': .*parts/1.{suffix} cannot be read"):
        lf.prepare(lf.args(tmp_path, "data"), HSA)


def test_a_role_that_is_missing_drops_the_sample_as_llamafactory_does(lf, tmp_path):
    broken = {"messages": [{"content": "<m3>"}, lf.say("assistant", "<m4>")]}
    prepared = lf.prepare(write(lf, tmp_path, [talk(lf), broken]), HSA)
    assert prepared.counts["kept"] == 1 and sum(prepared.counts["dropped"].values()) == 1


def test_a_null_among_the_replies_of_parallel_calls_is_named(lf, tmp_path):
    sample = called(lf, {})
    sample["messages"].insert(3, {"role": "tool", "content": None})
    args = write(lf, tmp_path, [sample], entry(lf, "openai"))
    with pytest.raises(ValueError, match="sample 0, turn 3: 'content' is null"):
        lf.prepare(args, HSA)


def test_a_column_that_no_sample_has_is_named(lf, tmp_path):
    """It may come as late as it likes, and need not be among the samples that are used."""
    described = entry(lf, "sharegpt", "system")
    samples = [talk(lf), talk(lf), talk(lf, system="<m7>")]
    args = {**write(lf, tmp_path, samples, described), "max_samples": 1}
    assert len(lf.prepare(args, HSA).rows()) == 1
    write(lf, tmp_path, samples[:2], described)
    with pytest.raises(
        ValueError, match="dataset 'data': no sample has 'system'; they have 'messages'. Correct `columns`"
    ):
        lf.prepare(args, HSA)


def test_dataset_info_is_read_strictly(lf, tmp_path):
    write(lf, tmp_path, [talk(lf)])
    path = tmp_path / "dataset_info.json"
    path.write_bytes(BOM + path.read_bytes())
    assert len(lf.prepare(lf.args(tmp_path, "data"), HSA).rows()) == 1
    path.write_text('{"data": {"file_name": "data.json"}, "data": {"file_name": "other.json"}}')
    with pytest.raises(ValueError, match="dataset_info.json: the key 'data' stands twice"):
        lf.prepare(lf.args(tmp_path, "data"), HSA)


def test_types_as_names_and_as_numbers(lf, tmp_path):
    one = {"messages": [lf.say("user", "<m0>", "NOISE"), lf.say("assistant", "<m1>", 1)]}
    two = {"messages": [lf.say("user", "<m2>", 2), lf.say("assistant", "<m3>", "LANDMARK")]}
    prepared = lf.prepare(write(lf, tmp_path, [one, two]), HSA)
    assert types_by_mark(lf, prepared) == {0: N, 1: L, 2: N, 3: L}
