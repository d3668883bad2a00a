"""LLaMA-Factory's chat model on a tiny model: what it is asked, what `generate` is given for it, and full forwards."""

from contextlib import contextmanager

import torch
from llamafactory.chat import ChatModel

from hsa_factory import HSAConfig
from hsa_factory.llamafactory import integrate


G, L, N = 0, 1, 2
HSA = HSAConfig(noise_window=4, noise_decay=0.3, default_type="NOISE", backend="dense")
NEW = 8


@contextmanager
def chat_model(directory, hsa=HSA, **more):
    """LLaMA-Factory's chat model, as its commands make it."""
    args = {
        "model_name_or_path": str(directory),
        "template": "qwen3_nothink",
        "do_sample": False,
        "max_new_tokens": NEW,
    }
    with integrate(hsa):
        yield ChatModel({**args, **more})


def prompt_of(model, messages, system=None, tools=None, **media):
    """Return what `generate` is given for a conversation."""
    engine = model.engine
    gen_kwargs, length = engine._process_args(
        engine.model,
        engine.tokenizer,
        engine.processor,
        engine.template,
        engine.generating_args,
        messages,
        system,
        tools,
        media.get("images"),
        media.get("videos"),
        media.get("audios"),
        {},
    )
    assert gen_kwargs["inputs"].shape == (1, length)
    return gen_kwargs


def talk(lf, *roles, **types):
    """Return a conversation: message k consists of mark k only."""
    messages = []
    for number, role in enumerate(roles):
        message = lf.say(role, lf.MARKS[number] * 3)
        if f"m{number}" in types:
            message["semantic_type"] = types[f"m{number}"]
        messages.append(message)
    return messages


def greedy(model, gen_kwargs, generated_type):
    """Return the ids that full forwards with HSA, one a token, lead to."""
    ids, kinds, new, turns = gen_kwargs["inputs"], gen_kwargs["semantic_ids"], [], gen_kwargs.get("turn_ids")
    stop = gen_kwargs["generation_config"].eos_token_id
    for _ in range(NEW):
        with torch.no_grad():
            token = model(input_ids=ids, semantic_ids=kinds, turn_ids=turns).logits[0, -1].argmax()
        new.append(token.item())
        if token in (stop if isinstance(stop, list) else [stop]):
            break
        ids = torch.cat([ids, token.view(1, 1)], dim=1)
        kinds = torch.cat([kinds, torch.full((1, 1), generated_type)], dim=1)
        turns = None if turns is None else torch.cat([turns, turns[:, -1:]], dim=1)
    return new
