"""Installing the integration and taking it back; versions that are refused."""

import sys

import llamafactory.data.loader as loader
import llamafactory.train.sft.workflow as workflow
import llamafactory.train.tuner as tuner
import pytest

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.llamafactory import integrate, integration
from hsa_factory.llamafactory.seams import Seam, installed


HSA, FEEDBACK = HSAConfig(), FeedbackConfig()


def snapshot():
    """Return every attribute of LLaMA-Factory's modules, and of the classes in them."""
    values = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "llamafactory":
            continue
        for attribute, value in list(vars(module).items()):
            values[name, attribute] = value
            if isinstance(value, type) and value.__module__ == name:
                values |= {(name, attribute, inner): thing for inner, thing in vars(value).items()}
    return values


def changed(before, after):
    return [key for key in before.keys() | after.keys() if before.get(key) is not after.get(key)]


# -- seams -----------------------------------------------------------------------------------------------------


def test_everything_is_taken_back():
    before = snapshot()
    with integrate(HSA, FEEDBACK) as active:
        during = changed(before, snapshot())
        during = [
            key for key in during if len(key) == 2 or key[:2] not in during
        ]  # a class in another's place brings its own
        seams = {(*str(seam).rsplit(".", 1),) for seam in integration.all_seams(active)}
    assert changed(before, snapshot()) == []
    assert {(key[-2].split(".")[-1] if len(key) == 3 else key[0], key[-1]) for key in during} == seams
    assert {"get_train_args", "load_model", "fix_special_tokens", "align_dataset", "join"} <= {
        key[-1] for key in during
    }


def test_everything_is_taken_back_after_an_error():
    before = snapshot()
    with pytest.raises(ZeroDivisionError), integrate(HSA):
        1 / 0
    assert changed(before, snapshot()) == []
    with integrate(None, FEEDBACK) as again:
        assert again.hsa_config is None and again.feedback_config == FEEDBACK
    assert changed(before, snapshot()) == []


def test_a_run_leaves_llamafactory_as_it_was(lf, tmp_path):
    data = lf.write_data(tmp_path, data=[lf.dialogue([0, 1])])
    lf.prepare(lf.args(data, "data"))  # what LLaMA-Factory itself remembers is there now
    before = snapshot()
    registered = dict(loader.align_dataset.__globals__["DATASET_CONVERTERS"])
    lf.prepare(lf.args(data, "data"), HSA, FEEDBACK)
    with pytest.raises(ValueError):
        lf.prepare(lf.args(data, "data"), HSA, FeedbackConfig(missing="error"))
    assert changed(before, snapshot()) == []
    assert dict(loader.align_dataset.__globals__["DATASET_CONVERTERS"]) == registered


def test_the_same_settings_may_be_nested():
    with integrate(HSAConfig(), FeedbackConfig()) as outer:
        replaced = tuner.get_train_args
        with integrate(HSAConfig(), FeedbackConfig()) as inner:
            assert inner is outer and tuner.get_train_args is replaced
        assert tuner.get_train_args is replaced  # the inner block ends, the outer one goes on
    assert not hasattr(tuner.get_train_args, "hsa_original")


@pytest.mark.parametrize(
    "other",
    [(HSAConfig(noise_window=3), FEEDBACK), (HSA, None), (None, FEEDBACK), (HSA, FeedbackConfig(empty="error"))],
)
def test_other_settings_may_not(other):
    with integrate(HSA, FEEDBACK):
        replaced = tuner.get_train_args
        with pytest.raises(RuntimeError, match="already integrated with other settings"), integrate(*other):
            pass
        assert tuner.get_train_args is replaced
    with integrate(*other):
        pass


def test_nothing_to_install_is_an_error():
    with pytest.raises(ValueError, match="give hsa, feedback or loss_weights"), integrate():
        pass


@pytest.mark.parametrize("version", ["0.9.4", "0.9.7.dev0", "1.0.0"])
def test_an_unknown_version_is_refused_by_name(monkeypatch, version):
    before = snapshot()
    monkeypatch.setattr(integration, "VERSION", version)
    with (
        pytest.raises(RuntimeError, match=f"LLaMA-Factory {version} is not known.*0.9.5.*pip install"),
        integrate(HSA),
    ):
        pass
    assert changed(before, snapshot()) == []


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (loader, "align_dataset"),
        (loader, "_get_preprocessed_dataset"),
        (workflow, "load_model"),
        (tuner, "get_train_args"),
    ],
)
def test_a_missing_seam_is_refused_before_anything_changes(monkeypatch, owner, name):
    monkeypatch.delattr(owner, name)
    before = snapshot()
    with pytest.raises(RuntimeError, match=f"{owner.__name__}.{name} is not there"), integrate(HSA):
        pass
    assert changed(before, snapshot()) == []
    assert integration._active is None


def test_a_seam_that_another_copy_has_replaced_is_refused(monkeypatch):
    stock = tuner.get_train_args
    with installed([Seam(tuner, "get_train_args", lambda original, *args: original(*args))]):
        before = snapshot()
        with (
            pytest.raises(RuntimeError, match="llamafactory.train.tuner.get_train_args is replaced already"),
            integrate(HSA),
        ):
            pass
        assert changed(before, snapshot()) == []
    assert tuner.get_train_args is stock
