"""`hsa-factory inspect`: what it prints is what the model would get."""

import json
import logging
import re
import subprocess
import sys

import pytest
import yaml
from rich.console import Console

from hsa_factory import FeedbackConfig, HSAConfig, cli, tiny
from hsa_factory.commands.inspect import parse_range
from hsa_factory.inspection.check import check_accounts, check_rules


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


def main(arguments):
    return cli.main(["inspect", *arguments])


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
    from hsa_factory.llamafactory.data.collator import HSADataCollator

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
        assert list(sample) == [*names, "reasons", "messages", "turn_ids", "samples", "turns"]
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
    code, _, said = run("--in-file", tokenized_path=tokenized)
    assert code == 2 and "--in-file: data of a tokenized_path do not say which samples of a file they are" in said


# -- reasons, messages, truncation -----------------------------------------------------------------------------


def write_samples(run, samples, **columns):
    """Write another data set, `own`; a message is (role, text) or (role, text, weight)."""
    data = []
    for number, sample in enumerate(samples):
        messages = [{"role": role, "content": text} for role, text, *_ in sample]
        for message, (_, _, *weight) in zip(messages, sample):
            if weight:
                message["weight"] = weight[0]
        data.append({"messages": messages, **{name: values[number] for name, values in columns.items()}})
    (run.directory / "own.json").write_text(json.dumps(data, ensure_ascii=False), "utf-8")
    info = json.loads((run.directory / "dataset_info.json").read_text("utf-8"))
    names = {"messages": "messages", **{name: name for name in columns}}
    info["own"] = {"file_name": "own.json", "formatting": "sharegpt", "columns": names, "tags": TAGS}
    (run.directory / "dataset_info.json").write_text(json.dumps(info), "utf-8")


def spans(row, values):
    """Return (value, text) of consecutive tokens with the same value."""
    runs = []
    for token, value in zip(row["tokens"], values):
        if runs and runs[-1][0] == value:
            runs[-1][1] += token
        else:
            runs.append([value, token])
    return [tuple(run) for run in runs]


END, REPLY = "<|im_end|>\n", "<|im_start|>assistant\n"
FAILURE = [
    ("system", "You are a robot."),
    ("user", "Open it."),
    ("assistant", "I go."),
    ("user", f"{M}No."),
    ("assistant", "I open it."),
    ("user", "Good."),
    ("assistant", "Done.", 0),
]


def user(text):
    return f"<|im_start|>user\n{text}{END}{REPLY}"


def test_every_untrained_token_has_its_reason_and_message(run):
    write_samples(run, [FAILURE])
    (row,) = rows(run, dataset="own")
    head = f"<|im_start|>system\nYou are a robot.{END}"
    assert spans(row, row["reasons"]) == [
        ("role", head + user("Open it.")),
        ("before marker", "I go." + END),
        ("role", user(f"{M}No.")),
        (None, "I open it." + END),
        ("role", user("Good.")),
        ("weight", "Done." + END),
    ]
    texts = [head, user("Open it."), "I go." + END, user(f"{M}No."), "I open it." + END, user("Good."), "Done." + END]
    assert spans(row, row["messages"]) == list(enumerate(texts))
    assert [reason is None for reason in row["reasons"]] == [label != -100 for label in row["labels"]]
    assert row["samples"] == [
        {
            "dataset": "own",
            "index": 0,
            "start": 0,
            "stop": len(row["tokens"]),
            "truncated": 0,
            "marker_truncated": False,
        }
    ]
    assert [turn["role"] for turn in row["turns"]] == [role for role, *_ in FAILURE]
    for turn, text in zip(row["turns"], texts):
        assert "".join(row["tokens"][turn["start"] : turn["stop"]]) == text
        assert sum(turn["types"].values()) == turn["stop"] - turn["start"]
    assert [turn["trained"] > 0 for turn in row["turns"]] == [False] * 4 + [True, False, False]
    assert [turn["turn"] for turn in row["turns"]] == [0, 0, 0, 1, 1, 2, 2]
    turns = ["".join(texts[:3]), "".join(texts[3:5]), "".join(texts[5:])]
    assert spans(row, row["turn_ids"]) == list(enumerate(turns))

    (row,) = rows(run, "feedback.train=recovery", dataset="own")
    assert [reason for reason, _ in spans(row, row["reasons"])] == ["role", "failed", "role", None, "role", "weight"]
    write_samples(run, [FAILURE[:5]])
    (row,) = rows(run, "feedback=false", "mask_history=true", dataset="own")
    assert [reason for reason, _ in spans(row, row["reasons"])] == ["role", "history", "role", None]


