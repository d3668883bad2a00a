"""What engines are known to fail on, refused or warned of before anything is loaded."""

from types import SimpleNamespace

import pytest

import hsa_factory.llamafactory.engines as engines


ZERO3 = {"zero_optimization": {"stage": 3}}


@pytest.fixture
def check(monkeypatch):
    """`check_engine` with the options given, in this DeepSpeed and for this model."""

    def check(config=None, installed="0.18.4", model_type="qwen3", use_cpu=False, plugin=None, **finetuning):
        monkeypatch.setattr(engines, "_deepspeed_version", lambda: installed)
        monkeypatch.setattr(engines, "_model_type", lambda model_args: model_type)
        training = SimpleNamespace(use_cpu=use_cpu, hf_deepspeed_config=None, deepspeed_plugin=None)
        if config is not None:
            training.hf_deepspeed_config = SimpleNamespace(config=config)
        if plugin is not None:
            training.deepspeed_plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(config=plugin))
        resize = finetuning.pop("resize_vocab", False)
        options = {"stage": "sft", "finetuning_type": "lora", "additional_target": None, **finetuning}
        engines.check_engine(SimpleNamespace(resize_vocab=resize), training, SimpleNamespace(**options))

    return check


@pytest.mark.parametrize("options", [{"additional_target": ["embed_tokens"]}, {"resize_vocab": True}])
@pytest.mark.parametrize("place", ["config", "plugin"])
def test_whole_modules_beside_an_adapter(check, options, place):
    """`resize_vocab` has LLaMA-Factory train the tables, as `additional_target` does."""
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`.*DeepSpeed 0.18.4.*ZeRO-2.*deepspeed==0.16.4"):
        check(**{place: ZERO3}, **options)
    check(**{place: ZERO3}, installed="0.16.4", **options)
    check(**{place: ZERO3}, finetuning_type="full", **options)
    check(**{place: {"zero_optimization": {"stage": 2}}}, **options)
    check(**{place: {}}, **options)
    check(**options)


def test_the_cpu(check):
    with pytest.raises(ValueError, match="`use_cpu: true` does not go with ZeRO-3.*DS_ACCELERATOR=cpu"):
        check(ZERO3, use_cpu=True)
    check({"zero_optimization": {"stage": 2}}, use_cpu=True)


def test_a_model_whose_numbers_were_wrong(check, monkeypatch):
    said = []
    monkeypatch.setattr(engines.logger, "warning_rank0", said.append)
    check(ZERO3, model_type="qwen2_5_vl")
    assert "qwen2_5_vl with `finetuning_type: lora` and ZeRO-3" in said.pop()
    check(ZERO3, model_type="qwen2_5_vl", finetuning_type="full")
    check({"zero_optimization": {"stage": 2}}, model_type="qwen2_5_vl")
    check(ZERO3)
    assert not said


def test_advice_on_embeddings_names_the_way_out(monkeypatch):
    monkeypatch.setattr(engines, "_deepspeed_version", lambda: "0.18.4")
    monkeypatch.setattr(engines, "is_deepspeed_zero3_enabled", lambda: True)
    assert "ZeRO-2" in engines.way_to_train_embeddings()
    monkeypatch.setattr(engines, "is_deepspeed_zero3_enabled", lambda: False)
    assert engines.way_to_train_embeddings() == ""


def test_reward_models_and_fsdp2(check, monkeypatch):
    check(stage="rm")
    for name, value in (("ACCELERATE_USE_FSDP", "true"), ("FSDP_VERSION", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="`stage: rm` with an adapter does not go with FSDP2.*ZeRO-3 or DDP"):
        check(stage="rm")
    check(stage="rm", finetuning_type="full")
    check(stage="sft")
