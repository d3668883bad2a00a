"""`export_for: vllm`: LLaMA-Factory's export, as a checkpoint that vLLM serves with HSA or not at all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llamafactory.extras import logging

from ..config import HSAConfig
from ..serving_checkpoint import check_engine, family_architecture, write_serving_architecture
from ..training_file import SAVED
from .model.checkpoint import has_saved_rules, starting_points


logger = logging.get_logger(__name__)

EXPORT_FOR = "export_for"
"""Key beside LLaMA-Factory's `export_dir`: the engine that the model is exported for."""


@contextmanager
def exported_for(engine: Any, args: Mapping[str, Any], hsa: HSAConfig | bool | str | None) -> Iterator[None]:
    """Make a serving checkpoint of what is exported in a `with` block.

    Args:
        engine: Value of `export_for`; None: it is not given, and nothing happens.
        args: LLaMA-Factory's arguments.
        hsa: The rules asked for.

    Raises:
        ValueError: If the value is not allowed, goes together neither with the other arguments nor with the model, or is for other
            families of models.
    """
    if engine is None:
        yield
        return
    check_engine(engine)
    if not args.get("export_dir"):
        raise ValueError("export_for: vllm needs `export_dir`, the directory to write.")
    if args.get("export_hub_model_id"):
        raise ValueError(
            "export_for: vllm writes a directory. Leave export_hub_model_id out, and upload it afterwards."
        )
    if args.get("stage") == "rm":
        raise ValueError("export_for: vllm is for models that write, not for reward models (stage: rm).")
    if not hsa or (hsa == SAVED and not has_saved_rules(starting_points(args))):
        raise ValueError(
            "export_for: vllm is for models with HSA, and this one has none: vLLM serves it as it is. Leave the key out, or "
            "give the rules in an hsa block."
        )
    start = Path(str(args.get("model_name_or_path")))
    if (start / "config.json").is_file():
        family_architecture(start)  # said before a model is merged
    yield
    name = write_serving_architecture(args["export_dir"])
    logger.info_rank0(f"{args['export_dir']} is a checkpoint for vLLM, of the architecture {name}.")
