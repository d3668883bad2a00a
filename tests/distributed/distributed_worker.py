"""Runs training files one after the other in this process, or in this and the others that a launcher has started.

Importing everything takes longer than a tiny run, so that one launch serves many of them. A run finds what it would find in
a fresh process, but for the process group, which stays.
"""

import gc
import json
import os
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

import accelerate.state
import deepspeed.ops
import plain_cpu
import torch.distributed as dist
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from hsa_factory.llamafactory.launch import train


def main(jobs_file, results):
    """Run all jobs.

    Args:
        jobs_file: JSON: a list of objects with `name`, `file` (a training file), `overrides` and `fsdp` (a configuration of
            `accelerate launch`, or null).
        results: Directory; what went wrong in the job NAME is written to ``NAME.RANK.txt``.
    """
    rank = os.environ.get("RANK", "0")
    for job in json.loads(Path(jobs_file).read_text("utf-8")):
        print(f"{time.monotonic():.0f} {job['name']}", flush=True)
        try:
            with fresh(fsdp_variables(job["fsdp"]) if "RANK" in os.environ else {}):
                train(job["file"], job["overrides"])
        except BaseException:
            Path(results, f"{job['name']}.{rank}.txt").write_text(traceback.format_exc(), "utf-8")
            if "RANK" in os.environ:
                raise  # the other processes may wait for this one for ever


def fsdp_variables(path):
    """Return the environment variables by which `accelerate launch --config_file` tells its processes of FSDP."""
    if path is None:
        return {}
    options = yaml.safe_load(Path(path).read_text("utf-8"))["fsdp_config"]
    return {"ACCELERATE_USE_FSDP": "true", **{name.upper(): str(value) for name, value in options.items()}}


@contextmanager
def fresh(variables):
    """Let a run find no trace of the one before."""
    former, destroy = dict(os.environ), dist.destroy_process_group
    os.environ.update(variables)
    dist.destroy_process_group = lambda *args: None  # DeepSpeed keeps the first group it has seen
    try:
        yield
    finally:
        dist.destroy_process_group = destroy
        os.environ.clear()
        os.environ.update(former)
        unset_hf_deepspeed_config()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        gc.collect()


def with_fsdp_on_cpu(original):
    """Return the constructor of accelerate's state, which forgets FSDP where there is no accelerator and runs DDP."""

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    return init


if __name__ == "__main__":
    plain_cpu.install()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it takes a minute to compile
    accelerate.state.AcceleratorState.__init__ = with_fsdp_on_cpu(accelerate.state.AcceleratorState.__init__)
    main(*sys.argv[1:])
