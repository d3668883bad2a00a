"""JSON that says something twice is refused, wherever it is read."""

import json

import pytest

from hsa_factory import cli, strict_json
from hsa_factory.training_file import read_training_file
from hsa_factory.user_errors import UserError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_json_loads_reads(encoding):
    value = {"a": [1, None, {"冰": "é"}], "b": {"a": 2}}
    text = json.dumps(value, ensure_ascii=False)
    assert strict_json.loads(text) == strict_json.loads("\ufeff" + text) == value
    assert strict_json.loads(text.encode(encoding)) == value


@pytest.mark.parametrize(
    "text", ['{"a": 1, "b": 2, "a": 1}', '[{"x": {"a": 1, "a": null}}]', '{"a": {}, "\\u0061": 2}']
)
def test_a_key_that_stands_twice_is_named(text):
    with pytest.raises(ValueError, match="the key 'a' stands twice"):
        strict_json.loads(text)


def test_training_files(tmp_path):
    path = tmp_path / "train.json"
    path.write_bytes(b'\xef\xbb\xbf{"stage": "sft", "hsa": {"noise_window": 7}}')
    assert read_training_file(path).hsa.noise_window == 7
    path.write_text('{"stage": "sft", "hsa": {"noise_window": 7, "noise_window": 8}}')
    with pytest.raises(UserError, match="train.json: .*'noise_window' stands twice"):
        read_training_file(path)


def test_data_and_their_description_in_label(tmp_path, capsys):
    data, info = tmp_path / "data.json", tmp_path / "dataset_info.json"
    good, bad = '{"role": "user", "content": "a"}', '{"role": "user", "content": "a", "content": "b"}'
    data.write_text(f'[{{"messages": [{good}]}}, {{"messages": [{bad}]}}]')
    info.write_text('{"data": {"file_name": "data.json", "file_name": "other.json"}}')
    arguments = ["--rules", "react", "--out", str(tmp_path / "out.json"), "--workers", "1"]
    for more, message in (
        ([str(data)], "sample 1: the key 'content'"),
        ([str(info), "--dataset", "data"], "'file_name'"),
    ):
        assert cli.main(["label", *more, *arguments]) != 0
        assert message in " ".join(capsys.readouterr().err.split())
