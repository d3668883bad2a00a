"""The rules of a run, settled with those saved beside the checkpoints that it starts from."""

import logging
from types import SimpleNamespace

import llamafactory.train.sft.workflow as workflow
import llamafactory.train.tuner as tuner
import pytest

from hsa_factory import HSAConfig
from hsa_factory.llamafactory import integrate
from hsa_factory.llamafactory.model.checkpoint import has_saved_rules, resolve_config, starting_points
from hsa_factory.models.enable import get_state


HSA = HSAConfig()


def places(model=None, adapters=None, resume=None, output=None):
    model_args = SimpleNamespace(model_name_or_path=str(model), adapter_name_or_path=adapters)
    return model_args, SimpleNamespace(resume_from_checkpoint=resume, output_dir=str(output))


@pytest.fixture
def checkpoint(tmp_path):
    """A directory with the rules it was trained with."""
    HSAConfig(noise_window=7, default_type="NOISE").save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


@pytest.mark.parametrize("kind", ["model", "adapters", "resume"])
def test_a_checkpoint_of_other_rules_is_an_error(tmp_path, checkpoint, kind):
    where = {kind: [checkpoint] if kind == "adapters" else checkpoint}
    with pytest.raises(ValueError, match="another HSA configuration.*noise_window: 7 there, 50 here.*`hsa: true`"):
        resolve_config(HSAConfig(), *places(**{"model": tmp_path, **where}))
    same_rules = HSAConfig(noise_window=7, backend="reference", default_type="GLOBAL")
    assert resolve_config(same_rules, *places(**{"model": tmp_path, **where})) is same_rules


@pytest.mark.parametrize("kind", ["model", "adapters", "resume"])
def test_true_takes_over_the_rules_of_the_checkpoint(tmp_path, checkpoint, kind):
    where = {kind: [checkpoint] if kind == "adapters" else checkpoint}
    taken = resolve_config(True, *places(**{"model": tmp_path, **where}))
    assert taken == HSAConfig(noise_window=7, default_type="NOISE")
    assert resolve_config(True, *places(model=tmp_path)) == HSAConfig()


def test_checkpoints_that_disagree_with_each_other(tmp_path, checkpoint):
    HSAConfig(noise_window=9).save_pretrained(tmp_path / "adapter")
    for hsa in (True, "saved"):
        with pytest.raises(
            ValueError, match="than '.*adapter', .*noise_window: 7 there, 9 here.*remove the hsa_config"
        ):
            resolve_config(hsa, *places(model=checkpoint, adapters=[str(tmp_path / "adapter")]))


def test_a_checkpoint_made_without_hsa_cannot_be_resumed(tmp_path):
    (tmp_path / "out" / "checkpoint-3").mkdir(parents=True)
    for resume in (str(tmp_path / "out" / "checkpoint-3"), True, "true"):
        for hsa in (True, HSAConfig()):
            with pytest.raises(
                ValueError, match="checkpoint-3' to resume from was made without HSA.*overwrite_output"
            ):
                resolve_config(hsa, *places(model=tmp_path, resume=resume, output=tmp_path / "out"))


@pytest.mark.parametrize("kind", ["model", "adapters", "resume"])
def test_saved_rules_are_taken_over_and_said(tmp_path, checkpoint, kind, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("hsa_factory"), "propagate", True)
    caplog.set_level("INFO", "hsa_factory")
    where = {"model": tmp_path, kind: [checkpoint] if kind == "adapters" else checkpoint}
    assert resolve_config("saved", *places(**where)) == HSAConfig(noise_window=7, default_type="NOISE")
    assert f"taken over from {checkpoint}. `hsa: false` runs it without HSA." in caplog.text
    caplog.clear()
    assert resolve_config(False, *places(**where)) is None and not caplog.text
    assert resolve_config(None, *places(**where)) is None
    assert f"{checkpoint} was made with HSA, and this run has none" in caplog.text
    assert resolve_config("saved", *places(model=tmp_path)) is None


