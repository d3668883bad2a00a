"""Data saved at `tokenized_path`: loaded with their report, or refused where this run would make others."""

import pytest
from datasets import load_from_disk

from hsa_factory import FeedbackConfig, HSAConfig


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