def test_a_system_prompt_that_is_no_message(run):
    write_samples(run, [FAILURE[1:]], system=["Be short."])
    info = json.loads((run.directory / "dataset_info.json").read_text("utf-8"))
    info["own"]["columns"]["system"] = "system"
    (run.directory / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    (row,) = rows(run, dataset="own")
    assert spans(row, row["messages"])[0] == (None, f"<|im_start|>system\nBe short.{END}")
    assert [turn["message"] for turn in row["turns"]] == [None, 0, 1, 2, 3, 4, 5]


def test_what_truncation_took(run):
    write_samples(run, [FAILURE[1:]])
    (whole,) = rows(run, "feedback=false", dataset="own")
    for first, mask_history in ((8, False), (13, True)):
        for cutoff_len in range(first, len(whole["tokens"]) + 1, 10):
            arguments = ("feedback=false", f"mask_history={mask_history}", "hsa=true")
            code, written, _ = run("--format", "json", *arguments, dataset="own", cutoff_len=cutoff_len)
            if code:  # nothing of it is trained
                continue
            row = json.loads(written)
            lost = len(whole["tokens"]) - len(row["tokens"])
            assert row["samples"][0]["truncated"] == lost == sum(turn["truncated"] for turn in row["turns"])
            assert len(row["turns"]) == 6
            for turn, before in zip(row["turns"], whole["turns"]):
                length = turn["stop"] - turn["start"]
                assert length + turn["truncated"] == before["stop"] - before["start"]
                text = whole["tokens"][before["start"] : before["start"] + length]
                assert row["tokens"][turn["start"] : turn["stop"]] == text


def test_packed_rows_trace_each_token_to_its_sample(run):
    write_samples(run, [FAILURE, FAILURE[1:3], FAILURE[3:5]])
    (row,) = rows(run, dataset="own", neat_packing=True, cutoff_len=256)
    single = rows(run, dataset="own")
    assert sorted(part["index"] for part in row["samples"]) == [0, 1, 2]
    for part in row["samples"]:
        alone = single[part["index"]]
        for name in ("tokens", "reasons", "messages", "turn_ids", "labels"):
            assert row[name][part["start"] : part["stop"]] == alone[name]
    end = row["samples"][-1]["stop"]
    assert set(row["reasons"][end:]) == {"padding"} and set(row["messages"][end:]) == {None}


def test_pictures_are_media(run, tmp_path, tiny_tokenizer):
    from PIL import Image

    directory = tiny.save_tiny("qwen2_5_vl", tmp_path / "vision", [], tokenizer=tiny_tokenizer)
    paths = []
    for number in range(3):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", (112, 112), (80 * number, 0, 0)).save(paths[-1])
    sample = [
        ("user", "<image>what?"),
        ("assistant", "a cup"),
        ("user", "and <image> or <image>?"),
        ("assistant", "no"),
    ]
    write_samples(run, [sample], images=[paths])
    more = {"model_name_or_path": str(directory), "template": "qwen2_vl", "dataset": "own"}
    (row,) = rows(run, **more)
    pads = {token for token, reason in zip(row["tokens"], row["reasons"]) if reason == "media"}
    assert pads == {"<|vision_start|>", "<|image_pad|>", "<|vision_end|>"}

    code, written, said = run("--format", "html", **more)
    assert code == 0, said
    data = page_data(written)
    turns = data["samples"][0]["turns"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert [[item["name"] for item in turn["media"]] for turn in turns] == [[], paths[:1], [], paths[1:], []]
    for turn in turns:
        for item in turn["media"]:
            assert row["tokens"][item["start"]] == "<|image_pad|>" != row["tokens"][item["start"] - 1]
            assert data["images"][item["image"]].startswith("data:image/jpeg;base64,")
    assert len(data["images"]) == 3

    code, learned, said = run("--format", "html", **more, train_on_prompt=True)
    assert code == 0, said
    for text in (written, learned):  # what stands for a picture does so, trained or not
        items = [item for turn in page_data(text)["samples"][0]["turns"] for item in turn["media"]]
        shown = [row["tokens"][item["start"] : item["start"] + item["size"]] for item in items]
        assert shown == [["<|image_pad|>"] * 16 + ["<|vision_end|>"]] * 3

    (cut,) = rows(run, **more, cutoff_len=row["turns"][3]["start"] + 25)
    assert cut["turns"][3]["start"] == cut["turns"][3]["stop"] and cut["turns"][3]["truncated"] > 0


# -- html ------------------------------------------------------------------------------------------------------


def page_data(text):
    bodies = re.findall(r'<script type="application/json"([^>]*)>(.*?)</script>', text, re.S)
    values = [json.loads(body) for _, body in bodies]
    return {"settings": values[0], "overview": values[1], "images": values[2], "samples": values[3:]}


def test_a_page(run):
    code, written, said = run("--format", "html", "--samples", "1-", "hsa.hide=[[GLOBAL,NOISE]]")
    assert code == 0, said
    data = page_data(written)
    assert data["settings"]["rules"]["windows"] == [None, None, 20]
    assert data["settings"]["rules"]["hide"] == [[0, 2]]
    assert [sample["index"] for sample in data["samples"]] == [1, 2]
    json_rows = rows(run, "--samples", "1-")
    for sample, row in zip(data["samples"], json_rows, strict=True):
        assert sample["ids"] == row["input_ids"]
        assert sample["types"] == "".join(map(str, row["semantic_ids"]))
        names = data["settings"]["reasons"]
        assert [names.get(code) for code in sample["reasons"]] == row["reasons"]
    assert "苹果在哪里？" in data["samples"][1]["text"]
    assert [row[0] for row in data["overview"]["rows"]] == [0, 1, 2]  # all of them
    assert data["overview"]["accounts"]["tasks"]["samples"] == 3
    assert "train.yaml" in written


def test_pages_of_files_without_hsa(run):
    _, written, _ = run("--format", "html", hsa=None)
    assert page_data(written)["settings"]["rules"] is None and "every token sees all before it" in written
    _, written, _ = run("--format", "html", hsa=None, feedback=None)
    assert page_data(written)["settings"]["rules"]["windows"] == [None, None, 50] and "no hsa block" in written


def test_a_full_page_says_so(run, monkeypatch):
    from hsa_factory.commands import inspect as command

    monkeypatch.setattr(command, "PAGE_LIMIT", 100)
    code, written, said = run("--format", "html")
    assert code == 0 and len(page_data(written)["samples"]) == 1
    assert "The page is full: it ends with sample 0." in written
    assert "The page is full" in said


# -- check -----------------------------------------------------------------------------------------------------


def check(run, capsys, *arguments, **more):
    path = run.directory / "train.yaml"
    path.write_text(yaml.safe_dump({**run.args, **more}), "utf-8")
    code = main([str(path), "--check", *arguments])
    return code, capsys.readouterr()


def test_check_passes(run, capsys):
    code, captured = check(run, capsys)
    assert code == 0
    assert captured.out == "checked 3 samples: nothing to complain of\n"


def test_check_lists_what_is_wrong(run, capsys):
    code, captured = check(run, capsys, cutoff_len=30)
    assert code == 1
    assert captured.out.splitlines() == [
        "tasks: nothing is trained in 1 sample (sample 1)",
        "tasks: cutoff_len took the feedback marker from 1 sample (sample 1)",
    ]
    assert "tasks: 1 lost the feedback marker to cutoff_len (sample 1)" in captured.err
    code, captured = check(run, capsys, "--max-dropped", "0.2", "feedback.missing=drop")
    assert code == 1
    (line,) = captured.out.splitlines()
    assert line == "tasks: 2 of 3 samples are dropped (66.7%, allowed 20.0%: no feedback marker: 2)"
    assert check(run, capsys, "--max-dropped", "0.7", "feedback.missing=drop")[0] == 0


def test_check_limits_blind_replies(run, capsys):
    sample = [("user", "a"), ("assistant", "b"), ("user", f"c {M}" + " d" * 40), ("assistant", "e")]
    write_samples(run, [sample] * 2)
    noise = {"dataset": "own", "hsa": {"noise_window": 20, "default_type": "NOISE"}}
    code, captured = check(run, capsys, **noise)
    assert code == 0
    assert captured.out == "checked 2 samples: nothing to complain of\n"
    hidden = "2 of 2 replies after the feedback token do not see it, 2 of 4 replies see only a part of the message before them"
    assert hidden in " ".join(captured.err.split()) and "2/4" in captured.err  # the table

    code, captured = check(run, capsys, "--max-blind", "0.4", **noise)
    assert code == 1
    (line,) = captured.out.splitlines()
    assert line.startswith(f"own: 2 of 4 replies are blind (50.0%, allowed 40.0%): {hidden}. ")
    window = line.split("hsa.noise_window=")[1].split(";")[0]
    assert "set hsa.noise_turns=1" in line
    assert check(run, capsys, "--max-blind", "0", "hsa.noise_turns=1", **noise)[0] == 0
    assert check(run, capsys, "--max-blind", "0", f"hsa.noise_window={window}", **noise)[0] == 0
    assert check(run, capsys, "--max-blind", "0.5", **noise)[0] == 0
    code, captured = check(run, capsys, "--max-blind", "0", dataset="own", hsa=None)
    assert code == 2 and "--max-blind: the training file has no hsa block" in captured.err


def test_check_does_not_guess_what_is_seen(run, capsys):
    """Data of a tokenized_path were counted with the rules that they were made with."""
    account = {"samples": 1, "dropped": {}, "dropped_samples": {}, "marker_cut": 0, "kept": 1, "sight": {}}
    (finding,) = check_accounts({"data": account}, max_blind=1.0)
    assert finding.startswith("data: what its replies see is not known") and "tokenized_path" in finding
    assert check_accounts({"data": account}) == []


def test_check_where_nothing_is_left(run, capsys):
    write_samples(run, [[("user", "a"), ("assistant", "b", 0)]] * 30)
    code, captured = check(run, capsys, dataset="own")
    assert code == 1 and "Traceback" not in captured.err
    listed = ", ".join(map(str, range(20)))
    assert captured.out.splitlines() == [
        f"own: nothing is trained in 30 samples (samples {listed} and 10 more)",
        "own: no sample is left",
    ]
    page = run.directory / "page.html"
    assert check(run, capsys, "--format", "html", "--output", str(page), dataset="own")[0] == 1
    assert page_data(page.read_text("utf-8"))["samples"] == []


def test_check_may_also_write(run, capsys):
    page = run.directory / "page.html"
    code, _ = check(run, capsys, "--format", "html", "--output", str(page), cutoff_len=30)
    assert code == 1 and len(page_data(page.read_text("utf-8"))["samples"]) == 2


def test_rules_that_never_matched(run, capsys):
    assert check_rules({"thought": 3, "pickup": 0}) == ["rule 'pickup' never matched"]
    own = [{"name": "seen", "role": "observation", "type": "NOISE"}]
    code, captured = check(run, capsys, hsa={"rules": own})
    assert code == 1 and captured.out == "rule 'seen' never matched\n"
    code, captured = check(run, capsys, "hsa.rules=react")
    assert code == 0
    note, passed = captured.out.splitlines()
    assert re.fullmatch(r"note: \d+ of the \d+ rules of the preset 'react' never matched: .*", note)
    assert passed == "checked 3 samples: nothing to complain of"


def test_samples_by_their_number_in_the_file(run):
    """Where samples are dropped, a page of the file's samples is not that of the prepared data."""
    write_samples(run, [[("user", f"q{number}"), ("assistant", "a", number % 2)] for number in range(6)])
    shown = lambda text: [number for number in range(6) if f"q{number}" in text]
    assert shown(run("--samples", "2-3", dataset="own")[1]) == [5]
    assert shown(run("--in-file", "--samples", "2-3", dataset="own")[1]) == [3]
    page = run("--format", "html", "--in-file", "--samples", "4-4", dataset="own")[1]
    assert page_data(page)["samples"] == []
    assert "Of sample 4 of own, 1 is left out." in page
    code, written, said = run("--in-file", "--samples", "4-", dataset="own")
    assert code == 0 and shown(written) == [5] and "Of samples 4 to 5 of own, 1 is left out." in said
    code, _, said = run("--in-file", "--samples", "6", dataset="own")
    assert code == 2 and "--samples 6…: there is no such sample, own has 6 samples, numbers from 0" in said
    code, _, said = run("--in-file", "--compare", "hsa.noise_turns=1", dataset="own")
    assert code == 2 and "without --in-file" in said


def test_hostile_text_does_not_reach_the_screen(run, capsys):
    hostile = "a\x1b[2J\x9b1m\u202e\u200b [bold]b[/bold] :smile:"
    write_samples(run, [[("user", hostile), ("assistant", hostile)]])
    shown = "a<U+001B>[2J<U+009B>1m<U+202E><U+200B> [bold]b[/bold] :smile:"
    code, written, said = run("--samples", "0", dataset="own")
    assert code == 0 and written.count(shown) == 2
    (page,) = page_data(run("--format", "html", dataset="own")[1])["samples"]
    assert page["text"].count(shown) == 2
    _, line, said_json = run("--format", "json", dataset="own")
    assert "a\x1b[2J" in "".join(json.loads(line)["tokens"])
    for text in (written, said, line, said_json):
        assert not set(text) & set("\x1b\x9b\u202e\u200b")


def test_the_example_of_llamafactory_is_not_printed(run, capsys):
    """It is what was asked for to be shown, once more and raw."""
    code, captured = check(run, capsys)
    assert code == 0 and "training example" not in captured.err and "input_ids:" not in captured.err
    assert "Training data with HSA" in captured.err


# -- the output ------------------------------------------------------------------------------------------------


def test_html_needs_an_output(run, capsys):
    run("--samples", "0")
    assert main([str(run.directory / "train.yaml"), "--format", "html"]) == 2
    assert capsys.readouterr().err == "hsa-factory inspect: --format html needs --output PAGE.\n"


@pytest.mark.parametrize("output", ["nowhere/page.html", "."])
def test_outputs_that_cannot_be_written_stop_before_the_work(run, tmp_path, capsys, monkeypatch, output):
    import hsa_factory.llamafactory.inspect.prepared_data as samples

    run("--samples", "0")
    monkeypatch.setattr(samples, "load_samples", lambda *args, **more: pytest.fail("data were prepared"))
    assert main([str(tmp_path / "train.yaml"), "--output", str(tmp_path / output)]) == 2
    assert "hsa-factory inspect: --output" in capsys.readouterr().err


def test_a_failed_run_leaves_the_former_file(run, tmp_path, capsys):
    run("--samples", "0")
    target = tmp_path / "page.txt"
    target.write_text("former", "utf-8")
    assert main([str(tmp_path / "train.yaml"), "--samples", "7", "--output", str(target)]) == 2
    assert target.read_text("utf-8") == "former"
    assert not list(tmp_path.glob(".page.txt*"))


def test_an_empty_data_set(run, capsys):
    (run.directory / "own.json").write_text("[]", "utf-8")
    info = json.loads((run.directory / "dataset_info.json").read_text("utf-8"))
    info["own"] = {
        "file_name": "own.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": TAGS,
    }
    (run.directory / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    for arguments in ((), ("--format", "html"), ("--check",)):
        code, written, said = run(*arguments, dataset="own")
        assert code == 2 and not written
        assert "hsa-factory inspect: " in said and "Traceback" not in said


@pytest.mark.parametrize("samples", ["0-99999999999999999999999999", "9" * 30, "1000000001"])
def test_absurd_ranges(run, samples):
    code, written, said = run("--samples", samples)
    assert (code, written) == (2, "") and "no data set has so many samples" in said


@pytest.mark.parametrize("share", ["-0.1", "1.5", "half", "nan"])
def test_shares_are_between_0_and_1(run, capsys, share):
    with pytest.raises(SystemExit):
        main(["train.yaml", "--check", "--max-dropped", share])
    assert "--max-dropped" in capsys.readouterr().err
    assert main(["train.yaml", "--max-dropped", "0.5"]) == 2
    assert "--max-dropped is for --check" in capsys.readouterr().err
    assert main(["train.yaml", "--max-blind", "0.5"]) == 2
    assert "--max-blind is for --check" in capsys.readouterr().err


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
        ({"stage": "ppo", "reward_model": "x", "reward_model_type": "full"}, "`stage: ppo` does not start"),
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


@pytest.mark.long
def test_standard_output_is_pure_json(run, tmp_path):
    """In a process of its own, whose log handlers are as users have them."""
    run("--samples", "0")  # writes the file
    command = [sys.executable, "-m", "hsa_factory.cli", "inspect", str(tmp_path / "train.yaml"), "--format", "json"]
    result = subprocess.run([*command, "--samples", "0-"], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert lines[2]["tokens"] and "llamafactory" in result.stderr
    assert lines == rows(run)


# -- cost and compare ------------------------------------------------------------------------------------------


def test_cost_by_length(run, tmp_path, monkeypatch, capsys):
    from hsa_factory.inspection import attention_time

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(attention_time, "_LENGTHS", dict.fromkeys(attention_time._LENGTHS, (32, 64)))
    write_samples(run, [FAILURE, [("user", "a" * 3), ("assistant", "b " * 200)]])
    arguments = ("--cost", "--format", "json", "hsa={noise_turns: 0, default_type: NOISE}", "feedback=false")
    code, written, said = run(*arguments, dataset="own")
    assert code == 0 and "once for this machine" in said
    values = json.loads(written)
    assert [row["samples"] for row in values["lengths"]] == [1, 1] and values["all"]["samples"] == 2
    assert values["threads"] > 0 and values["machine"]
    first, second = values["lengths"]
    assert first["up_to"] < second["up_to"] and first["pairs_seen"] < 1 and second["pairs_seen"] == 1
    assert first["keys_end"] < first["plain_keys"] == first["tokens"]
    assert (
        second["plain_cache_bytes"] == second["tokens"] * 2 * 2 * 2 * 16 * 4
    )  # k and v, layers, heads, size, float32
    code, written, said = run("--cost", "feedback=false", dataset="own", hsa={"noise_turns": 0})
    assert code == 0 and "once for this machine" not in said
    assert "pairs seen" in written and "1 thread" in written and "2 layers, 4 heads of 16" in written
    code, _, said = run("--cost", hsa=None)
    assert code == 2 and "--cost: the training file has no hsa block" in said
    assert run("--cost", "--format", "html")[0] == 2 and run("--cost", "--check")[0] == 2


def test_compare_with_files_rules_and_options(run, tmp_path):
    def changes(*arguments, **more):
        code, written, said = run("--format", "json", *arguments, **more)
        assert code == 0, said
        return [json.loads(line) for line in written.splitlines()], said

    same, said = changes("--compare", "hsa.noise_window=20")
    assert [row["changed"]["tokens"] for row in same] == [0, 0, 0] and "0 of" in said
    wider, _ = changes("--compare", "hsa.noise_window=1", "--samples", "1")
    (row,) = wider
    assert row["index"] == 1 and row["changed"]["visibility"] > 0 == row["changed"]["type"] == row["changed"]["label"]
    unmasked, said = changes("--compare", "feedback.scope=assistant")
    assert [row["changed"]["label"] > 0 for row in unmasked] == [False, True, False] and "trained now" in said
    (pear,) = [message for message in unmasked[1]["messages"] if message["message"] == 1]
    assert "pear" in "".join(token["token"] for token in pear["tokens"])

    write_samples(run, [[("user", "see <a>this</a>"), ("assistant", "no")]])
    for name, kind in (("one", "NOISE"), ("two", "LANDMARK")):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump([{"role": "user", "type": kind}]), "utf-8")
    rules, _ = changes("--compare", str(tmp_path / "one.yaml"), dataset="own")
    types = {tuple(token["types"]) for message in rules[0]["messages"] for token in message["tokens"]}
    assert types == {("GLOBAL", "NOISE")}
    both = ("--compare", str(tmp_path / "one.yaml"), "--compare", str(tmp_path / "two.yaml"))
    rules, said = changes(*both, dataset="own")
    types = {tuple(token["types"]) for message in rules[0]["messages"] for token in message["tokens"]}
    assert types == {("NOISE", "LANDMARK")} and "NOISE → LANDMARK" in said

    other = {**run.args, "feedback": {"missing": "drop"}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other), "utf-8")
    code, written, _ = run("--compare", str(tmp_path / "other.yaml"), "--samples", "0", feedback=None)
    assert code == 0 and "not compared, it is dropped, or absent, on the other side" in written
    for form in ("text", "html"):
        code, written, _ = run("--format", form, "--compare", "hsa.noise_window=1")
        assert code == 0 and "tasks, sample 1:" in written and "visibility" in written
    assert run("--compare", "nothing.yaml")[0] == 2 and run("--compare", "a=1", "--check")[0] == 2


def test_compare_packed_rows_by_sample(run):
    code, written, said = run("--format", "json", "--compare", "packing=false", neat_packing=True, cutoff_len=512)
    assert code == 0, said
    rows = [json.loads(line) for line in written.splitlines()]
    assert sorted(row["index"] for row in rows) == [0, 1, 2]


# -- other stages ----------------------------------------------------------------------------------------------


def write_pairs(run):
    """Write two pairs; feedback leaves nothing of what the second one rejects."""
    prompt = [{"role": "user", "content": "Take the apple. " * 4, "semantic_type": "NOISE"}]
    chosen = {"role": "assistant", "content": "I take it.", "semantic_type": "LANDMARK"}
    rejected = {"role": "assistant", "content": f"The pear.{M}I leave.", "semantic_type": "GLOBAL"}
    emptied = {**rejected, "loss": False}
    rows = [{"messages": prompt, "chosen": chosen, "rejected": one} for one in (rejected, emptied)]
    (run.directory / "pairs.json").write_text(json.dumps(rows), "utf-8")
    info = json.loads((run.directory / "dataset_info.json").read_text("utf-8"))
    columns = {"messages": "messages", "chosen": "chosen", "rejected": "rejected"}
    info["pairs"] = {
        "file_name": "pairs.json",
        "ranking": True,
        "formatting": "sharegpt",
        "columns": columns,
        "tags": TAGS,
    }
    (run.directory / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    return {"stage": "dpo", "dataset": "pairs"}


def trained_text(row):
    return "".join(token for token, label in zip(row["tokens"], row["labels"]) if label != -100)


def test_pairs_are_two_samples_of_one_number(run):
    pairs = write_pairs(run)
    chosen, rejected = rows(run, **pairs)
    assert [(row["index"], row["side"]) for row in (chosen, rejected)] == [(0, "chosen"), (0, "rejected")]
    assert trained_text(chosen) == "I take it.<|im_end|>\n" and trained_text(rejected) == "I leave.<|im_end|>\n"
    assert set(chosen["semantic_ids"][-5:]) == {1} and set(rejected["semantic_ids"][-5:]) == {0}
    assert chosen["semantic_ids"][0] == rejected["semantic_ids"][0] == 2
    assert {reason for reason in rejected["reasons"] if reason} >= {"role", "before marker"}

    code, written, said = run(**pairs)
    assert (
        code == 0 and "0 chosen" in written and "0 rejected" in written and "nothing left to train in rejected" in said
    )
    page = run.directory / "pairs.html"
    code, _, said = run("--format", "html", "--output", str(page), **pairs)
    assert code == 0, said
    names = [sample["name"] for sample in page_data(page.read_text("utf-8"))["samples"]]
    assert names == ["0 chosen", "0 rejected"]


def test_check_compare_and_cost_of_pairs(run, capsys, tmp_path, monkeypatch):
    from hsa_factory.inspection import attention_time

    pairs = write_pairs(run)
    code, captured = check(run, capsys, **pairs)
    assert (code, captured.out) == (1, "pairs: nothing is trained in rejected of 1 sample (sample 1)\n")
    code, captured = check(run, capsys, "cutoff_len=24", "feedback=false", **pairs)
    assert code == 1 and "pairs: cutoff_len took the end of the prompt from 1 sample" in captured.out

    code, written, _ = run("--format", "json", "--compare", "hsa.noise_window=1", **pairs)
    changed = [json.loads(line) for line in written.splitlines()]
    assert code == 0 and [(row["index"], row["side"]) for row in changed] == [(0, "chosen"), (0, "rejected")]
    assert all(row["changed"]["visibility"] > 0 == row["changed"]["type"] for row in changed)
    code, written, _ = run("--format", "json", "--compare", "feedback.scope=user", **pairs)
    labels = {
        row["side"]: row["changed"]["label"] for row in map(json.loads, written.splitlines()) if row["index"] == 0
    }
    assert code == 0 and labels["chosen"] == 0 < labels["rejected"]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(attention_time, "_LENGTHS", dict.fromkeys(attention_time._LENGTHS, (32, 64)))
    code, written, said = run("--cost", "--format", "json", **pairs)
    assert code == 0, said
    assert json.loads(written)["all"]["samples"] == 2  # sequences: the sides of the pair that is kept


def test_reward_models_see_whole_replies(run):
    chosen, rejected = rows(run, **{**write_pairs(run), "stage": "rm"})[:2]
    assert (chosen["side"], rejected["side"]) == ("chosen", "rejected")
    assert trained_text(rejected) == f"The pear.{M}I leave.<|im_end|>\n"


def test_labelled_replies_are_shown_without_their_kl_half(run):
    samples = [
        [("user", "a", None), ("assistant", f"wrong{M}right", None)],
        [("user", "b", None), ("assistant", "c", None)],
    ]
    write_samples(run, [[turn[:2] for turn in sample] for sample in samples], label=[True, False])
    info = json.loads((run.directory / "dataset_info.json").read_text("utf-8"))
    info["own"]["columns"] = {"messages": "messages", "kto_tag": "label"}
    (run.directory / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    first, second = rows(run, stage="kto", dataset="own")
    assert trained_text(first) == "right<|im_end|>\n" and trained_text(second) == "c<|im_end|>\n"
    assert "side" not in first


def test_raw_texts(run):
    (run.directory / "texts.json").write_text(json.dumps([{"text": "see <a>this</a> once"}]), "utf-8")
    info = {"texts": {"file_name": "texts.json", "columns": {"prompt": "text"}}}
    (run.directory / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    rules = [{"tag": "a", "type": "LANDMARK"}]
    (row,) = rows(run, stage="pt", dataset="texts", feedback=None, packing=False, hsa={"rules": rules})
    landmarks = "".join(token for token, kind in zip(row["tokens"], row["semantic_ids"]) if kind == 1)
    assert landmarks == "<a>this</a>" and trained_text(row).startswith("see <a>this</a> once")
