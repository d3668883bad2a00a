"""Families of models, precisions and lengths; and the models without HSA beside them."""

import json

import pytest
import torch
from engines import random_request
from vllm import LLM, SamplingParams

from hsa_factory import HSAConfig
from hsa_factory.vllm.types import fields_of


@pytest.mark.parametrize(
    ("model_type", "model"),
    [
        ("qwen2", {}),
        ("llama", {}),
        ("mistral", {"sliding_window": 100}),
        ("mistral", {"sliding_window": None}),
        ("qwen3", {"num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 32}),
    ],
)
def test_families(serve, rng, model_type, model):
    served = serve(model_type, model=model, max_num_batched_tokens=256)
    requests = [random_request(rng, length) for length in (400, 1, 1100, 37)]
    expected = served.expected(requests, 25)
    assert served.ask(requests, 25) == expected
    assert expected[2] != served.expected([(requests[2][0], [0] * 1100)], 25)[0]


def test_sliding_windows_and_turns(serve, rng):
    served = serve("mistral", config=HSAConfig(noise_turns=2), model={"sliding_window": 100})
    ids, types = random_request(rng, 900)
    requests = [(ids, types, [place // 50 for place in range(900)])]
    assert served.ask(requests, 25) == served.expected(requests, 25)


def test_odd_lengths(serve, rng):
    served = serve(max_num_batched_tokens=256, max_num_seqs=16)
    lengths = [1, 2, 3, 15, 16, 17, 31, 32, 33, 255, 256, 257, 511, 513, *rng.integers(1, 2000, 12).tolist()]
    requests = [random_request(rng, length, noise=int(rng.integers(5, 300))) for length in lengths]
    assert served.ask(requests, 8) == served.expected(requests, 8)


def test_bfloat16_by_log_probabilities(serve, rng):
    """Rounding differs where sums are taken in another order; how far types move a logit is much more."""
    served = serve(model={"dtype": torch.bfloat16}, max_num_batched_tokens=256)
    for length in (50, 700, 1300):
        ids, types = random_request(rng, length)
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, extra_args=fields_of(types))
        (answer,) = served.llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
        got = torch.tensor([next(iter(known.values())).logprob for known in answer.prompt_logprobs[1:]])
        places = torch.arange(1, length)
        with torch.no_grad():
            right, without = (
                served.model(torch.tensor([ids]), semantic_ids=torch.tensor([kinds]))
                .logits[0].float().log_softmax(-1)[places - 1, torch.tensor(ids)[1:]]
                for kinds in (types, [0] * length)
            )  # fmt: skip
        assert (got - right).abs().mean() < 0.02 and (got - right).abs().max() < 0.15
        assert (without - right).abs().mean() > 5 * (got - right).abs().mean() or length == 50


def test_a_plain_model_in_the_same_process_is_the_stock_one(serve, rng):
    served = serve(model={"head_dim": 64})
    plain = served.directory.with_name("plain")
    served.model.config.save_pretrained(plain)
    served.tokenizer.save_pretrained(plain)
    (plain / "model.safetensors").write_bytes((served.directory / "model.safetensors").read_bytes())
    assert json.loads((plain / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    stock = LLM(str(plain), dtype="float32", enforce_eager=True, distributed_executor_backend="uni",
                max_model_len=2048, num_gpu_blocks_override=200)  # fmt: skip
    core = stock.llm_engine.engine_core.engine_core
    layer = next(iter(core.vllm_config.compilation_config.static_forward_context.values()))
    assert layer.attn_backend.get_name() == "CPU_ATTN" and core.vllm_config.cache_config.block_size == 128
    assert type(core.scheduler).__module__.startswith("vllm.")
    ids, types = random_request(rng, 600)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    (answer,) = stock.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
    assert [list(answer.outputs[0].token_ids)] == served.expected([(ids, [0] * 600)], 20)
    assert served.ask([(ids, types)], 20) == served.expected([(ids, types)], 20)


@pytest.mark.long
def test_sixteen_thousand_tokens(serve, rng):
    served = serve(max_model_len=16384, num_gpu_blocks_override=500, max_num_batched_tokens=1024)
    request = [random_request(rng, 16000)]
    assert served.ask(request, 129) == served.expected(request, 129)
