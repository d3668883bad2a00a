"""Prompts with pictures in them, what an engine answers, and what `generate` says is right."""

import numpy as np
import torch
from engines import random_types
from PIL import Image
from vllm import SamplingParams

from hsa_factory import tiny
from hsa_factory.vllm.types import fields_of


SIZES = ((112, 140), (224, 56), (224, 224), (224, 168), (112, 224))


def random_picture(rng, size=None):
    height, width = size or SIZES[int(rng.integers(len(SIZES)))]
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


class Seen:
    """A prompt as a client knows it, with one token for each picture.

    Attributes:
        ids: Of its tokens.
        types: Of each.
        pictures: In their order.
        turns: Of each token; None: the rules have none.
    """

    def __init__(self, ids, types, pictures, turns=None):
        self.ids, self.types, self.pictures, self.turns = list(ids), list(types), list(pictures), turns

    @classmethod
    def random(cls, rng, tokenizer, pictures, text=60):
        """Pictures with text around them; all of a picture's surroundings have its type."""
        markers = [
            tokenizer.convert_tokens_to_ids(name) for name in ("<|vision_start|>", tiny.IMAGE_TOKEN, "<|vision_end|>")
        ]
        ids, types = rng.integers(0, 280, 12).tolist(), [0] * 12
        for _ in range(pictures):
            words = rng.integers(0, 280, int(rng.integers(1, text))).tolist()
            ids += [*markers, *words]
            types += [int(rng.choice(3, p=[0.15, 0.15, 0.7]))] * 3 + random_types(rng, len(words), 40)
        return cls(ids, types, [random_picture(rng) for _ in range(pictures)])

    def then(self, ids, types, other=None):
        """Return the conversation that goes on with these tokens, and with what is sent next."""
        more = ([], [], []) if other is None else (other.ids, other.types, other.pictures)
        return Seen(self.ids + ids + more[0], self.types + types + more[1], self.pictures + more[2])

    def prompt(self):
        return {"prompt_token_ids": self.ids, "multi_modal_data": {"image": self.pictures}}

    def fields(self):
        return fields_of(self.types, self.turns)


def ask(served, requests, number, adapters=None, **options):
    """Return vLLM's answers, greedy; `adapters`: one for each request, or None."""
    params = [
        SamplingParams(temperature=0, max_tokens=number, ignore_eos=True, extra_args=request.fields(), **options)
        for request in requests
    ]
    prompts = [request.prompt() for request in requests]
    return served.llm.generate(prompts, params, use_tqdm=False, lora_request=adapters)


def texts(answers):
    return [list(answer.outputs[0].token_ids) for answer in answers]


def as_read(served, request):
    """Return what the model reads: ids and types of all tokens, and what it sees, as transformers prepares it."""
    processor = tiny.build_processor(served.model.config.model_type, served.tokenizer)
    seen = processor.image_processor(images=request.pictures, return_tensors="pt")
    counts = iter((seen["image_grid_thw"].prod(-1) // 4).tolist())
    pad = served.tokenizer.convert_tokens_to_ids(tiny.IMAGE_TOKEN)
    repeats = [next(counts) if token == pad else 1 for token in request.ids]
    spread = {
        name: np.repeat(values, repeats)
        for name, values in (("ids", request.ids), ("types", request.types), ("turns", request.turns))
        if values is not None
    }
    return spread, {**seen, "mm_token_type_ids": torch.from_numpy(spread["ids"] == pad).long()[None]}


@torch.no_grad()
def expected(served, request, number):
    """Return what `generate` answers to a request alone."""
    spread, seen = as_read(served, request)
    known = {} if request.turns is None else {"turn_ids": torch.from_numpy(spread["turns"])[None]}
    ids = torch.from_numpy(spread["ids"])[None]
    output = served.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        semantic_ids=torch.from_numpy(spread["types"])[None],
        max_new_tokens=number,
        do_sample=False,
        eos_token_id=None,
        **known,
        **seen,
    )
    return output[0, ids.shape[1] :].tolist()
