"""What is settled and refused when an engine starts; its configuration alone is made, which takes no time."""

import logging
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from serving_checkpoints import save_checkpoint
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

from hsa_factory import HSAConfig
from hsa_factory.config import NOTE_KEY
from hsa_factory.models.model_card import NOTE
from hsa_factory.vllm import at_start
from hsa_factory.vllm.at_start import LISTENER, SCHEDULER, describe
from hsa_factory.vllm.plugin import register


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny_tokenizer):
    """Return a function that makes the configuration of an engine for a checkpoint with some rules."""

    def make(rules=None, **options):
        directory = tmp_path_factory.mktemp("checkpoint")
        save_checkpoint(directory, tiny_tokenizer, config=rules or HSAConfig())
        options = {"dtype": "float32", "max_model_len": 512, "enforce_eager": True, **options}
        return EngineArgs(str(directory), **options).create_engine_config()

    return make


def test_fitting_options(start, monkeypatch):
    start()  # the first time, vLLM sets its loggers up
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    monkeypatch.setattr(at_start.logger, "handlers", [handler])
    monkeypatch.setattr(at_start.logger, "level", logging.INFO)
    at_start.logger.manager._clear_cache()
    assert at_start.logger.name.startswith("vllm.")  # the rest vLLM does not print
    register()  # as often as it likes
    config = start()
    assert [line for line in lines if line.startswith("HSA is on (")]
    assert config.cache_config.block_size == 16 and config.scheduler_config.scheduler_cls == SCHEDULER
    assert config.model_config.logits_processors == [LISTENER]
    assert start(block_size=32).cache_config.block_size == 32
    line = describe(config, HSAConfig())
    assert "noise_window=50" in line and "blocks of 16 tokens are given back" in line
    assert "all stay" in describe(config, HSAConfig(layers=[0]))
    assert "noise_turns=0" in describe(config, HSAConfig(noise_turns=0))
    assert "noise_window=0" in (line := describe(config, HSAConfig(noise_window=0))) and "global_decay" not in line


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}},
            "speculative",
        ),
        ({"kv_transfer_config": {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}}, "KV connector"),
        (
            {"speculative_config": {"method": "custom_class", "model": "x.Y", "num_speculative_tokens": 2}},
            "speculative",
        ),
        ({"kv_offloading_size": 1.0}, "KV connector"),
        (
            {"ec_transfer_config": {"ec_connector": "ECExampleConnector", "ec_role": "ec_both"}},
            "an encoder cache connector",
        ),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype=fp8"),
        ({"kv_cache_dtype": "bfloat16"}, "kv_cache_dtype=bfloat16, as the model computes in float32: leave it out"),
        ({"kv_cache_dtype": "fp8_e5m2"}, "kv_cache_dtype=fp8_e5m2"),
        ({"kv_cache_dtype": "fp8_e4m3"}, "kv_cache_dtype=fp8_e4m3"),
        ({"attention_backend": "CPU_ATTN"}, "an attention backend of vLLM's"),
        ({"attention_backend": "FLEX_ATTENTION"}, "an attention backend of vLLM's"),
        ({"attention_config": {"backend": "TRITON_ATTN"}}, "an attention backend of vLLM's"),
        ({"enable_prompt_embeds": True}, "prompts of embeddings"),
        ({"tokenizer_mode": "mistral"}, "tokenizer_mode=mistral"),
        ({"tokenizer_mode": "deepseek_v32"}, "tokenizer_mode=deepseek_v32"),
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "the scheduler vllm"),
        ({"runner": "pooling"}, "models that generate"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(start, options, complaint):
    from vllm.config import ECTransferConfig, KVTransferConfig

    for name, kind in (("kv_transfer_config", KVTransferConfig), ("ec_transfer_config", ECTransferConfig)):
        if name in options:
            options = {name: kind(**options[name])}
    with pytest.raises(ValueError, match=complaint):
        start(**options)


def test_a_cache_type_that_the_checkpoint_names_is_refused_too():
    """It is known when the layers are made; with `--kv-cache-dtype` the model's own is kept."""
    at_start.check_cache_type("auto", torch.bfloat16)
    at_start.check_cache_type("bfloat16", torch.bfloat16)
    with pytest.raises(ValueError, match="kv_cache_dtype=fp8.*say --kv-cache-dtype bfloat16"):
        at_start.check_cache_type("fp8", torch.bfloat16)


@pytest.mark.parametrize(
    ("resolved", "named", "complaint"),
    [
        ("TransformersForCausalLM", "Qwen3ForCausalLM", "Start it with `hsa-factory serve .* and no --model-impl"),
        ("Qwen3ForSequenceClassification", "Qwen3ForCausalLM", "Start it with `hsa-factory serve"),
        ("Phi3ForCausalLM", "Phi3ForCausalLM", "Our plugin serves HSA for Llama.*, not for Phi3ForCausalLM: .*api"),
        ("GptOssForCausalLM", "GptOssForCausalLM", "Our plugin serves HSA for Llama.*, not for GptOssForCausalLM"),
    ],
)
def test_no_architecture_serves_a_checkpoint_with_hsa_without(tmp_path, resolved, named, complaint):
    """Neither transformers' models in vLLM (`--model-impl`), nor families that our plugin does not serve."""
    register()
    HSAConfig().save_pretrained(tmp_path)
    model = SimpleNamespace(model=str(tmp_path), architectures=[named])
    with pytest.raises(ValueError, match=f"without HSA, as another model. {complaint}"):
        MODELS_CONFIG_MAP[resolved].verify_and_update_config(SimpleNamespace(model_config=model, lora_config=None))


def test_a_note_of_hsa_without_its_rules_is_said(monkeypatch, tmp_path):
    """Not refused: it is what is left where somebody took the rules away to compare."""
    lines = []
    monkeypatch.setattr(at_start.logger, "warning", lambda text, *values: lines.append(text % values))
    for note in (NOTE, None):
        model = SimpleNamespace(model=str(tmp_path), hf_config=SimpleNamespace(**{NOTE_KEY: note}))
        at_start.UnnamedHSAConfig.verify_and_update_config(SimpleNamespace(model_config=model, lora_config=None))
    (line,) = lines
    assert "says that it was trained with HSA" in line and "hsa_config.json is missing" in line


def test_settings_of_other_architectures_hold_as_before(monkeypatch):
    class Theirs(VerifyAndUpdateConfig):
        seen = []

        @staticmethod
        def verify_and_update_config(vllm_config):
            Theirs.seen.append(vllm_config)

        @staticmethod
        def verify_and_update_model_config(model_config):
            Theirs.seen.append(model_config)

    monkeypatch.setattr(at_start, "find_rules", lambda model: None)
    settings = at_start.guarded(Theirs)
    config = SimpleNamespace(model_config=SimpleNamespace(model="theirs", hf_config=None), lora_config=None)
    settings.verify_and_update_config(config)
    settings.verify_and_update_model_config(config.model_config)
    assert Theirs.seen == [config, config.model_config]
    assert (
        at_start.guarded(settings) is settings and at_start.guarded(at_start.HSAModelConfig) is at_start.HSAModelConfig
    )


def test_the_front_end_in_rust_is_refused(start, monkeypatch):
    """It is another program, in which nobody would read a type or refuse a request without."""
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(ValueError, match="front end in Rust"):
        start()


def test_what_changes_nothing_for_hsa_is_left_alone(start):
    """Several engines, adapters: each engine has its own scheduler and its own types."""
    config = start(data_parallel_size=2, enable_lora=True, tokenizer_mode="hf")
    assert config.scheduler_config.scheduler_cls == SCHEDULER and config.parallel_config.data_parallel_size == 2


def test_adapters_that_the_configuration_names(tmp_path):
    """Of pictures, say, in all requests; on a model without HSA nobody else would see that they have it."""
    HSAConfig(noise_window=7).save_pretrained(tmp_path)
    adapters = SimpleNamespace(default_mm_loras={"image": str(tmp_path)})
    config = SimpleNamespace(model_config=SimpleNamespace(model=str(tmp_path / "plain")), lora_config=adapters)
    with pytest.raises(ValueError, match="LoRA adapter of image: .* this server's model has no HSA. Merge it"):
        at_start.UnnamedHSAConfig.verify_and_update_config(config)
    with pytest.raises(ValueError, match="LoRA adapter of image: was trained with other rules"):
        at_start._check_adapters(config, HSAConfig())


def test_tokenizers_of_mistral_are_not_taken_by_the_way(tmp_path, tiny_tokenizer):
    """Where their file lies beside a model of Mistral's, vLLM takes them by itself; types are told by transformers'."""
    save_checkpoint(tmp_path, tiny_tokenizer, "mistral")
    (tmp_path / "tekken.json").write_text("{}")
    (tmp_path / "consolidated.safetensors").write_text("")
    options = {"dtype": "float32", "max_model_len": 512, "enforce_eager": True, "load_format": "safetensors"}
    with pytest.raises(ValueError, match="tokenizer_mode=auto .tokenizers of transformers only"):
        EngineArgs(str(tmp_path), config_format="hf", **options).create_engine_config()
    assert EngineArgs(str(tmp_path), config_format="hf", tokenizer_mode="hf", **options).create_engine_config()


def test_requests_from_elsewhere_must_say_their_types(start, monkeypatch):
    for name in at_start._SERVERS:
        monkeypatch.setattr(at_start.Admission, "needs_types", False)
        start()
        assert not at_start.Admission.needs_types
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
        start()
        assert at_start.Admission.needs_types
        monkeypatch.delitem(sys.modules, name)


def test_rules_that_count_from_the_end_are_refused(start):
    with pytest.raises(ValueError, match="rule 'the last' counts turns from the conversation's end"):
        start(HSAConfig(rules=[{"name": "the last", "role": "user", "turn": "last", "type": "GLOBAL"}]))


def test_a_checkpoint_without_its_rules_is_refused(tmp_path, tiny_tokenizer):
    save_checkpoint(tmp_path, tiny_tokenizer)
    (tmp_path / "hsa_config.json").unlink()
    with pytest.raises(ValueError, match="names HSA in its architecture, but has no hsa_config.json"):
        EngineArgs(str(tmp_path), dtype="float32").create_engine_config()


@pytest.mark.parametrize("error", [None, EntryNotFoundError("none"), OSError("no way"), ValueError("no name")])
def test_a_model_on_the_hub_with_rules_is_refused_and_others_are_not(monkeypatch, tmp_path, error):
    def download(model, name, revision):
        if error is not None:
            raise error
        return str(tmp_path / name)

    monkeypatch.setattr("hsa_factory.vllm.serving_config.hf_hub_download", download)
    model = SimpleNamespace(
        model="someone/no-such-directory", revision=None, architectures=["Qwen3ForCausalLM"], hf_config=None
    )
    config = SimpleNamespace(model_config=model, lora_config=None)
    with nullcontext() if error else pytest.raises(ValueError, match="would serve it without HSA"):
        at_start.UnnamedHSAConfig.verify_and_update_config(config)
