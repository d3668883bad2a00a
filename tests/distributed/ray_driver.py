"""Trains on Ray with a processor for each worker: LLaMA-Factory asks for ten beside every GPU, and the same where there is none."""

import sys

import llamafactory.train.tuner as tuner
from ray.util.placement_group import placement_group

from hsa_factory.cli import main


WORKERS = 2
CPUS = {"CPU": 1}


def small_group(devices):
    return placement_group([CPUS] * WORKERS, strategy="PACK"), CPUS


def with_one_cpu(original):
    return lambda **options: {**original(**options), "num_cpus": CPUS["CPU"]}


if __name__ == "__main__":
    tuner.get_placement_group = small_group
    tuner.get_ray_remote_config_for_worker = with_one_cpu(tuner.get_ray_remote_config_for_worker)
    sys.exit(main(["train", *sys.argv[1:]]))
