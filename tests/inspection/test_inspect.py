"""`hsa-factory inspect`: what it prints is what the model would get."""

import json
import logging
import re
import subprocess
import sys

import pytest
import yaml
from rich.console import Console

from hsa_factory import FeedbackConfig, HSAConfig, tiny
from hsa_factory.inspection.command import main, parse_range


pytest.importorskip("llamafactory")

M = "<|feedback|>"
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "semantic_tag": "semantic_type",
}
SAMPLES = [
    [("user", "Open the fridge.", "GLOBAL"), ("assistant", "I go to the table.", "NOISE")],
    [
        ("user", "Take the apple.", "GLOBAL"),
        ("assistant", "I take the pear.", "LANDMARK"),
        ("user", f"Wrong.{M}", "NOISE"),
        ("assistant", "I take the apple.", "LANDMARK"),
    ],
    [("user", "苹果在哪里？", "NOISE"), ("assistant", "在冰箱里。", "LANDMARK")],
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_tokenizer):
    return tiny.save_tiny("qwen3", tmp_path_factory.mktemp("model"), [], tokenizer=tiny_tokenizer)


@pytest.fixture
def run(tmp_path, model_dir, monkeypatch, capsys):
    """Run the command on a training file; return the exit code, what it wrote, and what it said."""
    import datasets

    monkeypatch.setattr(logging, "raiseExceptions", False)  # LLaMA-Factory's handlers keep an earlier test's stream
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    entry = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": TAGS}
    data = [
        {"messages": [{"role": role, "content": text, "semantic_type": kind} for role, text, kind in sample]}
        for sample in SAMPLES
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(data), "utf-8")
    (tmp_path / "more.json").write_text(json.dumps(data[:1]), "utf-8")
    info = {name: {"file_name": f"{name}.json", **entry} for name in ("tasks", "more")}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    args = {
        "model_name_or_path": str(model_dir),
        "template": "qwen3_nothink",
        "finetuning_type": "lora",
        "dataset": "tasks",
        "dataset_dir": str(tmp_path),
        "cache_dir": str(tmp_path / "cache"),
        "output_dir": str(tmp_path / "out"),
        "hsa": {"noise_window": 20},
        "feedback": True,
    }

    def command(*arguments, file_args=None, **more):
        values = {**(args if file_args is None else file_args), **more}
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}), "utf-8")
        written = tmp_path / "written"
        written.unlink(missing_ok=True)
        code = main([str(path), "--output", str(written), *arguments])
        said = capsys.readouterr().err
        return code, written.read_text("utf-8") if written.is_file() else "", said

    command.args, command.directory = args, tmp_path
    return command


def rows(run, *arguments, **more):
    code, written, said = run("--format", "json", *arguments, **more)
    assert code == 0, said
    return [json.loads(line) for line in written.splitlines()]


# -- json ------------------------------------------------------------------------------------------------------


def test_json_is_what_the_collator_hands_over(run, tiny_tokenizer):
    import torch
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.train.sft import workflow

    from hsa_factory.llamafactory import integrate
    from hsa_factory.llamafactory.collator import HSADataCollator

    samples = rows(run, "--samples", "0-2")
    hsa, feedback = HSAConfig(noise_window=20), FeedbackConfig()
    args = {name: value for name, value in run.args.items() if name not in ("hsa", "feedback")}
    with integrate(hsa, feedback):
        parsed = get_train_args({**args, "do_train": True, "report_to": "none"})
        loaded = workflow.load_tokenizer(parsed[0])
        template = get_template_and_fix_tokenizer(loaded["tokenizer"], parsed[1])
        module = workflow.get_dataset(template, *parsed[:3], stage="sft", **loaded)
    collate = HSADataCollator(
        template=template, **loaded, compute_dtype=torch.float32, hsa_config=hsa, feedback_config=feedback
    )
    assert len(samples) == 3
    for index, (sample, row) in enumerate(zip(samples, module["train_dataset"])):
        batch = collate([dict(row)])
        names = ["index", "dataset", "input_ids", "semantic_ids", "labels", "tokens"]
        assert list(sample) == [*names, "reasons", "messages", "samples", "turns"]
        assert (sample["index"], sample["dataset"]) == (index, "tasks")
        for name in ("input_ids", "semantic_ids", "labels"):
            assert sample[name] == batch[name][0].tolist()
        assert len(sample["tokens"]) == len(sample["input_ids"])


