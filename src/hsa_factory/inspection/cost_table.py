"""What rules cost on a data set, by length: as a table or as plain values."""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from rich.table import Table

from ..feedback import REPLIES
from .attention_time import AttentionTime
from .inspected_sample import InspectedSample
from .sample_cost import SampleCost, Tokens


_UNITS = ("B", "kB", "MB", "GB", "TB")


def documents_of(sample: InspectedSample, with_turns: bool) -> Iterator[Tokens]:
    """Yield each sample of a row by itself, without padding; with turn numbers only where they are needed."""
    documents = np.asarray(sample.documents)
    kinds = np.asarray(sample.semantic_ids, np.int8)
    turns = np.asarray(sample.turn_ids, np.int32) if with_turns else None
    replies = np.zeros(len(documents), np.bool_)
    for turn in sample.turns:
        replies[turn.start : turn.stop] = turn.role in REPLIES
    for number in np.unique(documents[documents != 0]):
        own = documents == number
        yield Tokens(kinds[own], None if turns is None else turns[own], replies[own])


def cost_values(costs: Sequence[SampleCost], clock: AttentionTime) -> dict[str, Any]:
    """Return the costs of samples, by length and of all, as plain values; means are of a sample.

    Args:
        costs: Of each sample, one at least.
        clock: This machine's.
    """
    groups: dict[int, list[SampleCost]] = {}
    for cost in costs:
        groups.setdefault(max(cost.length - 1, 0).bit_length(), []).append(cost)
    lengths = [
        {"longer_than": 2 ** (bits - 1) if bits else 0, "up_to": 2**bits, **_means(groups[bits], clock)}
        for bits in sorted(groups)
    ]
    return {
        "machine": clock.machine,
        "threads": clock.threads,
        "backend": clock.fast,
        "lengths": lengths,
        "all": _means(costs, clock),
    }


def _means(costs: Sequence[SampleCost], clock: AttentionTime) -> dict[str, Any]:
    return {
        "samples": len(costs),
        "tokens": round(fmean(cost.length for cost in costs)),
        "pairs_seen": sum(cost.pairs for cost in costs) / sum(cost.plain_pairs for cost in costs),
        "keys_end": round(fmean(cost.held_end for cost in costs)),
        "keys_peak": round(fmean(cost.held_peak for cost in costs)),
        "plain_keys": round(fmean(cost.plain_held for cost in costs)),
        "cache_end_bytes": round(fmean(cost.cache_end for cost in costs)),
        "cache_peak_bytes": round(fmean(cost.cache_peak for cost in costs)),
        "plain_cache_bytes": round(fmean(cost.plain_cache for cost in costs)),
        "attention_seconds": fmean(map(clock.with_hsa, costs)),
        "plain_attention_seconds": fmean(map(clock.plain, costs)),
    }


def cost_table(values: dict[str, Any]) -> Table:
    """Lay out what `cost_values` returned, one length a row."""
    table = Table(title="A sample with HSA, and without (plain)", title_justify="left")
    headings = ("length", "samples", "pairs seen", "keys at the end", "at the peak", "plain", "cache at the end")
    for heading in (*headings, "at the peak", "plain", "attention", "plain", "speed-up"):
        table.add_column(heading, justify="right")
    for row in values["lengths"]:
        table.add_row(f"{row['longer_than'] + 1:,}–{row['up_to']:,}", *_cells(row))
    if len(values["lengths"]) > 1:
        table.add_section()
        table.add_row("all", *_cells(values["all"]))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    plain = max(row["plain_keys"], 1)
    return [
        f"{row['samples']:,}",
        f"{row['pairs_seen']:.1%}",
        *(f"{row[name]:,} ({row[name] / plain:.0%})" for name in ("keys_end", "keys_peak")),
        f"{row['plain_keys']:,}",
        *(_bytes(row[name]) for name in ("cache_end_bytes", "cache_peak_bytes", "plain_cache_bytes")),
        *(_seconds(row[name]) for name in ("attention_seconds", "plain_attention_seconds")),
        f"{row['plain_attention_seconds'] / row['attention_seconds']:.1f}×" if row["attention_seconds"] else "",
    ]


def _bytes(number: float) -> str:
    unit = 0
    while number >= 1000 and unit + 1 < len(_UNITS):
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {_UNITS[unit]}"


def _seconds(number: float) -> str:
    return f"{number:.3g} s" if number >= 1 else f"{1000 * number:.3g} ms"
