"""Engines that need processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engines import generate, random_request
from serving_checkpoints import save_checkpoint

from hsa_factory import HSAConfig


PROGRAM = Path(__file__).with_name("ask_engine.py")


def ask(directory, requests, number, environment=None, **engine):
    told = directory / "told.json"
    options = {"model": str(directory), "dtype": "float32", "max_model_len": 2048, "num_gpu_blocks_override": 200}
    told.write_text(json.dumps({"engine": {**options, **engine}, "requests": requests, "number": number}))
    run = subprocess.run(
        [sys.executable, str(PROGRAM), str(told)],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=500,
    )
    lines = [line for line in run.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert lines, run.stdout[-3000:] + run.stderr[-3000:]
    return json.loads(lines[0].removeprefix("ANSWERS "))


@pytest.fixture
def checkpoint(tmp_path, tiny_tokenizer):
    def make(model_type, **overrides):
        return save_checkpoint(tmp_path, tiny_tokenizer, model_type, HSAConfig(), **overrides)

    return make


def requests_of(rng):
    return [random_request(rng, length) for length in (400, 1, 1100, 37)]


def test_experts(checkpoint, tmp_path, rng):
    model = checkpoint("qwen3_moe")
    requests = requests_of(rng)
    got = ask(tmp_path, requests, 25, distributed_executor_backend="uni", max_num_batched_tokens=256)
    assert got == [generate(model, ids, 25, types) for ids, types in requests]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_tensor_parallel(checkpoint, tmp_path, rng):
    model = checkpoint("qwen3", head_dim=32)
    requests = requests_of(rng)
    cores = sorted(os.sched_getaffinity(0))[:2]
    got = ask(
        tmp_path,
        requests,
        25,
        {"VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[1]}"},
        tensor_parallel_size=2,
        distributed_executor_backend="mp",
        max_num_batched_tokens=256,
    )
    assert got == [generate(model, ids, 25, types) for ids, types in requests]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("runner", ["0", "1"], ids=["V1", "V2"])
def test_cuda(checkpoint, tmp_path, rng, runner):
    """The attention of GPUs, under both model runners."""
    model = checkpoint("qwen3", head_dim=64)
    requests = requests_of(rng)
    got = ask(
        tmp_path,
        requests,
        8,
        {"VLLM_USE_V2_MODEL_RUNNER": runner},
        distributed_executor_backend="uni",
        gpu_memory_utilization=0.3,
        max_num_batched_tokens=256,
        num_gpu_blocks_override=200,
    )
    assert got == [generate(model, ids, 8, types) for ids, types in requests]