def test_tokens_types_and_labels_fit_the_text(run):
    first, second, third = rows(run)
    for sample, conversation in zip((first, second), SAMPLES):
        text = "".join(sample["tokens"])
        starts = [len("".join(sample["tokens"][:i])) for i in range(len(sample["tokens"]))]
        for _, content, kind in conversation:
            begin = text.index(content)
            inside = {
                sample["semantic_ids"][i]
                for i, start in enumerate(starts)
                if begin <= start and start + len(sample["tokens"][i]) <= begin + len(content)
            }
            assert inside == {["GLOBAL", "LANDMARK", "NOISE"].index(kind)}
    trained = "".join(token for token, label in zip(second["tokens"], second["labels"]) if label != -100)
    assert trained == "I take the apple.<|im_end|>\n"
    assert all(label in (-100, token) for label, token in zip(second["labels"], second["input_ids"]))
    assert third["tokens"].count(M) == 0 and second["tokens"].count(M) == 1


@pytest.mark.parametrize(
    ("samples", "indices"), [(None, [0, 1, 2]), ("1", [1]), ("0-1", [0, 1]), ("1-", [1, 2]), ("2-9", [2]), ("0", [0])]
)
def test_ranges(run, samples, indices):
    arguments = ("--samples", samples) if samples else ()
    assert [row["index"] for row in rows(run, *arguments)] == indices


@pytest.mark.parametrize(
    ("text", "expected"), [("5", (5, 6)), ("0-9", (0, 10)), ("10-", (10, None)), ("3-3", (3, 4)), ("007", (7, 8))]
)
def test_parse_range(text, expected):
    assert parse_range(text) == expected


@pytest.mark.parametrize("text", ["", "-", "-3", "a", "1-b", "2-1", "1,2", "1.5", "1--2", " 1"])
def test_other_ranges_are_refused(run, text):
    with pytest.raises(ValueError, match=f"--samples {re.escape(repr(text))}"):
        parse_range(text)
    code, written, said = run("--format", "json", f"--samples={text}")
    assert (code, written) == (2, "")
    assert said.startswith("hsa-factory inspect: --samples") and "Traceback" not in said


def test_a_range_beyond_the_data(run):
    code, written, said = run("--format", "json", "--samples", "3-5")
    assert (code, written) == (2, "")
    assert "--samples 3-5: there is no such sample" in said


def test_overrides_reach_file_and_blocks(run):
    assert {row["dataset"] for row in rows(run, "dataset=more")} == {"more"}
    assert len(rows(run, "cutoff_len=12")[0]["input_ids"]) == 12
    before = rows(run)
    assert rows(run, "hsa.noise_window=3") == before
    without = rows(run, "feedback=false")
    assert [row["input_ids"] for row in without[::2]] == [row["input_ids"] for row in before[::2]]
    pear = "".join(token for token, label in zip(without[1]["tokens"], without[1]["labels"]) if label != -100)
    assert "pear" in pear
    assert len(rows(run, "feedback.missing=drop")) == 1


def test_overrides_may_stand_among_the_options(run, tmp_path):
    code, written, _ = run("dataset=more", "--format", "json", "cutoff_len=9")
    assert code == 0 and len(json.loads(written)["input_ids"]) == 9


def test_a_plain_file_shows_default_types(run):
    plain = {name: value for name, value in run.args.items() if name not in ("hsa", "feedback")}
    samples = rows(run, file_args=plain)
    assert {kind for sample in samples for kind in sample["semantic_ids"]} == {0, 1, 2}
    assert "I take the pear." in "".join(
        token for token, label in zip(samples[1]["tokens"], samples[1]["labels"]) if label != -100
    )


def test_evaluation_data(run):
    assert {row["dataset"] for row in rows(run, "--split", "eval", eval_dataset="more")} == {"more"}
    each = rows(run, "--split", "eval", eval_dataset="more", eval_on_each_dataset=True)
    assert [(row["index"], row["dataset"]) for row in each] == [(0, "more")]
    code, _, said = run("--split", "eval")
    assert code == 2 and "names no eval data" in said


