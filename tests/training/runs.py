"""Rows made by hand, and short runs of trainers with them."""

import importlib

import datasets
import pytest
import torch
from helpers import enabled, tokens, types

from hsa_factory import HSAConfig


CONFIG = HSAConfig(noise_window=3)
LENGTHS = (20, 31, 9, 12)


def row(length, seed=None, kind=None, **more):
    """Return a row; the first four tokens are not trained. `kind`: of all tokens; None: types at random."""
    seed = length if seed is None else seed
    ids = tokens(1, length, seed)[0].tolist()
    kinds = types(1, length, seed)[0].tolist() if kind is None else [kind] * length
    labels = [-100] * 4 + ids[4:]
    return {"input_ids": ids, "attention_mask": [1] * length, "semantic_ids": kinds, "labels": labels} | more


def rows(kind=None, **more):
    return [row(length, kind=kind, **more) for length in LENGTHS]


def data(kind=None):
    return datasets.Dataset.from_list(rows(kind))


def arguments(output_dir, **options):
    usual = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1}
    usual |= {"save_strategy": "no", "use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True}
    return {"output_dir": str(output_dir)} | usual | options


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def model(**options):
    return enabled("llama", CONFIG, **options)


def trl_class(name):
    """Return a class of TRL's; the test is skipped where there is no TRL."""
    trl = pytest.importorskip("trl")
    imports = importlib.import_module("trl.import_utils")
    for flag, value in list(vars(imports).items()):
        if flag.endswith("_available") and isinstance(
            value, tuple
        ):  # TRL 0.24 takes transformers 5's (False, None) for true
            setattr(imports, flag, value[0])
    return getattr(trl, name)


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=tolerance, rtol=tolerance)
