"""Checkpoints for vLLM: their config.json names an architecture that only our plugin knows.

A vLLM without the plugin refuses it, instead of serving another model with plain attention. Nothing else differs: transformers
goes by `model_type`, and loads it as before.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from .config import CONFIG_NAME, NOTE_KEY, HSAConfig
from .suggestions import did_you_mean
from .user_errors import UserError
from .whole_files import write_whole


ENGINES = ("vllm",)
"""What a checkpoint can be exported for."""

PREFIX = "HSA"
VISION_ARCHITECTURES = (
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
)
"""Those of `ARCHITECTURES` that see pictures."""

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    *VISION_ARCHITECTURES,
)
"""Architectures that our vLLM plugin serves with HSA."""

_TEMPLATES = "additional_chat_templates"  # a directory, where a tokenizer has several
_WEIGHTS = (".safetensors", ".bin", ".index.json")
_OF_TRAINING = ("optimizer", "scheduler", "scaler", "rng_state", "trainer_", "training_", "zero_to_fp32", "latest")


def check_engine(engine: Any) -> str:
    """Return the name of an engine that a checkpoint is exported for.

    Raises:
        UserError: If it is none.
    """
    if engine not in ENGINES:
        raise UserError(
            f"export_for: {engine!r} is not allowed: one of {', '.join(ENGINES)}.{did_you_mean(engine, ENGINES)}"
        )
    return str(engine)


def serving_architecture(directory: str | os.PathLike[str]) -> str:
    """Return the architecture's name under which vLLM serves a checkpoint, such as ``HSAQwen3ForCausalLM``.

    Args:
        directory: Of a model that was saved with HSA, as a serving checkpoint or not.

    Raises:
        UserError: If there is no such model, it has no HSA, it is an adapter, or our plugin does not serve its architecture; the
            message says what to do.
    """
    _check_rules(Path(directory))
    return family_architecture(directory)


def family_architecture(directory: str | os.PathLike[str]) -> str:
    """Return the name under which vLLM serves a model's family with HSA, whether it has HSA or not.

    Raises:
        UserError: If our plugin does not serve it.
    """
    found = _read_config(Path(directory)).get("architectures") or ["none"]
    if not isinstance(found, list):
        raise UserError(f"{directory}: architectures in its config.json must be a list of names, got {found!r:.80}.")
    plain = str(found[0]).removeprefix(PREFIX)
    if plain not in ARCHITECTURES:
        raise UserError(
            f"{directory}: vLLM serves HSA for {', '.join(ARCHITECTURES)}, not for {plain}. `hsa-factory api` serves every model that "
            "LLaMA-Factory loads."
        )
    return PREFIX + plain


def write_serving_architecture(directory: str | os.PathLike[str]) -> str:
    """Make a serving checkpoint of a saved model, in its place, and return the architecture's new name.

    One that is a serving checkpoint stays as it is.

    Raises:
        UserError: As `serving_architecture`.
    """
    name, values = serving_architecture(directory), _read_config(Path(directory))
    if values["architectures"] != [name]:
        values["architectures"] = [name]
        write_whole(Path(directory) / "config.json", json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    return name


def write_serving_checkpoint(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> str:
    """Copy a model that was saved with HSA, as a serving checkpoint, and return the architecture's new name.

    Files that only training goes on from (the optimizer's state, earlier checkpoints) stay behind.

    Args:
        source: The model's directory.
        target: A directory; made if missing.

    Raises:
        UserError: As `serving_architecture`, or if both are one directory, or the target has weights of another model.
    """
    place, new = Path(source), Path(target)
    serving_architecture(place)
    if new.exists() and new.samefile(place):
        raise UserError(f"{new}: is the checkpoint itself. Name another directory.")
    if new.exists() and not new.is_dir():
        raise UserError(f"{new}: is no directory.")
    new.mkdir(parents=True, exist_ok=True)
    if others := sorted(
        {path.name for path in new.iterdir() if path.name.endswith(_WEIGHTS)} - set(os.listdir(place))
    ):
        raise UserError(
            f"{new}: has {others[0]}, which {place} has not: whoever loads the directory could read weights of another model. "
            "Name an empty directory."
        )
    for path in sorted(place.iterdir()):
        if path.is_file() and not path.name.startswith(_OF_TRAINING):
            shutil.copyfile(path, new / path.name)
    if (place / _TEMPLATES).is_dir():
        shutil.copytree(place / _TEMPLATES, new / _TEMPLATES, dirs_exist_ok=True)
    return write_serving_architecture(new)


def _check_rules(place: Path) -> None:
    """Refuse what was not saved as a whole model with HSA.

    Raises:
        UserError: Saying what to do.
    """
    if not place.is_dir():
        raise UserError(f"{place}: there is no such directory. Give the one of a model that was saved with HSA.")
    if (place / "adapter_config.json").is_file() and not (place / "config.json").is_file():
        raise UserError(
            f"{place}: is an adapter, and no model. Merge it: hsa-factory export FILE.yaml with model_name_or_path, adapter_name_or_path, "
            "export_dir and `export_for: vllm`; or serve it beside its model: --enable-lora --lora-modules NAME=ADAPTER."
        )
    if not (place / CONFIG_NAME).is_file():
        if (place / "config.json").is_file() and isinstance(_read_config(place).get(NOTE_KEY), str):
            raise UserError(
                f"{place}: its config.json says that it was trained with HSA, but the rules are not there: {CONFIG_NAME} is missing. "
                "Copy the file from where the model was trained."
            )
        raise UserError(
            f"{place}: has no {CONFIG_NAME}, so that it was not saved from a model with HSA. `vllm serve` serves it as it is; if "
            "it was trained with HSA, copy the file from where it was trained."
        )
    HSAConfig.from_pretrained(place)


def _read_config(place: Path) -> dict[str, Any]:
    path = place / "config.json"
    if not path.is_file():
        raise UserError(f"{path}: is missing. Give the directory of a saved model.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping.")
    return values
