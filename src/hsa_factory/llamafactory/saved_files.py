"""Files of earlier runs that a run reads: those that are cut off are named before anything is loaded."""

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llamafactory.extras import logging
from safetensors import SafetensorError, safe_open

from .model.checkpoint import resumed_checkpoint


logger = logging.get_logger(__name__)

_STATE = "trainer_state.json"  # the last file that a checkpoint gets
_JSON = ("config.json", "adapter_config.json", "hsa_config.json", "tokenizer.json", "tokenizer_config.json", _STATE)
_PICKLED = (".bin", ".pt", ".pth")
_LFS = b"version https://git-lfs"


def check_models(directories: Iterable[str]) -> None:
    """Refuse models and adapters of which a file is not whole; what is not there is left to whoever loads it.

    Args:
        directories: Local ones, and names on a hub, which are passed over.

    Raises:
        ValueError: Naming the file, what is wrong with it and what to do.
    """
    for directory in directories:
        for problem in broken_files(Path(directory)):
            raise ValueError(f"{problem}. Copy or download it anew, or train from another checkpoint.")


def lost_tokens(directory: str | Path, tokenizer: Any) -> list[str]:
    """Return the tokens that an adapter was trained with and this run's tokenizer lacks, in the order of their ids.

    Args:
        directory: The adapter's; a name on a hub, or one without a tokenizer, has none.
        tokenizer: The run's, complete.
    """
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        return []
    added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens", [])
    known = tokenizer.get_vocab()
    return [token["content"] for token in added if token["content"] not in known]


def with_whole_checkpoint(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments that go on from the last checkpoint that is whole, if a run is to go on from one that is not.

    Args:
        args: LLaMA-Factory's arguments, as they stand in a file.

    Raises:
        ValueError: If there is no such checkpoint; the message names the file that is broken.
    """
    resumed = resumed_checkpoint(args)
    problem = _why_not_whole(Path(resumed)) if resumed is not None else None
    if resumed is None or problem is None:
        return dict(args)

    for other in _earlier_checkpoints(Path(resumed)):
        if _why_not_whole(other) is None:
            logger.warning_rank0(f"{problem}. The run goes on from {other}, the last checkpoint that is whole.")
            return {**args, "resume_from_checkpoint": str(other)}
    if not any(broken_files(Path(resumed))):
        return dict(args)  # weights without the trainer's state: the trainer begins with them
    raise ValueError(
        f"{problem}, and no earlier checkpoint beside it is whole. Start a new run with `overwrite_output_dir: true` or "
        "another `output_dir`."
    )


def broken_files(directory: Path) -> Iterator[str]:
    """Yield which files of a saved model, adapter or checkpoint are not whole, and why.

    Args:
        directory: Its directory; one that is not there has none.
    """
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if not path.is_file():
            continue
        if path.suffix == ".safetensors":
            reason = _why_no_tensors(path)
        elif path.suffix in _PICKLED:
            reason = _why_no_pickle(path)
        elif path.name in _JSON or path.name.endswith(".index.json"):
            reason = _why_no_json(path)
        else:
            continue
        if reason is not None:
            yield f"{path} is not whole: {reason}"


def _why_not_whole(directory: Path) -> str | None:
    """Return why a checkpoint cannot be gone on from; None if it can, or is not there, as the trainer will say."""
    problem = next(broken_files(directory), None)
    if problem is None and directory.is_dir() and not (directory / _STATE).is_file():
        problem = f"The checkpoint {directory} is not whole: it has no {_STATE}, which is written last"
    return problem


def _earlier_checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints beside one that were written before it, the last one first."""
    steps = {path: _step(path) for path in directory.parent.glob("checkpoint-*") if path.is_dir()}
    earlier = {path: step for path, step in steps.items() if 0 <= step < _step(directory)}
    return sorted(earlier, key=earlier.__getitem__, reverse=True)


def _step(directory: Path) -> int:
    found = re.fullmatch(r"checkpoint-(\d+)", directory.name)
    return int(found[1]) if found else -1


def _why_no_tensors(path: Path) -> str | None:
    try:
        with safe_open(path, framework="pt"):
            return None
    except (SafetensorError, OSError) as error:
        return _pointer(path) or str(error)


def _why_no_pickle(path: Path) -> str | None:
    """Say why a file is none of `torch.save`, a zip archive whose list of contents stands at the end, if it is none."""
    with open(path, "rb") as file:
        start = file.read(2)
    if not start:
        return "it is empty"
    return _pointer(path) or ("its end is missing" if start == b"PK" and not zipfile.is_zipfile(path) else None)


def _why_no_json(path: Path) -> str | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return _pointer(path) or str(error)
    shards = values.get("weight_map", {}).values() if path.name.endswith(".index.json") else ()
    missing = sorted(shard for shard in set(shards) if not (path.parent / shard).is_file())
    return f"{missing[0]}, which it names, is missing" if missing else None


def _pointer(path: Path) -> str | None:
    with open(path, "rb") as file:
        is_pointer = file.read(len(_LFS)) == _LFS
    return "it is a Git LFS pointer, and the file itself was not downloaded (git lfs pull)" if is_pointer else None
