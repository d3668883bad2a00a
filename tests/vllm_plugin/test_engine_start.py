"""What is settled and refused when an engine starts; its configuration alone is made, which takes no time."""

import logging

import pytest
from serving_checkpoints import save_checkpoint
from vllm.engine.arg_utils import EngineArgs

from hsa_factory import HSAConfig
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


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}},
            "speculative",
        ),
        ({"kv_transfer_config": {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}}, "KV connector"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype=fp8"),
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "the scheduler vllm"),
        ({"runner": "pooling"}, "models that generate"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(start, options, complaint):
    from vllm.config import KVTransferConfig

    if "kv_transfer_config" in options:
        options = {"kv_transfer_config": KVTransferConfig(**options["kv_transfer_config"])}
    with pytest.raises(ValueError, match=complaint):
        start(**options)


def test_rules_that_count_from_the_end_are_refused(start):
    with pytest.raises(ValueError, match="rule 'the last' counts turns from the conversation's end"):
        start(HSAConfig(rules=[{"name": "the last", "role": "user", "turn": "last", "type": "GLOBAL"}]))


def test_a_checkpoint_without_its_rules_is_refused(tmp_path, tiny_tokenizer):
    save_checkpoint(tmp_path, tiny_tokenizer)
    (tmp_path / "hsa_config.json").unlink()
    with pytest.raises(ValueError, match="names HSA in its architecture, but has no hsa_config.json"):
        EngineArgs(str(tmp_path), dtype="float32").create_engine_config()
