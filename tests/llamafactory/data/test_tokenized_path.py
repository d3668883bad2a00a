"""Data saved at `tokenized_path`: loaded with their report, or refused where this run would make others."""

import json
from pathlib import Path

import pytest
from datasets import load_from_disk

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.llamafactory.data.tokenized_path import check_arrow_files


HSA, FEEDBACK = HSAConfig(), FeedbackConfig()


@pytest.fixture(scope="module")
def model_dir(lf):
    return lf.model_dir("qwen3", extra=(lf.MARKER,))


def trajectories(lf, number):
    """Return conversations of mixed types; every third holds the marker."""
    samples = [lf.dialogue([k % 3, (k + 1) % 3, 2, k % 2], words=2 + k % 4) for k in range(number)]
    for messages in samples[1::3]:
        messages[2]["content"] += lf.MARKER + messages[2]["content"]
    return samples


def test_tokenized_data_is_saved_and_loaded(lf, model_dir, tmp_path):
    data = lf.write_data(tmp_path, data=trajectories(lf, 10))
    saved = tmp_path / "saved"
    args = lf.args(data, "data", model_dir, cutoff_len=70, tokenized_path=str(saved))
    first = lf.prepare(args, HSA, FEEDBACK)
    assert (saved / "hsa_report.json").is_file()
    assert "hsa_account" not in load_from_disk(str(saved))["train"].column_names

    again = lf.prepare(args, HSA, FEEDBACK)
    assert again.rows() == first.rows()
    assert again.report == first.report

    with pytest.raises(ValueError, match="occurrence.*this run asks for.*'last'.*Remove it"):
        lf.prepare(args, HSA, FeedbackConfig(occurrence="last"))
    with pytest.raises(ValueError, match="this run asks for None"):
        lf.prepare(args, HSA)
    with pytest.raises(ValueError, match="default_type 'GLOBAL_CONDITION', this run asks for 'NOISE'. Remove it"):
        lf.prepare(args, HSAConfig(default_type="NOISE"), FEEDBACK)
    other_attention = HSAConfig(noise_window=3, default_type="GLOBAL")  # types are the same
    assert lf.prepare(args, other_attention, FEEDBACK).rows() == first.rows()


def test_tokenized_data_made_without_hsa_is_refused(lf, model_dir, tmp_path):
    data = lf.write_data(tmp_path, data=trajectories(lf, 4))
    args = lf.args(data, "data", model_dir, tokenized_path=str(tmp_path / "plain"))
    lf.prepare(args)
    with pytest.raises(ValueError, match="no column 'semantic_ids': it was made without HSA"):
        lf.prepare(args, HSA, FEEDBACK)
    with pytest.raises(ValueError, match="no column 'loss_mask': it was made without Feedback"):
        lf.prepare(args, None, FEEDBACK)


def test_tokenized_data_made_without_feedback_is_refused(lf, model_dir, tmp_path):
    data = lf.write_data(tmp_path, data=trajectories(lf, 4))
    args = lf.args(data, "data", model_dir, tokenized_path=str(tmp_path / "typed"))
    lf.prepare(args, HSA)
    with pytest.raises(ValueError, match="was made with feedback None, this run asks for"):
        lf.prepare(args, HSA, FEEDBACK)
    (tmp_path / "typed" / "hsa_report.json").unlink()
    with pytest.raises(ValueError, match="has no hsa_report.json, which says what feedback it was made with"):
        lf.prepare(args, HSA, FEEDBACK)


def test_tokenized_data_as_a_stream(lf, model_dir, tmp_path):
    data = lf.write_data(tmp_path, data=trajectories(lf, 6))
    args = lf.args(data, "data", model_dir, tokenized_path=str(tmp_path / "saved"))
    first = lf.prepare(args, HSA, FEEDBACK)
    streamed = lf.prepare({**args, "streaming": True, "dataloader_num_workers": 1}, HSA, FEEDBACK)
    assert streamed.rows() == first.rows()
    with pytest.raises(ValueError, match="made with feedback"):
        lf.prepare({**args, "streaming": True}, HSA, FeedbackConfig(occurrence="last"))


@pytest.fixture
def saved(lf, model_dir, tmp_path):
    """Arguments of a run whose data are at its tokenized path."""
    data = lf.write_data(tmp_path, data=trajectories(lf, 6), other=trajectories(lf, 6))
    args = lf.args(data, "data", model_dir, tokenized_path=str(tmp_path / "saved"))
    lf.prepare(args, HSA)
    return args


@pytest.mark.parametrize(
    ("option", "value", "there"),
    [
        ("val_size", 0.5, "0.0"),
        ("eval_dataset", "other", "None"),
        ("cutoff_len", 64, "2048"),
        ("neat_packing", True, "False"),
        ("template", "llama3", "'qwen3'"),
        ("mask_history", True, "False"),
        ("max_samples", 3, "None"),
    ],
)
def test_options_that_would_be_ignored(lf, saved, option, value, there):
    with pytest.raises(
        ValueError, match=f"was made with .*{option} {there}, this run asks for .*Remove it to tokenize"
    ):
        lf.prepare({**saved, option: value}, HSA)


def test_another_tokenizer(lf, saved):
    with pytest.raises(ValueError, match="was made with tokenizer '.* tokens, .*', this run asks for '.* tokens"):
        lf.prepare({**saved, "model_name_or_path": str(lf.model_dir("qwen3", extra=("<|more|>",)))}, HSA)


@pytest.mark.parametrize(("option", "value"), [("val_size", 0.5), ("eval_dataset", "other")])
def test_no_data_to_evaluate_on(lf, saved, option, value):
    """Data of an earlier version, which did not record its options; or without a report."""
    path = Path(saved["tokenized_path"]) / "hsa_report.json"
    values = json.loads(path.read_text("utf-8"))
    del values["data_options"]
    path.write_text(json.dumps(values), "utf-8")
    lf.prepare(saved, HSA)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"no data to evaluate on: {option} .* would be ignored"):
            lf.prepare({**saved, option: value}, HSA)
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("data-00000-of-00001.arrow", -300),
        ("data-00000-of-00001.arrow", -8),
        ("state.json", 10),
        ("dataset_info.json", 0),
    ],
)
def test_a_file_that_is_cut_off_is_named(lf, saved, name, size):
    path = Path(saved["tokenized_path"]) / "train" / name
    check_arrow_files(saved["tokenized_path"])
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{path} is not whole: .*Remove the directory to tokenize again"):
        lf.prepare(saved, HSA)


def test_nothing_there_is_fine(tmp_path):
    check_arrow_files(None)
    check_arrow_files(str(tmp_path / "nowhere"))
