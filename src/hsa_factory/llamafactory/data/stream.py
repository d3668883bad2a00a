"""A stream is looked at before training: once for all processes, by the first, and no further than the accounts need."""

import json
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import torch.distributed as dist

from .accounts import ACCOUNT_COLUMN, is_account_alone, without_account


STREAM_PREVIEW = 1000  # rows of a stream that are looked at before training
PREVIEW_TOKENS = 1_000_000  # tokens after which no further rows are made for it
PREVIEW_BATCH = 16  # samples that are made at once for it
NOTE = (
    f"Streaming: these counts cover at most the first {STREAM_PREVIEW:,} rows and about {PREVIEW_TOKENS:,} tokens of each "
    "stream."
)


_numbers = count()  # of the previews; every process makes the same ones in the same order


def preview(make: Callable[[], Iterable[dict[str, Any]]]) -> list[str]:
    """Return the accounts of the start of a stream, the same in all processes.

    Only the first process makes rows. The others wait for what it has counted: in the store by which the processes have found each
    other, since not all of them come here at the same time and a collective operation would wait for ever.

    Args:
        make: Returns rows with accounts; called in the first process.

    Raises:
        RuntimeError: In the other processes, if the first cannot make them.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return _count(make())
    store, key = dist.distributed_c10d._get_default_store(), f"hsa_factory/preview/{next(_numbers)}"
    if dist.get_rank() == 0:
        try:
            counted = _count(make())
        except Exception as error:
            store.set(key, json.dumps({"error": f"{type(error).__name__}: {error}"}))
            raise
        store.set(key, json.dumps(counted))
        return counted
    found = json.loads(store.get(key))
    if isinstance(found, dict):
        raise RuntimeError(f"The first process could not make the rows of a stream: {found['error']}")
    return list(found)


def without_accounts(stream: Any) -> Any:
    """Return the rows of a stream that are samples, without the accounts."""
    return stream.filter(_is_sample).map(without_account, remove_columns=[ACCOUNT_COLUMN])


def _count(stream: Iterable[dict[str, Any]]) -> list[str]:
    counted: list[str] = []
    rows = tokens = 0
    for row in stream:
        serialized = row.get(ACCOUNT_COLUMN)
        if serialized is not None:  # a batch begins
            if rows >= STREAM_PREVIEW or tokens >= PREVIEW_TOKENS:
                break
            counted.append(serialized)
            tokens += sum(account["total_tokens"] for account in json.loads(serialized).values())
        rows += not is_account_alone(serialized)
    return counted


def _is_sample(row: dict[str, Any]) -> bool:
    return not is_account_alone(row.get(ACCOUNT_COLUMN))
