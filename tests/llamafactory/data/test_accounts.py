"""Accounts on their way through map and cache, and what is looked at of a stream."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch.distributed as dist
from datasets import Dataset

import hsa_factory.llamafactory.data.stream as stream
from hsa_factory.llamafactory.data.accounts import account_column, take_accounts


def batches(*sizes):
    """Return a data set of batches, row k of all samples holding k; a batch of none has a row for its account alone."""
    rows, accounts, number = [], [], 0
    for size in sizes:
        rows += [*range(number, number + size)] if size else [-1]
        number += size
        accounts += account_column(json.dumps({"n": size}), size)
    return Dataset.from_dict({"row": rows, "hsa_account": accounts})


@pytest.mark.parametrize("sizes", [(3,), (3, 2, 4), (0, 2), (2, 0), (2, 0, 0, 3, 0), (0,), (0, 0)])
def test_only_samples_are_left(sizes):
    rows, accounts = take_accounts(batches(*sizes))
    assert [json.loads(one)["n"] for one in accounts] == list(sizes)
    assert rows.column_names == ["row"] and rows["row"][:] == list(range(sum(sizes)))
    assert rows._indices is None


def test_three_million_rows_cost_nothing(tmp_path):
    """Neither a list of all rows nor a mapping: what is held in memory is a small part of a byte a row."""
    column = account_column(json.dumps({"n": 1000}), 1000)
    table = pa.table({"row": np.arange(1000, dtype=np.int32), "hsa_account": pa.array(column, pa.string())})
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        for _ in range(3000):
            writer.write_table(table)
    dataset = Dataset.from_file(str(tmp_path / "rows.arrow"))
    before = pa.total_allocated_bytes()
    rows, accounts = take_accounts(dataset)
    assert len(rows) == 3_000_000 and len(accounts) == 3000 and rows._indices is None
    assert pa.total_allocated_bytes() - before < 1_000_000


def rows_of(samples, tokens, batch):
    """Yield rows with accounts; the number of rows made so far is in `made`."""
    for first in range(0, samples, batch):
        size = min(batch, samples - first)
        account = json.dumps({"data": {"total_tokens": size * tokens}})
        for serialized in account_column(account, size):
            rows_of.made += 1
            yield {"hsa_account": serialized}


@pytest.mark.parametrize("tokens, most", [(10, 1000), (8000, 160)])
def test_a_preview_ends_with_rows_or_tokens(tokens, most):
    rows_of.made = 0
    counted = stream.preview(lambda: rows_of(5000, tokens, stream.PREVIEW_BATCH))
    assert most * 0.75 < rows_of.made <= most + stream.PREVIEW_BATCH
    assert len(counted) == rows_of.made // stream.PREVIEW_BATCH


@pytest.fixture
def as_rank(monkeypatch):
    """Make this the first or the second of two processes, before its first preview; `kept` is what lies in their store."""
    kept = {}

    class Store:
        set, get = staticmethod(kept.__setitem__), staticmethod(kept.__getitem__)

    for name, value in {"is_initialized": True, "get_world_size": 2}.items():
        monkeypatch.setattr(dist, name, lambda value=value: value)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: Store)

    def become(rank):
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        monkeypatch.setattr(stream, "_numbers", iter(range(2)))

    become.kept = kept
    return become


def test_the_first_process_counts_for_all(as_rank):
    answers = {}
    for rank in (0, 1):
        as_rank(rank)
        make = (lambda: rows_of(20, 5, 10)) if rank == 0 else lambda: pytest.fail("made again")
        rows_of.made = 0
        answers[rank] = [stream.preview(make), stream.preview(make)]
    assert answers[0] == answers[1] and len(as_rank.kept) == 2


def test_a_first_process_that_fails_lets_no_other_wait(as_rank):
    def make():
        raise ValueError("line 3 is broken")

    for rank, kind in ((0, ValueError), (1, RuntimeError)):
        as_rank(rank)
        with pytest.raises(kind, match="line 3 is broken"):
            stream.preview(make)
