"""The four training files of the quickstart, which are also the ones under ``examples/``."""

import json
import re
from dataclasses import dataclass
from pathlib import Path


DATA_DIR = Path(__file__).with_name("data")


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
        name: Name of the run and of its file.
        title: What people call it.
        model_type: Name of the model for `hsa_factory.tiny` and of its directory.
        lora: Whether to train adapters instead of all weights.
        learning_rate: For the tiny model.
        epochs: Passes over the 24 trajectories.
    """

    name: str
    title: str
    model_type: str
    lora: bool
    learning_rate: float
    epochs: int

    @property
    def has_vision(self) -> bool:
        """Whether the model sees pictures."""
        return self.model_type.endswith("vl")

    def render(
        self, path: str, models_dir: str, data_dir: str, output_dir: str, seed: int = 0, epochs: float | None = None
    ) -> str:
        """Write the training file as text.

        Args:
            path: Where the file will be, for the command on its first line.
            models_dir: Directory of the tiny models.
            data_dir: Directory with ``dataset_info.json``.
            output_dir: Where the run's results go.
            seed: Decides the order of the samples.
            epochs: Passes over the data; None: the recipe's own.
        """
        real = "Qwen/Qwen2.5-VL-7B-Instruct" if self.has_vision else "Qwen/Qwen3-8B"
        return _TEMPLATE.format(
            path=_scalar(path),
            what=f"{'LoRA' if self.lora else 'Full'} fine-tuning of {self.title.split(',')[0]}",
            sees=" and pictures" if self.has_vision else "",
            model=_scalar(f"{models_dir}/{self.model_type}"),
            real=real,
            method=_LORA if self.lora else "finetuning_type: full",
            template="qwen2_vl" if self.has_vision else "qwen3_nothink",
            dataset="household" if self.has_vision else "household_text",
            data_dir=_scalar(data_dir),
            pictures=_PICTURES if self.has_vision else "",
            output_dir=_scalar(output_dir),
            learning_rate=f"{self.learning_rate:.1e}".replace("e-0", "e-"),
            real_rate="1.0e-4" if self.lora else "1.0e-5",
            epochs=f"{self.epochs if epochs is None else epochs:g}",
            seed=seed,
        )


def _scalar(text: str) -> str:
    return text if re.fullmatch(r"[\w./-]+", text) else json.dumps(text, ensure_ascii=False)


_LORA = """\
finetuning_type: lora
lora_rank: 16
lora_target: all
additional_target: embed_tokens,lm_head  # trained whole: the tiny model knows no words; real: leave it out"""

_PICTURES = "image_max_pixels: 262144  # larger pictures are scaled down to 512 × 512\n"

_TEMPLATE = """\
# hsa-factory train {path}
#
# {what} on household trajectories: text{sees}, with HSA and Feedback.
# The model is the tiny one that `hsa-factory quickstart` builds. For a real model, change the lines marked "real".

### model
model_name_or_path: {model}  # real: {real}

### method
stage: sft
do_train: true
{method}

### HSA: what each token may see
hsa:
  noise_window: 50  # a NOISE token is out of sight 50 tokens later; `hsa: true` takes all defaults

### Feedback: what is trained
feedback:
  token: <|feedback|>  # only what follows it counts in the loss
  missing: train  # a sample without it is trained as usual; or: drop, error

### data
dataset: {dataset}
dataset_dir: {data_dir}
media_dir: {data_dir}
template: {template}
cutoff_len: 1024  # real: 32768
{pictures}preprocessing_num_workers: 1

### output
output_dir: {output_dir}
overwrite_output_dir: true
logging_steps: 1
save_strategy: "no"  # the final model is saved all the same
plot_loss: true
report_to: none

### training
per_device_train_batch_size: 4  # real: 1, with gradient_accumulation_steps
learning_rate: {learning_rate}  # real: {real_rate}
num_train_epochs: {epochs}
lr_scheduler_type: cosine
warmup_ratio: 0.1
seed: {seed}
# real: bf16: true
"""

RECIPES = (
    Recipe("qwen3_full", "Qwen3, full", "qwen3", lora=False, learning_rate=4e-3, epochs=8),
    Recipe("qwen3_lora", "Qwen3, LoRA", "qwen3", lora=True, learning_rate=1e-2, epochs=8),
    Recipe("qwen2_5_vl_full", "Qwen2.5-VL, full", "qwen2_5_vl", lora=False, learning_rate=4e-3, epochs=8),
    Recipe("qwen2_5_vl_lora", "Qwen2.5-VL, LoRA", "qwen2_5_vl", lora=True, learning_rate=1e-2, epochs=8),
)
"""The runs, in their order."""


def write_recipes(output_dir: Path, data_dir: Path, seed: int, epochs: float | None) -> dict[str, Path]:
    """Write the four files into ``output_dir/configs`` and return their paths by name."""
    directory = output_dir / "configs"
    directory.mkdir(parents=True, exist_ok=True)
    paths = {}
    for recipe in RECIPES:
        path = paths[recipe.name] = directory / f"{recipe.name}.yaml"
        text = recipe.render(
            path=path.as_posix(),
            models_dir=(output_dir / "models").as_posix(),
            data_dir=data_dir.as_posix(),
            output_dir=(output_dir / "runs" / recipe.name).as_posix(),
            seed=seed,
            epochs=epochs,
        )
        path.write_text(text, encoding="utf-8")
    return paths


def write_examples(directory: Path) -> None:
    """Write the files under ``examples/``: the same recipes, started from the repository's root."""
    for recipe in RECIPES:
        text = recipe.render(
            path=f"examples/{recipe.name}.yaml",
            models_dir="hsa_quickstart/models",
            data_dir="src/hsa_factory/quickstart/data",
            output_dir=f"saves/{recipe.name}",
        )
        (directory / f"{recipe.name}.yaml").write_text(text, encoding="utf-8")
