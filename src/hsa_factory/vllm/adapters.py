"""LoRA adapters on a model with HSA: served with the model's rules, so that one with rules of its own is refused."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request

from ..config import CONFIG_NAME, HSAConfig
from .types import InvalidTypes


def check_adapter(adapter: LoRARequest | None, config: HSAConfig | None) -> None:
    """Refuse an adapter that was trained with other rules than those it would be served with.

    One without rules of its own is served with the model's.

    Args:
        adapter: As a request names it; None: none.
        config: The rules of the model that is served; None: it has no HSA.

    Raises:
        InvalidTypes: It names the adapter, and what differs.
    """
    own = None if adapter is None else _rules_of(adapter.lora_path)
    if adapter is None or own is None or (config is not None and _rules(own) == _rules(config)):
        return
    if config is None:
        raise InvalidTypes(
            f"LoRA adapter {adapter.lora_name}: has an {CONFIG_NAME}, and this server's model has no HSA. Merge it: hsa-factory export."
        )
    here, there = _rules(config), _rules(own)
    differing = ", ".join(
        f"{name} = {there[name]!r}, not {here[name]!r}" for name in here if here[name] != there[name]
    )
    raise InvalidTypes(
        f"LoRA adapter {adapter.lora_name}: was trained with other rules than the model that is served ({differing:.300}). Merge it "
        f"into a model of its own (hsa-factory export), or give both the same {CONFIG_NAME}."
    )


def hold_back(running: Sequence[Request], waiting: RequestQueue) -> list[Request]:
    """Take those out of a queue that must not run yet, and return them: vLLM's LoRA for CPUs is wrong for mixed batches.

    There, a request without an adapter is computed with another one's, if the two are in one batch. None is held for ever:
    whoever comes after one that waits for its turn waits, too.

    Args:
        running: What runs.
        waiting: What waits; changed.
    """
    order = list(waiting)
    if not order:
        return []
    kind = (running or order)[0].lora_request is None
    first = next((place for place, request in enumerate(order) if (request.lora_request is None) != kind), len(order))
    held = order[first:]
    waiting.remove_requests(held)
    return held


def _rules(config: HSAConfig) -> dict[str, object]:
    """Return what decides the answers: all but the way it is computed."""
    return {name: value for name, value in config.to_dict().items() if name != "backend"}


def _rules_of(adapter: str) -> HSAConfig | None:
    """Return an adapter's own rules, from its directory or the Hugging Face Hub; None: it has none."""
    directory = Path(adapter).expanduser()
    path = directory / CONFIG_NAME if directory.is_dir() else _path_on_hub(adapter)
    try:
        return None if path is None else _read(str(path), path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None


@lru_cache(maxsize=256)
def _read(path: str, changed: int) -> HSAConfig:
    """Return the rules in a file, which is read again when it was changed: an adapter may be trained anew in its place."""
    return HSAConfig.from_pretrained(Path(path).parent)


@lru_cache(maxsize=256)
def _path_on_hub(adapter: str) -> Path | None:
    try:
        return Path(hf_hub_download(adapter, CONFIG_NAME))
    except (EntryNotFoundError, OSError, ValueError):  # it has none; or there is no such adapter, as vLLM will say
        return None
