"""How many blocks of the KV cache HSA requests hold and have given back: for gauges, logs and tests."""

from dataclasses import dataclass


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
