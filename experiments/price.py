"""The other half of the question: what attention costs by length, from the tables of ``benchmarks``."""

import csv
from pathlib import Path

from .table import Table


RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
LENGTHS = (1024, 4096, 16384)
SHARE = "0.05"


def price_table() -> Table:
    """Return the time of causal attention and of HSA, forward and backward, as ``benchmarks`` has measured them."""
    rows: list[list[object]] = []
    with (RESULTS / "attention.csv").open(encoding="utf-8", newline="") as file:
        found = [row for row in csv.DictReader(file) if (row["memory_share"], row["layout"]) == (SHARE, "scattered")]
    for length in LENGTHS:
        for row in found:
            if int(row["tokens"]) == length and row["method"] == "blockwise":
                seconds = [f"{1000 * float(row[name]):.1f}" for name in ("causal_seconds", "seconds")]
                rows.append([length, *seconds, row["speed_up"], row["threads"], row["clock"], row["machine"]])
    columns = ("tokens", "causal, ms", "HSA, ms", "times as fast", "threads", "clock", "machine")
    return Table("price", "Attention, forward and backward; 5 % of the tokens are remembered", columns, rows)
