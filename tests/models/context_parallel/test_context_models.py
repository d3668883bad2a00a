"""Models whose rows are cut among ranks: loss and gradients are those of one process, in every way a batch can look."""

import copy

import pytest
import torch
import torch.distributed as dist
from conversations import conversation, with_media_types
from helpers import tokens, types
from ranks import averaged, joined, on_ranks, same, step

from hsa_factory import HSAConfig, enable_hsa, tiny


TEXT = ("llama", "qwen2", "qwen3", "mistral", "qwen3_moe")
MORE = ("gemma2", "gpt_oss", "phi3")
VISION = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
LENGTH = 37  # no number of ranks divides it


def labels_of(ids, mask=None):
    """Labels of which a slice, the first of a few tokens, has none."""
    labels = ids.clone()
    labels[:, : labels.shape[1] // 2] = -100
    return labels if mask is None else labels.masked_fill(mask == 0, -100)


def plain(length=LENGTH, rows=2):
    ids = tokens(rows, length)
    return {"input_ids": ids, "labels": labels_of(ids), "semantic_ids": types(rows, length)}


def padded(side):
    batch = plain()
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, slice(0, 20) if side == "left" else slice(17, None)] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    labels = labels_of(batch["input_ids"], mask)
    return batch | {"attention_mask": mask, "labels": labels, "position_ids": positions}


def packed():
    mask = torch.tensor([[1] * 9 + [2] * 20 + [3] * 8, [1] * 30 + [2] * 2 + [0] * 5])
    positions = torch.tensor([[*range(9), *range(20), *range(8)], [*range(30), 0, 1, *[0] * 5]])
    batch = plain()
    labels = batch["input_ids"].masked_fill(mask == 0, -100)
    return batch | {"attention_mask": mask, "position_ids": positions, "labels": labels}


def pictures(model):
    ids, images = conversation(model, turns=3, rows=2)
    images = with_media_types(model, ids, images)
    kinds = types(*ids.shape).masked_fill(ids == model.config.image_token_id, 2)
    return {"input_ids": ids, "labels": labels_of(ids), "semantic_ids": kinds, **images}


BATCHES = {
    "plain": plain,
    "one token": lambda: plain(2, 1) | {"labels": tokens(1, 2)},
    "left": lambda: padded("left"),
    "right": lambda: padded("right"),
    "packed": packed,
    "items": lambda: plain() | {"num_items_in_batch": torch.tensor(77)},
}


def compare(model, config, group, batch, checkpointing=False):
    """Compare a step of this model with that of a copy on one process."""
    whole = enable_hsa(copy.deepcopy(model), config)
    expected = step(whole, **batch)
    enable_hsa(model, config, context_parallel=group)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        model.enable_input_require_grads()
    loss, grads = step(model, **batch)
    same((loss, averaged(grads)), expected)
    return expected[0]


def models(rank, ranks, meeting):
    """In a child: all models, all batches."""
    group = joined(rank, ranks, meeting)
    config = HSAConfig(noise_window=6)
    for model_type in TEXT if ranks == 3 else TEXT + MORE:
        for name in BATCHES if model_type in ("qwen3", "mistral") else ("plain", "left"):
            compare(tiny.build_model(model_type), config, group, BATCHES[name]())
    for model_type in VISION:
        model = tiny.build_model(model_type)
        compare(model, config, group, pictures(model))
        compare(tiny.build_model(model_type), config, group, plain())
    for reentrant in (False, "reentrant"):
        compare(tiny.build_model("qwen3"), config, group, plain(), checkpointing=reentrant or "new")
    only_one = HSAConfig(layers=[1], noise_window=3, backend="blockwise")
    compare(tiny.build_model("mistral"), only_one, group, plain())
    turns = {"turn_ids": torch.arange(LENGTH).expand(2, -1) // 7}
    compare(tiny.build_model("llama"), HSAConfig(noise_turns=1), group, plain() | turns)
    dist.destroy_process_group()
    return 0


@pytest.mark.parametrize(
    "ranks", [3, pytest.param(2, marks=pytest.mark.long), pytest.param(4, marks=pytest.mark.long)]
)
def test_loss_and_gradients(ranks, tmp_path):
    on_ranks(ranks, tmp_path, models)
