"""Reward models: pairs scored by a value head on a model with HSA, trained, saved, gone on from and evaluated."""

import json
from pathlib import Path

import pytest
import torch
from probe import assert_hsa_reaches, probe_batch
from safetensors.torch import load_file

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.llamafactory import integrate
from hsa_factory.models.enable import get_state


HSA = HSAConfig(noise_window=5)
M = "<|feedback|>"
LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj"}
FREEZE = {"finetuning_type": "freeze", "freeze_trainable_layers": 1}
VALUE_HEAD = "value_head.safetensors"


def pairs(lf, number=4, kind=None, image=None):
    """Return pairs of replies to conversations of different lengths.

    Args:
        lf: The pipeline.
        number: Of pairs.
        kind: Type of all messages; None: several.
        image: Path of a picture in each first message.
    """
    samples = []
    for k in range(number):
        kinds = ["GLOBAL", "NOISE", "NOISE", "LANDMARK", "NOISE"] if kind is None else [kind] * 5
        messages = lf.dialogue(kinds, words=5 + 3 * k, first_mark=5 * (k % 5))
        chosen, rejected = ({"role": "assistant", "content": text * (k + 2)} for text in ("<m30>", "<m31><m32>"))
        sample = {"messages": messages, "chosen": chosen, "rejected": rejected}
        if image is not None:
            messages[0]["content"] = "<image>" + messages[0]["content"]
            sample["images"] = [image]
        samples.append(sample)
    return samples


def entry(lf, has_images=False):
    """Return what dataset_info.json says of pairs."""
    columns = {"messages": "messages", "chosen": "chosen", "rejected": "rejected"}
    columns |= {"images": "images"} if has_images else {}
    return {"formatting": "sharegpt", "ranking": True, "columns": columns, "tags": lf.TAGS}


@pytest.fixture
def text(lf, tmp_path):
    """Arguments for a run on text."""
    data = lf.write_data(tmp_path, data=(entry(lf), pairs(lf)), all_global=(entry(lf), pairs(lf, kind="GLOBAL")))
    return lf.args(data, "data", template="qwen3_nothink", stage="rm", per_device_train_batch_size=2)


@pytest.fixture
def pictures(lf, tmp_path):
    """Arguments for a run with pictures."""
    (path,) = lf.images(tmp_path / "images", [(84, 56)])
    samples = pairs(lf, 2, "GLOBAL", image=path)
    data = lf.write_data(tmp_path, all_global=(entry(lf, True), samples))
    return lf.args(data, "all_global", lf.model_dir("qwen2_5_vl"), template="qwen2_vl", stage="rm")


@pytest.mark.parametrize(
    ("kind", "tuning"),
    [("text", {}), ("text", FREEZE), ("text", LORA), ("pictures", LORA)],
    ids=["full", "freeze", "lora", "pictures"],
)
def test_all_global_is_plain_llamafactory(lf, request, kind, tuning):
    args = {**request.getfixturevalue(kind), **tuning, "dataset": "all_global"}
    plain = lf.train(args)
    assert lf.train(args, HSA) == pytest.approx(plain, abs=1e-6) and len(plain) == 2


def test_x(lf, text):
    print(lf.train(text), lf.train(text, HSA), lf.train({**text, **LORA}), lf.train({**text, **LORA}, HSA), file=open("/tmp/w/x.txt","w"))
