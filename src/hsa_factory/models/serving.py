"""Checkpoints that say in their architecture that they have HSA: an engine without HSA's plugin refuses them."""

import json
from pathlib import Path

from ..config import CONFIG_NAME
from ..whole_files import write_whole


PREFIX = "HSA"
ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
)
"""transformers' architectures that HSA's plugin serves, each under its name with `PREFIX` before it."""


def write_serving_architecture(directory: str | Path) -> str:
    """Let a saved checkpoint's config.json name the architecture with HSA, so that it is served with HSA or not at all.

    Args:
        directory: A checkpoint with ``config.json`` and ``hsa_config.json``. transformers loads it as before.

    Returns:
        The new name. A checkpoint that has one already is left alone.

    Raises:
        ValueError: If it was saved without HSA, or its architecture cannot be served.
    """
    directory = Path(directory)
    if not (directory / CONFIG_NAME).is_file():
        raise ValueError(f"{directory} has no {CONFIG_NAME}: it was not saved from a model with HSA.")
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    name = (config.get("architectures") or [None])[0]
    if isinstance(name, str) and name.startswith(PREFIX) and name[len(PREFIX) :] in ARCHITECTURES:
        return name
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{path}: the architecture {name} cannot be served with HSA. Possible are {', '.join(ARCHITECTURES)}."
        )
    config["architectures"] = [f"{PREFIX}{name}"]
    write_whole(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    return f"{PREFIX}{name}"
