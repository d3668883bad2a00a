"""Installing the integration and taking it back; versions, stages, options and checkpoints that are refused."""

import importlib
import subprocess
import sys
from types import SimpleNamespace

import llamafactory.data.loader as loader
import llamafactory.launcher as launcher
import llamafactory.train.sft.workflow as workflow
import llamafactory.train.tuner as tuner
import pytest
from llamafactory.hparams import get_train_args

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.llamafactory import integrate, integration
from hsa_factory.llamafactory.model.checkpoint import resolve_config
from hsa_factory.llamafactory.options import check_options
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
    with pytest.raises(ValueError, match="give hsa, feedback or both"), integrate():
        pass


@pytest.mark.parametrize("version", ["0.9.4", "0.9.6.dev0", "1.0.0"])
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


IMPORTS = """
import sys
import hsa_factory, hsa_factory.attention, hsa_factory.cli, hsa_factory.models, hsa_factory.tiny
print([name for name in sys.modules if name.split(".")[0] in ("llamafactory", "peft", "trl")])

import llamafactory.launcher, llamafactory.train.tuner
before = {}
for name, module in list(sys.modules.items()):
    if name.split(".")[0] == "llamafactory":
        for attribute, value in list(vars(module).items()):
            before[name, attribute] = (vars(module), attribute, value)
            if isinstance(value, type):
                before |= {(name, attribute, inner): (vars(value), inner, was) for inner, was in vars(value).items()}
import hsa_factory.llamafactory, hsa_factory.llamafactory.launch, hsa_factory.llamafactory.inspect.prepared_data
print([key for key, (owner, name, value) in before.items() if owner.get(name) is not value])
print(len(before) > 1000)
"""


def test_importing_changes_nothing_and_the_core_does_not_import_llamafactory():
    result = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=120)
    assert result.stdout.splitlines() == ["[]", "[]", "True"], result.stderr


# -- stages and options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["pt", "rm", "ppo", "dpo", "kto"])
def test_other_stages_are_refused_before_anything_is_loaded(lf, tmp_path, monkeypatch, stage):
    module = importlib.import_module(f"llamafactory.train.{stage}.workflow")
    for name in ("load_tokenizer", "load_model", "get_dataset"):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("something was loaded"))
    reward = {"reward_model": "none", "reward_model_type": "full"} if stage == "ppo" else {}
    args = lf.args(tmp_path, "nothing", stage=stage, **reward)
    for settings in ((HSA, None), (None, FEEDBACK)):
        with pytest.raises(ValueError, match=f"support `stage: sft`, not `stage: {stage}` yet. Remove the hsa and"):
            with integrate(*settings):
                tuner.run_exp(args)


@pytest.fixture
def arguments(lf, tmp_path):
    """LLaMA-Factory's parsed arguments, by name."""
    names = ("model", "data", "training", "finetuning", "generating")
    return SimpleNamespace(**dict(zip(names, get_train_args(lf.args(tmp_path, "data")))))


def check(arguments, hsa=HSA, feedback=FEEDBACK):
    check_options(arguments.model, arguments.data, arguments.training, arguments.finetuning, hsa, feedback)


FOR_HSA_ONLY = {
    "shift_attn": ("model", True, "LongLoRA"),
    "mixture_of_depths": ("model", "convert", "skip layers"),
    "use_asft_loss": ("finetuning", True, "reference model would run without HSA"),
}
ALWAYS = {
    "use_unsloth": ("model", True, "training loop"),
    "use_kt": ("model", True, "kernels"),
    "use_hyper_parallel": ("finetuning", True, "training loop of its own"),
    "use_mca": ("finetuning", True, "Megatron"),
    "use_megatron_bridge": ("finetuning", True, "Megatron"),
}
SETTINGS = pytest.mark.parametrize("settings", [(HSA, None), (None, FEEDBACK)], ids=["hsa", "feedback"])


@pytest.mark.parametrize("option", [*FOR_HSA_ONLY, *ALWAYS])
def test_options_that_cannot_be_honoured_are_refused(arguments, option):
    owner, value, reason = {**FOR_HSA_ONLY, **ALWAYS}[option]
    check(arguments)
    setattr(getattr(arguments, owner), option, value)
    message = f"`{option}` cannot be combined with HSA / Feedback: .*{reason}.*Remove it"
    with pytest.raises(ValueError, match=message):
        check(arguments)
    if option in FOR_HSA_ONLY:
        check(arguments, hsa=None)
    else:
        with pytest.raises(ValueError, match=message):
            check(arguments, hsa=None)


@pytest.mark.parametrize("option", ["shift_attn", "use_asft_loss"])
def test_they_are_refused_before_anything_is_loaded(lf, tmp_path, monkeypatch, option):
    monkeypatch.setattr(workflow, "load_tokenizer", lambda *args: pytest.fail("something was loaded"))
    with pytest.raises(ValueError, match=f"`{option}` cannot be combined"), integrate(HSA):
        tuner.run_exp(lf.args(tmp_path, "data", **{option: True}))


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    """Fail if a run goes so far as to load something or to start processes."""
    monkeypatch.setattr(workflow, "load_tokenizer", lambda *args: pytest.fail("something was loaded"))
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("a process was started"))


