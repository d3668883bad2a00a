"""How many blocks of the KV cache HSA requests hold and have given back: for gauges, logs and tests."""

from dataclasses import dataclass, fields


@dataclass
class BlockCounts:
    """Blocks of a KV cache, as its manager counts them (`HSAManager.counts`; from the scheduler `HSAScheduler.counts`).

    Attributes:
        held: Blocks that the running requests hold now; one that two of them share counts twice.
        plain: Blocks that the same requests would hold now without HSA.
        freed: Blocks given back since the start because nobody could see them any more.
    """

    held: int = 0
    plain: int = 0
    freed: int = 0


_PREFIX = "hsa:"
_NAMES = tuple(field.name for field in fields(BlockCounts))


def put_counts(stages: dict[str, int], counts: BlockCounts) -> None:
    """Let a scheduler's statistics carry counts to the process that shows them.

    Args:
        stages: The one field of them that takes any key (`num_kv_fetch_reqs_by_stage`); vLLM reads its own keys only.
        counts: The counts.
    """
    stages.update({f"{_PREFIX}{name}": getattr(counts, name) for name in _NAMES})


def take_counts(stages: dict[str, int]) -> BlockCounts | None:
    """Take the counts out again; None: there are none."""
    found = [stages.pop(f"{_PREFIX}{name}", None) for name in _NAMES]
    return None if None in found else BlockCounts(*(value or 0 for value in found))
