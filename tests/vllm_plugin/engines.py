"""An engine that serves a tiny checkpoint, and the model itself, whose `generate` says what is right."""

import torch
from serving_checkpoints import save_checkpoint
from vllm import LLM, SamplingParams

from hsa_factory import HSAConfig
from hsa_factory.vllm.types import fields_of


class Served:
    """A checkpoint, the model it was made of, and an engine for it.

    Attributes:
        model: The model, with HSA.
        config: Its rules.
        llm: The engine.
    """

    def __init__(self, directory, tokenizer, model_type, config, model, engine):
        self.directory, self.tokenizer = directory, tokenizer
        self.config = config or HSAConfig()
        dtype = model.get("dtype", torch.float32)
        self.model = save_checkpoint(directory, tokenizer, model_type, self.config, **model)
        options = {"max_model_len": 4096, "num_gpu_blocks_override": 600, "max_num_batched_tokens": 4096, **engine}
        self.llm = LLM(
            str(directory),
            dtype=str(dtype).removeprefix("torch."),
            enforce_eager=True,
            distributed_executor_backend="uni",
            disable_log_stats=True,
            **options,
        )

    @property
    def scheduler(self):
        return self.llm.llm_engine.engine_core.engine_core.scheduler

    def ask(self, requests, number, **options):
        """Return the engine's answers, greedy, to requests (ids, types or types and turns)."""
        return [list(answer.outputs[0].token_ids) for answer in self.answers(requests, number, **options)]

    def answers(self, requests, number, adapters=None, **options):
        """Return vLLM's own outputs; `adapters`: one for each request, or None."""
        params = [
            SamplingParams(temperature=0, max_tokens=number, ignore_eos=True, extra_args=fields_of(*known), **options)
            for _, *known in requests
        ]
        return self.llm.generate(
            [{"prompt_token_ids": list(ids)} for ids, *_ in requests], params, use_tqdm=False, lora_request=adapters
        )

    def expected(self, requests, number, **options):
        """Return what `generate` of the product answers to each request alone."""
        options["tokenizer"] = self.tokenizer
        return [generate(self.model, ids, number, *known, **options) for ids, *known in requests]


@torch.no_grad()
def generate(model, ids, number, types, turns=None, **options):
    """Return what a model answers to a prompt, greedy."""
    known = {} if turns is None else {"turn_ids": torch.tensor([turns])}
    output = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        semantic_ids=torch.tensor([types]),
        max_new_tokens=number,
        do_sample=False,
        eos_token_id=None,
        **known,
        **options,
    )
    return output[0, len(ids) :].tolist()


def random_types(rng, length, noise=200):
    """Return types in runs, as trajectories have them."""
    types = []
    while len(types) < length:
        kind = int(rng.choice(3, p=[0.1, 0.15, 0.75]))
        types += [kind] * int(rng.integers(1, (40, 30, noise)[kind]))
    return types[:length]


def random_request(rng, length, tokenizer=None, noise=200):
    """Return ids and types of a prompt; special tokens do not occur."""
    return rng.integers(0, 280, length).tolist(), random_types(rng, length, noise)
