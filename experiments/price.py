"""The other half of the question: what HSA costs and saves by length, from the tables of ``benchmarks``."""

from collections.abc import Iterator
from pathlib import Path

from .table import Row, Table, read_rows


RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
LENGTHS = (1024, 4096, 16384)
SHARE = "0.05"
MODEL, THREADS = "100M", "2"


def price_table() -> Table:
    """Return time and memory without HSA and with it, as ``benchmarks`` has measured them.

    Attention at `LENGTHS`; training steps and decoding at the lengths at which they were measured.
    """
    columns = ("what", "tokens", "without HSA", "with HSA", "without / with", "threads", "clock", "machine")
    rows = sorted([*_attention(), *_steps(), *_decoding()], key=lambda row: (str(row[0]), int(str(row[1]))))
    return Table("price", "Price by length; 5 % of the tokens are remembered", columns, rows)


def _attention() -> Iterator[list[object]]:
    for row in read_rows(RESULTS / "attention.csv"):
        asked = (row["memory_share"], row["layout"], row["method"]) == (SHARE, "scattered", "blockwise")
        if asked and not row["noise_turns"] and int(row["tokens"]) in LENGTHS:
            seconds = (_ms(row["causal_seconds"]), _ms(row["seconds"]))
            yield _row("attention, forward and backward, ms", row, *seconds, row["speed_up"])


def _steps() -> Iterator[list[object]]:
    found = read_rows(RESULTS / "sft_step.csv")
    for plain, hsa in _pairs([row for row in found if row["variant"] in ("plain", "hsa")]):
        yield _row("training step of a tiny model, ms", hsa, _ms(plain["seconds"]), _ms(hsa["seconds"]))


def _decoding() -> Iterator[list[object]]:
    found = [
        row for row in read_rows(RESULTS / "decode.csv") if (row["model"], row["measured"]) == (MODEL, "decoding")
    ]
    found = [row for row in found if row["memory_share"] == SHARE and row["variant"] in ("plain", "hsa")]
    for plain, hsa in _pairs([row for row in found if row["threads"] == THREADS]):
        yield _row("cache of a 100M model, MiB", hsa, _mib(plain), _mib(hsa))
        yield _row("decoding a token with a 100M model, ms", hsa, _token_ms(plain), _token_ms(hsa))


def _pairs(rows: list[Row]) -> Iterator[tuple[Row, Row]]:
    """Yield each row without HSA with the one with it, of the same length, threads and machine."""
    known = {(row["tokens"], row["threads"], row["machine"]): row for row in rows if row["variant"] == "plain"}
    for row in rows:
        plain = known.get((row["tokens"], row["threads"], row["machine"]))
        if row["variant"] == "hsa" and plain is not None:
            yield plain, row


def _ms(seconds: str) -> float:
    return 1000 * float(seconds)


def _mib(row: Row) -> float:
    return int(row["cache_bytes"]) / 2**20


def _token_ms(row: Row) -> float:
    return 1000 / float(row["tokens_per_second"])


def _row(what: str, row: Row, without: float, with_it: float, ratio: str | None = None) -> list[object]:
    """Return a row; a ratio that was measured round by round says more than that of two times."""
    clock = row.get("clock") or "wall"
    numbers = [f"{without:.1f}", f"{with_it:.1f}", ratio or f"{without / with_it:.2f}"]
    return [what, int(row["tokens"]), *numbers, row["threads"], clock, row["machine"]]
