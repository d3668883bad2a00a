"""Gauges of HSA in ``/metrics``: blocks of the KV cache held, given back, and what the requests would hold without HSA."""

from typing import Any

from prometheus_client import REGISTRY, Gauge
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import SchedulerStats

from ..counts import BlockCounts, take_counts


_GAUGES = {
    "held": ("hsa_factory:kv_blocks_held", "Blocks of the KV cache that running requests hold."),
    "plain": ("hsa_factory:kv_blocks_without_hsa", "Blocks that the same requests would hold without HSA."),
    "freed": ("hsa_factory:kv_blocks_freed", "Blocks given back since the start, as nobody could see them any more."),
}
_SHARE = ("hsa_factory:kv_share_of_plain", "Blocks held, as a share of those without HSA; 1 where no request runs.")


class BlockGauges(StatLoggerBase):
    """Shows the counts of all engines together; it stands before vLLM's own loggers, to which they are nothing."""

    def __init__(self, vllm_config: Any = None, engine_index: int = 0) -> None:
        self._counts: dict[int, BlockCounts] = {}
        self._gauges = {name: _gauge(*described) for name, described in _GAUGES.items()}
        self._share = _gauge(*_SHARE)
        self._show()

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Take over what an engine says."""
        counts = None if scheduler_stats is None else take_counts(scheduler_stats.num_kv_fetch_reqs_by_stage)
        if counts is not None:
            self._counts[engine_idx] = counts
            self._show()

    def _show(self) -> None:
        total = {name: sum(getattr(counts, name) for counts in self._counts.values()) for name in self._gauges}
        for name, gauge in self._gauges.items():
            gauge.set(total[name])
        self._share.set(total["held"] / total["plain"] if total["plain"] else 1.0)

    def log_engine_initialized(self) -> None:
        """Say nothing: the line at the start does."""


def _gauge(name: str, text: str) -> Gauge:
    """Return the gauge of a name; a process that starts a second engine has it already."""
    known = getattr(REGISTRY, "_names_to_collectors", {}).get(name)
    return known if isinstance(known, Gauge) else Gauge(name, text, multiprocess_mode="mostrecent")
