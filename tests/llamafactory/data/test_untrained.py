"""Data in which nothing is left to train: without feedback and types as in plain LLaMA-Factory, with them an error."""

import json

import pytest

from hsa_factory import FeedbackConfig, HSAConfig


HSA = HSAConfig()
COLUMNS = ("input_ids", "labels", "attention_mask")


@pytest.fixture(scope="module")
def model_dir(lf):
    return lf.model_dir()


def untyped(number, text=""):
    """Conversations without a type, of which a small `cutoff_len` leaves nothing of a reply."""
    turns = [("user", f"take cup {text}"), ("assistant", "done"), ("user", "and now"), ("assistant", "nothing")]
    return [[{"role": role, "content": f"{content} {k}"} for role, content in turns] for k in range(number)]


def rows_of(prepared):
    """All rows, without the columns that plain LLaMA-Factory does not have."""
    splits = [split for split in ("train", "eval") if prepared.module.get(f"{split}_dataset") is not None]
    return {split: [{name: row[name] for name in COLUMNS} for row in prepared.rows(split)] for split in splits}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cutoff_len": 5},
        {"mask_history": True},
        {"train_on_prompt": True},
        {"template": "bailing"},
        {"packing": True, "neat_packing": True, "cutoff_len": 7},
        {"streaming": True, "dataloader_num_workers": 1},
        {"val_size": 0.5},
        {
            "do_predict": True,
            "predict_with_generate": True,
            "do_train": False,
            "dataset": None,
            "eval_dataset": "data",
        },
    ],
)
def test_untyped_data_stay_as_in_plain_llamafactory(lf, model_dir, tmp_path, options):
    data = lf.write_data(tmp_path, data=untyped(4))
    args = {**lf.args(data, "data", model_dir, cutoff_len=1, overwrite_cache=True), **options}
    plain = rows_of(lf.prepare(args))
    assert any(plain.values())
    for hsa in (HSA, HSAConfig(noise_turns=1)):
        assert rows_of(lf.prepare(args, hsa)) == plain


def test_it_is_counted_and_said(lf, model_dir, tmp_path, capsys):
    data = lf.write_data(tmp_path, data=untyped(3), good=untyped(2, "x"))
    args = lf.args(data, "data", model_dir, cutoff_len=1)
    counts = lf.prepare(args, HSA).counts
    assert (counts["untrained"], counts["kept"], counts["dropped"]) == (3, 3, {})
    assert "nothing is trained of 3 that stay all the same" in capsys.readouterr().out


def test_where_something_is_trained_the_rest_is_dropped(lf, model_dir, tmp_path):
    long = untyped(2, "please " * 300)  # their prompts leave no room for a reply
    data = lf.write_data(tmp_path, mixed=[*untyped(2), *long], lost=long)
    prepared = lf.prepare(lf.args(data, "mixed", model_dir, cutoff_len=25), HSA)
    assert prepared.counts["dropped"] == {"nothing left to train": 2} and prepared.counts["untrained"] == 0

    together = lf.prepare(lf.args(data, "mixed,lost", model_dir, cutoff_len=25), HSA)
    assert together.counts_of("mixed") == prepared.counts
    assert (together.counts_of("lost")["kept"], together.counts_of("lost")["untrained"]) == (2, 2)


ASKED = [
    pytest.param(HSA, FeedbackConfig(), {}, id="feedback"),
    pytest.param(None, FeedbackConfig(), {}, id="feedback alone"),
    pytest.param(HSAConfig(rules=[{"role": "user", "type": "NOISE"}]), None, {}, id="rules"),
    pytest.param(HSAConfig(default_type="NOISE"), None, {}, id="default"),
    pytest.param(HSA, None, {"semantic_type": "LANDMARK"}, id="types"),
]


@pytest.mark.parametrize(("hsa", "feedback", "key"), ASKED)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_was_asked_for_stays_an_error(lf, model_dir, tmp_path, hsa, feedback, key, streaming):
    samples = untyped(2)
    samples[1][0] |= key
    data = lf.write_data(tmp_path, data=samples)
    stream = {"streaming": True, "dataloader_num_workers": 1} if streaming else {}
    with pytest.raises(ValueError, match="Nothing is left to train in 'data'"):
        lf.prepare(lf.args(data, "data", model_dir, cutoff_len=1, **stream), hsa, feedback)


def test_samples_that_weights_empty_are_no_such_data(lf, model_dir, tmp_path):
    samples = [[{**message, "weight": 0} for message in sample] for sample in untyped(2)]
    data = lf.write_data(tmp_path, data=samples)
    with pytest.raises(ValueError, match="Nothing is left to train in 'data'"):
        lf.prepare(lf.args(data, "data", model_dir), HSA)


def test_a_data_set_of_invalid_samples_stops_only_a_run_that_needs_it(lf, model_dir, tmp_path):
    invalid = [[{"role": "assistant", "content": "first"}, {"role": "user", "content": "second"}]]
    data = lf.write_data(tmp_path, bad=invalid, good=untyped(2))
    args = lf.args(data, "bad,good", model_dir)
    assert rows_of(lf.prepare(args, HSA)) == rows_of(lf.prepare({**args, "dataset": "good"}))
    for names, hsa, feedback in (("bad", HSA, None), ("bad,good", HSA, FeedbackConfig())):
        with pytest.raises(ValueError, match="Nothing is left to train in 'bad'"):
            lf.prepare({**args, "dataset": names}, hsa, feedback)


@pytest.mark.parametrize("tokenized", [False, True])
def test_the_run_goes_on_with_a_warning(lf, model_dir, tmp_path, caplog, tokenized):
    from llamafactory.train.tuner import run_exp

    from hsa_factory.llamafactory import integrate

    data = lf.write_data(tmp_path, data=untyped(2))
    args = lf.args(data, "data", model_dir, cutoff_len=1, max_steps=1)
    if tokenized:
        args["tokenized_path"] = str(tmp_path / "tokenized")
        lf.prepare(args, HSA)
    with integrate(HSA):
        run_exp(args)
    assert "Nothing is left to train in 'data': all labels of its 2 samples are masked" in caplog.text
    report = json.loads((tmp_path / "out" / "hsa_report.json").read_text("utf-8"))
    assert report["datasets"]["data"]["untrained"] == 2
    assert (tmp_path / "out" / "hsa_config.json").is_file()
