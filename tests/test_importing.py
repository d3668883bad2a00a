"""Importing the package changes nothing, and no room imports more than it needs; seen in one Python that starts anew."""

import importlib.util
import json
import subprocess
import sys

import pytest


# Each step prints its name and what is wrong: nothing.
STEPS = """
import json, sys

def report(step, wrong):
    print(json.dumps([step, sorted(map(str, wrong))]))

def present(*names):
    return set(names) & set(sys.modules)

def attributes(*owners):
    return {(owner.__name__, name): value for owner in owners for name, value in list(vars(owner).items())}

def changed(before, after):
    return [key for key in before.keys() | after.keys() if before.get(key) is not after.get(key)]

import hsa_factory, hsa_factory.cli
report("the package and its command", present("torch", "transformers", "llamafactory", "yaml"))
hsa_factory.HSAConfig(), hsa_factory.FeedbackConfig(), hsa_factory.SemanticType
report("its configurations", present("torch", "transformers", "llamafactory"))

import torch
TORCH = (torch.nn.Module, torch.Tensor, torch.nn.functional)
before = attributes(*TORCH)
import hsa_factory.attention, hsa_factory.feedback, hsa_factory.typed.ids, hsa_factory.typed.text
report("attention", present("transformers") | set(changed(before, attributes(*TORCH))))

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, modeling_utils
from transformers.generation import GenerationMixin

def state():
    registered = [(number, *item) for number in (0, 1) for item in dict(INTERFACES[number]).items()]
    return {key[:2]: key[2] for key in registered} | attributes(*TORCH, PreTrainedModel, GenerationMixin, modeling_utils)

INTERFACES = (AttentionInterface(), AttentionMaskInterface())
before = state()
hsa_factory.enable_hsa, hsa_factory.disable_hsa, hsa_factory.apply_hsa_patch
import hsa_factory.models, hsa_factory.tiny
report("models", changed(before, state()))
report("hosts of the core", present("llamafactory", "peft", "trl"))
import hsa_factory.training  # transformers' Trainer imports peft
report("training", present("llamafactory", "trl") | set(changed(before, state())))
report("nothing", ["an attribute"] if hasattr(hsa_factory, "nothing") else [])

model = hsa_factory.tiny.build_model("llama")  # which transformers leaves traces of
before = state()
hsa_factory.enable_hsa(model)
registered = sorted(map(str, changed(before, state())))
report("only enable_hsa registers", set(registered) ^ {"(0, 'hsa')", "(1, 'hsa')"})
"""
WITH_LLAMAFACTORY = """
import llamafactory.launcher, llamafactory.train.tuner

def of_llamafactory():
    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "llamafactory"]
    classes = {id(v): v for module in modules for v in vars(module).values() if isinstance(v, type)}
    return modules, list(classes.values())

modules, classes = of_llamafactory()
before, of_classes = attributes(*modules), [(one, dict(vars(one))) for one in classes]
import hsa_factory.llamafactory, hsa_factory.llamafactory.launch, hsa_factory.llamafactory.inspect.prepared_data
wrong = changed(before, {key: value for key, value in attributes(*modules).items() if key in before})
wrong += [(one, name) for one, was in of_classes for name in was if vars(one).get(name) is not was[name]]
report("llamafactory", wrong if len(before) > 1000 else ["too little was compared"])
"""


@pytest.mark.long
def test_importing_changes_nothing():
    steps = [
        "the package and its command",
        "its configurations",
        "attention",
        "models",
        "hosts of the core",
        "training",
        "nothing",
        "only enable_hsa registers",
    ]
    has_llamafactory = importlib.util.find_spec("llamafactory") is not None
    code = STEPS + WITH_LLAMAFACTORY * has_llamafactory
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    reported = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert reported == [[step, []] for step in [*steps, *["llamafactory"] * has_llamafactory]]