def test_a_plain_run_is_not_resumed_with_the_rules_of_its_model(tmp_path, checkpoint):
    (tmp_path / "out" / "checkpoint-3").mkdir(parents=True)
    where = {"resume": str(tmp_path / "out" / "checkpoint-3")}
    with pytest.raises(ValueError, match="made without HSA.*was made with HSA: resume the run with `hsa: false`"):
        resolve_config("saved", *places(model=checkpoint, **where))
    assert resolve_config("saved", *places(model=tmp_path, **where)) is None


@pytest.mark.parametrize(("hsa", "said"), [(True, "the defaults are used"), ("saved", "it runs without HSA")])
def test_rules_that_are_lost_are_warned_of(tmp_path, checkpoint, hsa, said, caplog):
    (tmp_path / "checkpoint" / "config.json").write_text('{"hsa": "a note"}')
    (tmp_path / "checkpoint" / "hsa_config.json").unlink()
    resolve_config(hsa, *places(model=checkpoint))
    assert f"hsa_config.json is missing, and {said}" in caplog.text
    caplog.clear()
    resolve_config(HSA, *places(model=checkpoint))
    assert not caplog.text


def test_resuming_the_last_checkpoint(tmp_path):
    HSAConfig(noise_window=7).save_pretrained(tmp_path / "out" / "checkpoint-3")
    HSAConfig(noise_window=8).save_pretrained(tmp_path / "out" / "checkpoint-12")
    for resume in (True, "true"):
        assert resolve_config(True, *places(model=tmp_path, resume=resume, output=tmp_path / "out")).noise_window == 8


@pytest.mark.parametrize("made", [True, False])
def test_resuming_where_there_is_nothing(tmp_path, made):
    """Whatever the trainer says to that, it is the trainer that says it."""
    if made:
        (tmp_path / "out").mkdir()
    assert resolve_config(True, *places(model=tmp_path, resume=True, output=tmp_path / "out")) == HSAConfig()


def test_the_run_stops_before_anything_is_loaded(lf, tmp_path, monkeypatch, checkpoint):
    monkeypatch.setattr(workflow, "load_tokenizer", lambda *args: pytest.fail("something was loaded"))
    args = lf.args(tmp_path, "data", resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="noise_window: 7 there, 50 here"), integrate(HSA):
        tuner.run_exp(args)


def test_each_run_of_a_block_has_the_rules_of_its_own_checkpoint(lf, tmp_path):
    from llamafactory.chat import ChatModel

    data = lf.write_data(tmp_path, data=[lf.dialogue(["GLOBAL", "NOISE"])])
    with integrate(True) as active:
        for window in (7, 9):
            saved = lf.save_checkpoint(tmp_path / str(window), HSAConfig(noise_window=window))
            tuner.run_exp(lf.args(data, "data", saved, max_steps=1))
            assert active.hsa_config.noise_window == window
        engine = ChatModel({"model_name_or_path": str(tmp_path / "7"), "template": "qwen3"}).engine
    assert get_state(engine.model).config.noise_window == 7


def test_rules_of_a_model_on_the_hub(tmp_path, monkeypatch):
    """It lies in the cache, as after a download."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "a" * 40
    for name, window in (("somebody/model", 7), ("somebody/adapter", 9)):
        place = tmp_path / f"models--{name.replace('/', '--')}"
        HSAConfig(noise_window=window).save_pretrained(place / "snapshots" / commit)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
    cache = {"cache_dir": str(tmp_path)}
    for option, window in (("model_name_or_path", 7), ("adapter_name_or_path", 9)):
        name = f"somebody/{option.split('_')[0]}"
        args = {"model_name_or_path": str(tmp_path), **cache, option: name}
        assert has_saved_rules(starting_points(args))
        adapters = [name] if "adapter" in option else None
        model_args = SimpleNamespace(
            **cache, model_name_or_path=args["model_name_or_path"], adapter_name_or_path=adapters
        )
        assert resolve_config("saved", model_args, None).noise_window == window
    unknown = {"model_name_or_path": "somebody/else", "adapter_name_or_path": "no such/place/here", **cache}
    assert starting_points(unknown) == []