def test_packed_rows_name_their_data_sets(run):
    (row,) = rows(run, dataset="tasks,more", neat_packing=True, cutoff_len=1024)
    assert sorted(row["dataset"].split(", ")) == ["more", "tasks"]
    assert len(row["input_ids"]) == len(row["semantic_ids"]) == len(row["labels"]) == len(row["tokens"]) == 1024


def test_a_stream(run):
    expected = rows(run)
    more = {"streaming": True, "max_steps": 1, "buffer_size": 1, "dataloader_num_workers": 1}
    assert rows(run, **more) == expected
    assert rows(run, **{**more, "dataloader_num_workers": None}) == expected


def test_looking_leaves_no_trace(run, tmp_path):
    tokenized = tmp_path / "tokenized"
    rows(run, tokenized_path=str(tokenized), bf16=True, resume_from_checkpoint="nowhere")
    assert not tokenized.exists()
    assert not (tmp_path / "out").exists()


def test_tokenized_data_is_shown(run, tmp_path):
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.train.sft import workflow

    from hsa_factory.llamafactory import integrate

    tokenized = str(tmp_path / "tokenized")
    args = {name: value for name, value in run.args.items() if name not in ("hsa", "feedback")}
    with integrate(HSAConfig(noise_window=20), FeedbackConfig()):
        parsed = get_train_args({**args, "do_train": True, "report_to": "none", "tokenized_path": tokenized})
        loaded = workflow.load_tokenizer(parsed[0])
        template = get_template_and_fix_tokenizer(loaded["tokenizer"], parsed[1])
        workflow.get_dataset(template, *parsed[:3], stage="sft", **loaded)
    plain, shown = rows(run), rows(run, tokenized_path=tokenized, dataset="nothing of that name")
    for row, other in zip(plain, shown, strict=True):
        names = ("index", "dataset", "input_ids", "semantic_ids", "labels", "tokens")
        assert [other[name] for name in names] == [row[name] for name in names]
        assert other["turns"] == [] and set(other["messages"]) == {None}
        known = {"before marker": "feedback or weight"}  # which of them is not recorded
        assert other["reasons"] == [known.get(reason, reason) for reason in row["reasons"]]


# -- text ------------------------------------------------------------------------------------------------------


def plain(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.fixture
def colours(monkeypatch):
    """A terminal with colours. (`datasets` replaces os.environ when it uses workers, rich keeps the one it knew.)"""
    monkeypatch.setattr(Console, "_environ", {"FORCE_COLOR": "1", "TERM": "xterm-256color"})


def styled(text):
    """Return (codes, piece of text) in order."""
    return [
        (set(codes.split(";")), piece) for codes, piece in re.findall(r"\x1b\[([0-9;]+)m(.*?)\x1b\[0m", text, re.S)
    ]


CYAN, GREEN, YELLOW, DIM = "36", "32", "33", "2"


def test_text_shows_types_as_colours_and_untrained_tokens_dim(run, colours):
    code, written, _ = run("--samples", "1")
    assert code == 0
    pieces = styled(written.split("trained (", 1)[1])
    styles = {}
    for codes, piece in pieces:
        for name in ("Take the apple.", "I take the pear.", "Wrong.", "I take the apple."):
            if name in piece:
                styles[name] = codes
    assert styles == {
        "Take the apple.": {CYAN, DIM},
        "I take the pear.": {GREEN, DIM},
        "Wrong.": {YELLOW, DIM},
        "I take the apple.": {GREEN},
    }
    (marker,) = [codes for codes, piece in pieces if M in piece]
    assert "41" in marker and "1" in marker  # on red, bold
    legend = plain(written).split("sample 1")[0]
    assert legend.startswith("legend: GLOBAL trained, not trained") and M in legend


def test_text_without_a_terminal_has_no_colours(run):
    code, written, _ = run()
    assert code == 0 and "\x1b" not in written
    for index, sample in enumerate(SAMPLES):
        assert re.search(rf"sample {index}, tasks: \d+ tokens \(GLOBAL \d+, LANDMARK \d+, NOISE \d+\)", written)
        for _, content, _ in sample:
            assert content in written  # characters of several tokens stay whole
    code, written, _ = run("feedback=false")
    assert M not in written.split("sample 0")[0]


def test_the_header_counts(run):
    (row,) = rows(run, "--samples", "1")
    _, written, _ = run("--samples", "1")
    counts = [row["semantic_ids"].count(kind) for kind in range(3)]
    trained = sum(label != -100 for label in row["labels"])
    expected = (
        f"sample 1, tasks: {len(row['input_ids'])} tokens (GLOBAL {counts[0]}, LANDMARK {counts[1]}, NOISE "
        f"{counts[2]}), {trained} trained ({trained / len(row['input_ids']):.1%})"
    )
    assert expected in written.splitlines()


def test_long_runs_of_placeholders_are_folded(run, tmp_path, tiny_tokenizer):
    from PIL import Image

    directory = tiny.save_tiny("qwen2_5_vl", tmp_path / "vision", [], tokenizer=tiny_tokenizer)
    Image.new("RGB", (112, 112)).save(tmp_path / "picture.png")
    messages = [
        {"role": "user", "content": "<image>what?", "semantic_type": "NOISE"},
        {"role": "assistant", "content": "a cup", "semantic_type": "LANDMARK"},
    ]
    (tmp_path / "seen.json").write_text(json.dumps([{"messages": messages, "images": ["picture.png"]}]), "utf-8")
    columns = {"messages": "messages", "images": "images"}
    entry = {"file_name": "seen.json", "formatting": "sharegpt", "columns": columns, "tags": TAGS}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"seen": entry}), "utf-8")
    more = {"model_name_or_path": str(directory), "template": "qwen2_vl", "dataset": "seen"}
    (row,) = rows(run, **more)
    number = row["tokens"].count("<|image_pad|>")
    assert number > 4
    _, written, _ = run(**more)
    assert f"<|vision_start|><|image_pad|>×{number}<|vision_end|>what?" in written
    assert written.count("<|image_pad|>") == 1