@SETTINGS
@pytest.mark.parametrize("option", ["use_hyper_parallel", "use_mca", "use_megatron_bridge"])
def test_other_trainers_are_refused_before_the_tuner_branches_off(lf, tmp_path, nothing_is_loaded, settings, option):
    """LLaMA-Factory asks for them before it comes to `run_sft`."""
    message = f"`{option}` cannot be combined with HSA / Feedback"
    with pytest.raises(ValueError, match=message), integrate(*settings):
        tuner.run_exp(lf.args(tmp_path, "data", **{option: True}))


@SETTINGS
@pytest.mark.parametrize("variable", ["USE_V1", "USE_MCA", "USE_MEGATRON_BRIDGE"])
def test_other_trainers_by_environment(lf, tmp_path, monkeypatch, nothing_is_loaded, settings, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ValueError, match=f"{variable} is set: .*standard trainer only"), integrate(*settings):
        tuner.run_exp(lf.args(tmp_path, "data"))


@SETTINGS
def test_ray_is_refused(lf, tmp_path, monkeypatch, nothing_is_loaded, settings):
    """Its workers are processes of their own."""
    monkeypatch.setenv("USE_RAY", "1")
    with pytest.raises(ValueError, match="Ray is not supported"), integrate(*settings):
        tuner.run_exp(lf.args(tmp_path, "data"))


@SETTINGS
def test_launching_processes_without_the_integration_is_refused(monkeypatch, nothing_is_loaded, capsys, settings):
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    with integrate(*settings):
        monkeypatch.setattr(sys, "argv", ["llamafactory-cli", "train", "file.yaml"])
        with pytest.raises(ValueError, match="know neither HSA nor Feedback. Run `hsa-factory train`"):
            launcher.launch()
        monkeypatch.setattr(sys, "argv", ["llamafactory-cli", "version"])
        launcher.launch()
    assert "Welcome to LLaMA Factory" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["option", "environment"])
def test_context_parallelism_is_refused_with_hsa(lf, tmp_path, monkeypatch, nothing_is_loaded, given):
    if given == "environment":
        monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
        monkeypatch.setenv("PARALLELISM_CONFIG_CP_SIZE", "2")
        args = lf.args(tmp_path, "data")
    else:
        args = lf.args(tmp_path, "data", parallelism_config={"cp_size": 2})
    with pytest.raises(ValueError, match="(?i)cp_size = 2 cannot be combined with HSA yet"), integrate(HSA):
        tuner.run_exp(args)


def test_a_deepspeed_file_with_sequence_parallelism_is_refused(arguments):
    arguments.training.hf_deepspeed_config = SimpleNamespace(config={"sequence_parallel_size": 2})
    with pytest.raises(ValueError, match="sequence_parallel_size = 2 in the DeepSpeed configuration cannot"):
        check(arguments)
    check(arguments, hsa=None)


@pytest.mark.parametrize("value", ["fa2", "fa3", "disabled"])
def test_another_attention_kernel_is_overridden_and_said(lf, tmp_path, arguments, caplog, value):
    parsed = get_train_args(lf.args(tmp_path, "data", flash_attn=value))
    with caplog.at_level("WARNING"):
        check_options(*parsed[:4], HSA, None)
    assert parsed[0].flash_attn == "sdpa"
    assert f"`flash_attn: {value}` is overridden" in caplog.text


@pytest.mark.parametrize("value", ["auto", "sdpa"])
def test_the_usual_kernels_stay(lf, tmp_path, caplog, value):
    parsed = get_train_args(lf.args(tmp_path, "data", flash_attn=value))
    with caplog.at_level("WARNING"):
        check_options(*parsed[:4], HSA, None)
        check_options(*get_train_args(lf.args(tmp_path, "data", flash_attn="fa2"))[:4], None, FEEDBACK)
    assert parsed[0].flash_attn == value
    assert "overridden" not in caplog.text


def test_packing_without_boundaries_is_said(lf, tmp_path, caplog):
    with caplog.at_level("WARNING"):
        check_options(*get_train_args(lf.args(tmp_path, "data", neat_packing=True))[:4], HSA, None)
        assert "see each other" not in caplog.text
        check_options(*get_train_args(lf.args(tmp_path, "data", packing=True))[:4], HSA, None)
    assert "samples packed into one row see each other" in caplog.text


def test_streaming_gets_a_worker(lf, tmp_path, caplog):
    parsed = get_train_args(lf.args(tmp_path, "data", streaming=True))
    with caplog.at_level("WARNING"):
        check_options(*parsed[:4], HSA, None)
    assert parsed[2].dataloader_num_workers == 1
    assert "`dataloader_num_workers` is set to 1" in caplog.text


# -- checkpoints of other rules --------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="noise_window: 7 there, 9 here"):
        resolve_config(True, *places(model=checkpoint, adapters=[str(tmp_path / "adapter")]))


def test_a_checkpoint_made_without_hsa_cannot_be_resumed(tmp_path):
    (tmp_path / "out" / "checkpoint-3").mkdir(parents=True)
    for resume in (str(tmp_path / "out" / "checkpoint-3"), True, "true"):
        for hsa in (True, HSAConfig()):
            with pytest.raises(
                ValueError, match="checkpoint-3' to resume from was made without HSA.*overwrite_output"
            ):
                resolve_config(hsa, *places(model=tmp_path, resume=resume, output=tmp_path / "out"))


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
