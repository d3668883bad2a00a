"""Conversations as agents leave them: labelled and then trained, or trained as they are with rules, they are the same."""

import json
from pathlib import Path

import pytest

from hsa_factory import HSAConfig, cli


FILES = Path(__file__).parents[2] / "labeling" / "trajectories" / "files"
RAW = ("swe_rebench.jsonl", "swe_smith.jsonl", "anthropic.jsonl", "responses.jsonl", "responses_parts.jsonl")
RAW += ("developer.jsonl", "functions.jsonl", "agent_gym.json", "swe_agent_rows.jsonl")


def register(directory, name, rules="tool-calls"):
    """Label a file, and register it raw under the same entry; return the names of both."""
    stem = name.split(".")[0]
    arguments = ["label", FILES / name, "--rules", rules, "--out", directory / f"{stem}_typed.jsonl", "--register"]
    assert cli.main([*map(str, arguments), "--workers", "1"]) == 0
    path = directory / "dataset_info.json"
    info = json.loads(path.read_text("utf-8"))
    info[stem] = {**info[f"{stem}_typed"], "file_name": name}
    path.write_text(json.dumps(info), "utf-8")
    (directory / name).write_bytes((FILES / name).read_bytes())
    return stem, f"{stem}_typed"


@pytest.mark.parametrize("name", RAW)
def test_raw_with_rules_is_labelled(lf, tmp_path, name):
    raw, typed = register(tmp_path, name)
    rows = [
        [(row["input_ids"], row["labels"], row["semantic_ids"]) for row in lf.prepare(args, config).rows()]
        for args, config in (
            (lf.args(tmp_path, raw), HSAConfig(rules="tool-calls")),
            (lf.args(tmp_path, typed), HSAConfig()),
        )
    ]
    assert rows[0] == rows[1] and rows[0]
