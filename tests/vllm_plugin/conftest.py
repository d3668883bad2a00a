"""One process, and several engines in it, each made once: vLLM takes twenty seconds to be imported, an engine three."""

import importlib.util
import os

import numpy as np
import pytest


if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_engine_*.py", "test_server_*.py"]

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def rng():
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def serve(tmp_path_factory, tiny_tokenizer):
    """Return a function that makes a checkpoint and an engine for it, once for the same arguments."""
    from engines import Served

    served = {}

    def make(model_type="qwen3", config=None, model=None, **engine):
        key = repr((model_type, config, model, sorted(engine.items())))
        if key not in served:
            directory = tmp_path_factory.mktemp(model_type)
            served[key] = Served(directory, tiny_tokenizer, model_type, config, model or {}, engine)
        return served[key]

    return make


@pytest.fixture
def preempted(monkeypatch):
    """A function that counts the requests a scheduler preempts from now on, by id."""

    def watch(scheduler):
        seen, former = [], scheduler._preempt_request
        monkeypatch.setattr(
            scheduler,
            "_preempt_request",
            lambda request, *args, **kwargs: (seen.append(request.request_id), former(request, *args, **kwargs)),
        )
        return seen

    return watch
