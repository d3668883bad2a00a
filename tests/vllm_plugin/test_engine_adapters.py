"""LoRA adapters on a model with HSA: the answers are those of the model with the adapter in its weights."""

import json
from contextlib import contextmanager

import pytest
import torch
from engines import random_request
from safetensors.torch import save_file
from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue

from hsa_factory import HSAConfig
from hsa_factory.vllm.adapters import hold_back


TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
RANK, ALPHA = 4, 8


@pytest.fixture(scope="module")
def served(serve):
    """An engine with room for two adapters at once, and for their keys."""
    return serve(enable_lora=True, max_loras=2, max_lora_rank=8, max_num_batched_tokens=256)


def make_adapter(directory, model, seed, config=None):
    """Write an adapter as PEFT does, and return it with what it adds to each weight."""
    generator, weights, added = torch.Generator().manual_seed(seed), {}, {}
    for name, module in model.named_modules():
        if name.split(".")[-1] in TARGETS and "visual" not in name:  # vLLM leaves out what is of the eyes
            down = torch.randn(RANK, module.in_features, generator=generator) * 0.2
            up = torch.randn(module.out_features, RANK, generator=generator) * 0.2
            weights[f"base_model.model.{name}.lora_A.weight"] = down
            weights[f"base_model.model.{name}.lora_B.weight"] = up
            added[name] = up @ down * (ALPHA / RANK)
    directory.mkdir()
    save_file(weights, directory / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(TARGETS), "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps({**values, "task_type": "CAUSAL_LM"}))
    if config is not None:
        config.save_pretrained(directory)
    return LoRARequest(directory.name, seed, str(directory)), added


@contextmanager
def merged(model, added):
    """Let an adapter be part of a model's weights for a while."""
    with torch.no_grad():
        before = {name: model.get_submodule(name).weight.clone() for name in added}
        for name, change in added.items():
            model.get_submodule(name).weight += change
        yield
        for name, weight in before.items():
            model.get_submodule(name).weight.copy_(weight)


def test_adapters_and_the_model_itself_in_one_batch(served, rng, tmp_path):
    first, first_added = make_adapter(tmp_path / "first", served.model, 1, HSAConfig())
    second, second_added = make_adapter(tmp_path / "second", served.model, 2)  # without rules of its own
    requests = [random_request(rng, length) for length in (333, 801, 150)]
    base = served.expected(requests, 20)
    with merged(served.model, first_added):
        with_first = served.expected(requests, 20)
    with merged(served.model, second_added):
        with_second = served.expected(requests, 20)
    assert all(base[n] != with_first[n] != with_second[n] for n in range(3))
    assert (
        served.ask(requests * 3, 20, adapters=[first] * 3 + [None] * 3 + [second] * 3)
        == with_first + base + with_second
    )
    # the same ids and types: found in the cache with the same adapter only
    for adapter, expected in ((None, base), (second, with_second), (first, with_first)):
        answers = served.answers(requests, 20, adapters=[adapter] * 3)
        assert [list(answer.outputs[0].token_ids) for answer in answers] == expected
        assert all(answer.num_cached_tokens > len(ids) - 48 for answer, (ids, _) in zip(answers, requests))
    third, added = make_adapter(tmp_path / "third", served.model, 3)
    (answer,) = served.answers(requests[:1], 20, adapters=[third])
    with merged(served.model, added):
        assert [list(answer.outputs[0].token_ids)] == served.expected(requests[:1], 20)
    assert answer.num_cached_tokens == 0


def test_an_adapter_with_rules_of_its_own_is_refused_and_the_engine_goes_on(served, rng, tmp_path):
    other, _ = make_adapter(tmp_path / "other", served.model, 9, HSAConfig(noise_window=7))
    requests = [random_request(rng, 100), random_request(rng, 50)]
    refused, answer = served.answers(requests, 5, adapters=[other, None])
    assert refused.outputs[0].finish_reason == "error" and not refused.outputs[0].token_ids
    assert [list(answer.outputs[0].token_ids)] == served.expected(requests[1:], 5)


class Waiting:
    """A request that waits: its name, and whether it has an adapter."""

    def __init__(self, number, adapter):
        self.request_id = self.number = number
        self.lora_request = "adapter" if adapter else None

    def __lt__(self, other):
        return self.number < other.number


@pytest.mark.parametrize("policy", list(SchedulingPolicy))
def test_a_stream_of_one_kind_does_not_starve_the_other(policy):
    """With a step in which one more comes and the oldest ends, each runs in its turn, and never both kinds at once."""
    waiting, running, order = create_request_queue(policy), [], []
    for step in range(40):
        waiting.add_request(Waiting(step, adapter=step != 7))
        held = hold_back(running, waiting)
        while waiting and len(running) < 4:
            running.append(waiting.pop_request())
            order.append(running[-1].number)
        for request in held:
            waiting.add_request(request)
        assert len({request.lora_request for request in running}) <= 1
        if step % 2:
            running = running[1:]
    assert order == sorted(order) and 7 in order[:10] and len(order) > 15
