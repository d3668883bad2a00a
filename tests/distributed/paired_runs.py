"""Tiny runs on one process and on several: their data, their files, and what they left behind."""

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from hsa_factory import tiny


ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCALING = EXAMPLES / "scaling"
WORKER = Path(__file__).with_name("distributed_worker.py")
WORDS = "the robot opens fridge takes red apple out navigates to table puts it down looks around closes drawer".split()
PROCESSES = 2
HSA = {"noise_window": 20}
SECONDS = 900


def environment(**more):
    """Return the variables of a run on this machine alone, whatever the tests themselves run in."""
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    paths = [str(ROOT / "src"), str(WORKER.parent), os.environ.get("PYTHONPATH", "")]
    return clean | {
        **{"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        **{"PYTHONPATH": os.pathsep.join(filter(None, paths)), "GLOO_SOCKET_IFNAME": "lo"},
        **{"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])},
        **more,
    }


def make_material(directory):
    """Write a tiny model whose vocabulary is full, so that the feedback token makes its tables larger, and conversations."""
    numbers = random.Random(0)
    syllables = [f"{a}{b}{c} " for a in "bdfgklmnprstvz" for b in "aeiou" for c in "lmnrst"]
    tiny.save_tiny("qwen3", directory / "qwen3", [" ".join(WORDS), *syllables])
    path = directory / "qwen3" / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "summary_dropout_prob": 0.0}), "utf-8")  # of the value head
    weight = torch.linspace(-1, 1, config["hidden_size"])[None]
    head = {"v_head.summary.weight": weight, "v_head.summary.bias": torch.zeros(1)}
    save_file(head, directory / "qwen3" / "value_head.safetensors")  # else every engine draws one of its own

    def text(words):
        return " ".join(numbers.choice(WORDS) for _ in range(words))

    def conversation():
        messages = [{"role": "system", "content": text(10), "semantic_type": "GLOBAL"}]
        for _ in range(numbers.randint(2, 5)):
            messages += [
                {"role": "user", "content": text(numbers.randint(5, 60)), "semantic_type": "NOISE"},
                {"role": "assistant", "content": text(numbers.randint(5, 25)), "semantic_type": "LANDMARK"},
            ]
            if numbers.random() < 0.5:
                messages[-1]["weight"] = numbers.choice([0.25, 3])
        if numbers.random() < 0.6:
            messages[-1]["content"] += "<|feedback|>" + text(12)
        return {"messages": messages}

    (directory / "data.json").write_text(json.dumps([conversation() for _ in range(24)]), "utf-8")
    tags = {f"{role}_tag": role for role in ("role", "content", "user", "assistant", "system")}
    entry = {"file_name": "data.json", "formatting": "sharegpt", "columns": {"messages": "messages"}}
    entry["tags"] = {**tags, "semantic_tag": "semantic_type"}
    (directory / "dataset_info.json").write_text(json.dumps({"data": entry}), "utf-8")


@dataclass
class Runs:
    """Runs that are asked for, then made: each on one process and on several.

    Attributes:
        directory: Of the material, the files and the outputs.
        alone: Jobs of `distributed_worker`, for one process.
        together: The same for several.
    """

    directory: Path
    alone: list[dict] = field(default_factory=list)
    together: list[dict] = field(default_factory=list)

    def ask(self, case, engine=None, file=None, fsdp=None, key=None, **options):
        """Ask for a run.

        Args:
            case: What is trained. Runs of the same case must agree.
            engine: None: one process.
            file: Training file; None: the one of `sft_options`.
            fsdp: Configuration of `accelerate launch`; None: none.
            key: What tells it from a run of the same case and engine that goes on in its directory.
            **options: LLaMA-Factory's; None leaves one out.
        """
        out = self.output(case, engine)
        own = {"output_dir": str(out), "report_to": "none", "save_strategy": "no", "logging_steps": 1}
        own |= {"disable_tqdm": True, "dataloader_pin_memory": False, "lr_scheduler_type": "constant"}
        own |= {"model_name_or_path": str(self.directory / "qwen3"), "cache_dir": str(self.directory / "cache")}
        own |= {"overwrite_output_dir": True, "max_steps": 4, "preprocessing_num_workers": 1, "learning_rate": 1e-3}
        rows = 2 if file is None else 1  # the examples have few: all steps are to be whole
        own["per_device_train_batch_size"] = rows if engine else rows * PROCESSES
        own |= {"ddp_backend": "gloo"} if engine else {}
        args = yaml.safe_load(Path(file).read_text("utf-8")) if file else self.sft_options()
        args = {name: value for name, value in {**args, **own, **options}.items() if value is not None}
        name = "-".join(filter(None, (case, engine, key)))
        path = self.directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(args), "utf-8")
        job = {"name": name, "file": str(path), "overrides": [], "fsdp": fsdp and str(fsdp)}
        (self.together if engine else self.alone).append(job)
        return path

    def sft_options(self):
        """Return the example, with everything: types, a new token, weights."""
        example = yaml.safe_load((SCALING / "train.yaml").read_text("utf-8"))
        here = {"dataset": "data", "dataset_dir": str(self.directory), "cutoff_len": 512, "bf16": False, "hsa": HSA}
        return {**example, **here, "gradient_accumulation_steps": 2}

    def output(self, case, engine=None):
        return self.directory / "out" / f"{case}-{engine or 'one'}"

    def make(self):
        """Make all that were asked for, those of one process beside the others.

        Returns:
            What the processes said, at its end.
        """
        results = self.directory / "results"
        results.mkdir()
        started = []
        for name, jobs, command in (
            ("alone", self.alone, [sys.executable]),
            ("together", self.together, [sys.executable, "-m", "torch.distributed.run", "--standalone"]),
        ):
            file = self.directory / f"{name}.json"
            file.write_text(json.dumps(jobs), "utf-8")
            several = ["--nproc-per-node", str(PROCESSES)] if name == "together" else []
            with open(self.directory / f"{name}.log", "w", encoding="utf-8") as log:
                command = [*command, *several, str(WORKER), str(file), str(results)]
                started.append(subprocess.Popen(command, env=environment(), stdout=log, stderr=log))
        for process in started:
            process.wait(timeout=SECONDS)

    def why_missing(self, case, engine):
        """Return what went wrong in a run, or before it."""
        failed = sorted((self.directory / "results").glob("*.txt"))
        own = [path for path in failed if path.name.startswith("-".join(filter(None, (case, engine))) + ".")]
        return "\n".join(path.read_text("utf-8")[-2000:] for path in own or failed) or "no run has failed"


def history(directory, value="loss"):
    """Return what was logged at each step."""
    state = json.loads((Path(directory) / "trainer_state.json").read_text("utf-8"))
    return [entry.get(value) for entry in state["log_history"] if "loss" in entry]


def weights(directory):
    """Return the weights of a saved model or adapter by name."""
    found = {}
    for path in Path(directory).glob("*.safetensors"):
        found |= load_file(path)
    return found