# -- what is wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"hsa": {"noise_windw": 3}}, "hsa: HSAConfig: unknown key 'noise_windw'. Did you mean 'noise_window'?"),
        ({"feedback": {"tokn": "x"}}, "feedback: FeedbackConfig: unknown key 'tokn'. Did you mean 'token'?"),
        ({"hsa": {"noise_window": -1}}, "HSAConfig.noise_window = -1 is not allowed"),
        ({"dataset": "nothing"}, "Undefined dataset nothing"),
        ({"stage": "dpo"}, "`stage: sft`, not `stage: dpo`"),
        ({"feedback": {"missing": "error"}}, "dataset 'tasks', sample 0: it has no <|feedback|>"),
        ({"model_name_or_path": "no/such/model"}, "Failed to load tokenizer"),
        ({"cutoff_length": 5}, "cutoff_length"),
    ],
)
def test_errors_are_one_message_without_a_traceback(run, more, message):
    code, written, said = run("--format", "json", **more)
    assert (code, written) == (2, "")
    assert message in said.splitlines()[-1] or message in said
    assert "hsa-factory inspect: " in said and "Traceback" not in said


def test_a_missing_file(capsys):
    assert main(["nowhere.yaml"]) == 2
    assert "hsa-factory inspect: Training file 'nowhere.yaml' does not exist." in capsys.readouterr().err


def test_a_checkpoint_of_other_rules(run, tmp_path, tiny_tokenizer):
    directory = tiny.save_tiny("qwen3", tmp_path / "trained", [], tokenizer=tiny_tokenizer)
    HSAConfig(noise_window=3).save_pretrained(directory)
    code, _, said = run("--format", "json", model_name_or_path=str(directory))
    assert code == 2 and "noise_window: 3 there, 20 here" in said
    assert rows(run, "hsa=true", model_name_or_path=str(directory))


def test_help_and_unknown_options(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    said = capsys.readouterr().out
    assert all(option in said for option in ("--format", "--samples A-B", "--split", "--output", "key=value"))
    for wrong in (["--format", "xml", "a.yaml"], []):
        with pytest.raises(SystemExit) as done:
            main(wrong)
        assert done.value.code == 2


def test_standard_output_is_pure_json(run, tmp_path):
    """In a process of its own, whose log handlers are as users have them."""
    run("--samples", "0")  # writes the file
    command = [sys.executable, "-m", "hsa_factory.cli", "inspect", str(tmp_path / "train.yaml"), "--format", "json"]
    result = subprocess.run([*command, "--samples", "0-"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert lines[2]["tokens"] and "llamafactory" in result.stderr
    assert lines == rows(run)
