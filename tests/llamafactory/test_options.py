"""Stages, options, trainers and launchers that are refused or overridden, before anything is loaded."""

import importlib
import subprocess
import sys
from types import SimpleNamespace

import llamafactory.cli as cli
import llamafactory.launcher as launcher
import llamafactory.train.sft.workflow as workflow
import llamafactory.train.tuner as tuner
import pytest
from llamafactory.hparams import get_train_args

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.llamafactory import integrate, integration
from hsa_factory.llamafactory.options import check_options, check_stage
from hsa_factory.llamafactory.train import ray
from hsa_factory.user_errors import UserError


HSA, FEEDBACK = HSAConfig(), FeedbackConfig()


def test_a_stage_that_does_not_start_is_refused_before_anything_is_loaded(lf, tmp_path, monkeypatch):
    module = importlib.import_module("llamafactory.train.ppo.workflow")
    for name in ("load_tokenizer", "load_model", "get_dataset"):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("something was loaded"))
    args = lf.args(tmp_path, "nothing", stage="ppo", reward_model="none", reward_model_type="full")
    for settings in ((HSA, None), (None, FEEDBACK)):
        with pytest.raises(ValueError, match="`stage: ppo` does not start in this LLaMA-Factory"):
            with integrate(*settings):
                tuner.run_exp(args)


def test_a_stage_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="`stage: kto` and .*not `stage: grpo` yet. Remove the hsa and"):
        check_stage("grpo")


@pytest.fixture
def arguments(lf, tmp_path):
    """LLaMA-Factory's parsed arguments, by name."""
    names = ("model", "data", "training", "finetuning", "generating")
    return SimpleNamespace(**dict(zip(names, get_train_args(lf.args(tmp_path, "data")))))


def check(arguments, hsa=HSA):
    check_options(arguments.model, arguments.data, arguments.training, arguments.finetuning, hsa)


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
def test_the_command_of_llamafactory_with_another_launcher(monkeypatch, nothing_is_loaded, settings):
    monkeypatch.setenv("USE_V1", "1")
    monkeypatch.setattr(sys, "argv", ["llamafactory-cli", "sft", "file.yaml"])
    with pytest.raises(ValueError, match="USE_V1 is set"), integrate(*settings):
        cli.main()


@SETTINGS
def test_ray_that_is_not_installed(lf, tmp_path, monkeypatch, nothing_is_loaded, settings):
    monkeypatch.setenv("USE_RAY", "1")
    monkeypatch.setattr(ray, "is_ray_available", lambda: False)
    with pytest.raises(UserError, match="ray is not installed: pip install ray"), integrate(*settings):
        tuner.run_exp(lf.args(tmp_path, "data"))


def test_a_worker_of_ray_installs_the_integration_of_its_run(monkeypatch):
    """It is another process, in which nothing is installed."""
    handed, seen = {}, []
    monkeypatch.setattr(tuner, "_training_function", lambda config: seen.append((config, integration._active.hsa)))
    worker = object.__new__(ray.TypedWorker)
    with integrate(HSA) as state:
        handed = {"args": 1, ray._INTEGRATION: state.integrated}
    assert integration._active is None
    worker._training_function(handed)
    assert seen == [({"args": 1}, HSA)] and ray._INTEGRATION in handed


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
        check_options(*parsed[:4], HSA)
    assert parsed[0].flash_attn == "sdpa"
    assert f"`flash_attn: {value}` is overridden" in caplog.text


@pytest.mark.parametrize("value", ["auto", "sdpa"])
def test_the_usual_kernels_stay(lf, tmp_path, caplog, value):
    parsed = get_train_args(lf.args(tmp_path, "data", flash_attn=value))
    with caplog.at_level("WARNING"):
        check_options(*parsed[:4], HSA)
        check_options(*get_train_args(lf.args(tmp_path, "data", flash_attn="fa2"))[:4], None)
    assert parsed[0].flash_attn == value
    assert "overridden" not in caplog.text


def test_packing_without_boundaries_is_said(lf, tmp_path, caplog):
    with caplog.at_level("WARNING"):
        check_options(*get_train_args(lf.args(tmp_path, "data", neat_packing=True))[:4], HSA)
        assert "see each other" not in caplog.text
        check_options(*get_train_args(lf.args(tmp_path, "data", packing=True))[:4], HSA)
    assert "samples packed into one row see each other" in caplog.text


def test_streaming_gets_a_worker(lf, tmp_path, caplog):
    parsed = get_train_args(lf.args(tmp_path, "data", streaming=True))
    with caplog.at_level("WARNING"):
        check_options(*parsed[:4], HSA)
    assert parsed[2].dataloader_num_workers == 1
    assert "`dataloader_num_workers` is set to 1" in caplog.text
