"""No token is computed with a type that nobody gave: what HSA was not told of is an error, at the start where it can be known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engines import random_request
from serving_checkpoints import save_checkpoint
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from hsa_factory import HSAConfig
from hsa_factory.attention.layer_rules import LayerRules
from hsa_factory.vllm.cpu.backend import CPUMetadataBuilder
from hsa_factory.vllm.kv_cache import HSASpec
from hsa_factory.vllm.listener import MissedRequest, TypeListener, rows_of
from hsa_factory.vllm.types import fields_of


RULES = (LayerRules.of(HSAConfig()),)
SPEC = HSASpec(block_size=16, num_kv_heads=1, head_size=8, dtype=torch.float32, rules=RULES)


@pytest.fixture(scope="module")
def engine_config(tmp_path_factory, tiny_tokenizer):
    directory = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(directory, tiny_tokenizer, config=HSAConfig())
    return EngineArgs(str(directory), dtype="float32", max_model_len=512, enforce_eager=True).create_engine_config()


@pytest.fixture
def rows(engine_config):
    """The rows of a worker whose model has been made."""
    rows = rows_of(engine_config)
    rows.rules, rows.listener = RULES, None
    rows.by_index.clear()
    return rows


@pytest.fixture
def build(engine_config, rows):
    """Return a function that tells a listener, or two, of a batch and builds the metadata of a forward."""

    def make(*updates, lengths=(5,), slot=0, listeners=1):
        told = [TypeListener(engine_config, torch.device("cpu"), False) for _ in range(listeners)]
        builder = CPUMetadataBuilder(SPEC, [], engine_config, torch.device("cpu"))
        for update in updates:
            for listener in told:
                listener.update_state(update)
        number = len(lengths)
        common = SimpleNamespace(
            query_start_loc_cpu=torch.arange(number + 1),
            seq_lens=torch.tensor(lengths),
            block_table_tensor=torch.arange(number * 4, dtype=torch.int32).view(number, 4),
            slot_mapping=torch.full((number,), slot),
            num_actual_tokens=number,
            num_reqs=number,
        )
        return builder.build(0, common)

    return make


def added(*requests):
    """Return what vLLM says of new requests: (row, types, tokens that were generated)."""
    rows = [
        (row, SamplingParams(extra_args=fields_of(types)), [1] * len(types), output) for row, types, output in requests
    ]
    return BatchUpdate(batch_size=len(rows), removed=[], added=rows, moved=[])


def moved(source, target, how=MoveDirectionality.UNIDIRECTIONAL, removed=()):
    return BatchUpdate(batch_size=1, removed=list(removed), added=[], moved=[(source, target, how)])


def types_of(metadata):
    """Return the types of the keys that a forward's single queries see, by request."""
    pieces = sorted(metadata.forward.pieces, key=lambda piece: piece.place)
    return [piece.types[: piece.stop].tolist() for piece in pieces]


def test_a_request_nobody_told_of(build):
    with pytest.raises(MissedRequest, match="row 0 of vLLM's batch has 5 tokens, but the types of 0 are known"):
        build()
    with pytest.raises(MissedRequest, match="row 1 .* has 2 tokens"):
        build(added((0, [0, 0, 0, 0], [7])), lengths=(5, 2))
    with pytest.raises(
        MissedRequest, match="row 0 .* has 6 tokens, but the types of 5 are known"
    ):  # another one's row
        build(added((0, [0, 0, 0, 0], [7])), lengths=(6,))
    with pytest.raises(MissedRequest, match="row 0"):  # it has gone elsewhere
        build(added((0, [0, 0, 0, 0], [7])), moved(0, 1), lengths=(5,))


def test_decoding_batches_need_no_news(build):
    update = added((0, [0, 1, 2, 1], [7]), (1, [2, 2], [3]))
    assert types_of(build(update, None, None, lengths=(5, 3))) == [[0, 1, 2, 1, 0], [2, 2, 0]]


@pytest.mark.parametrize("listeners", [1, 2])
def test_moves(build, listeners):
    """Two listeners come of a name given twice."""
    batch = added((0, [0, 1, 2, 1], [7]), (1, [2, 2], [3]))
    swapped = build(batch, moved(0, 1, MoveDirectionality.SWAP), lengths=(3, 5), listeners=listeners)
    assert types_of(swapped) == [[2, 2, 0], [0, 1, 2, 1, 0]]
    closed_up = build(batch, moved(1, 0, removed=[0]), lengths=(3,), listeners=listeners)
    assert types_of(closed_up) == [[2, 2, 0]]


def test_a_dry_run_is_known_by_its_places(build, rows):
    assert build(lengths=(5, 5), slot=-1).forward is None
    rows.by_index.clear()
    assert build(added((0, [0, 1], [])), lengths=(1, 1, 1), slot=-1).forward is None  # beside requests that wait


def test_known_at_the_start(engine_config, rows, monkeypatch):
    make = lambda: CPUMetadataBuilder(SPEC, [], engine_config, torch.device("cpu"))
    with pytest.raises(ValueError, match="is not among the engine's"):
        make()
    TypeListener(engine_config, torch.device("cpu"), False)
    make()
    rows.rules = ()
    with pytest.raises(ValueError, match="have the rules"):
        make()
    monkeypatch.setattr(engine_config.scheduler_config, "async_scheduling", True)
    with pytest.raises(ValueError, match="async_scheduling"):
        TypeListener(engine_config, torch.device("cpu"), False)


def test_in_an_engine(serve, rng, monkeypatch):
    served = serve(max_num_seqs=3)
    processors = served.llm.llm_engine.model_executor.driver_worker.model_runner.input_batch.logitsprocs.all
    (listener,) = [one for one in processors if isinstance(one, TypeListener)]
    requests = [random_request(rng, length) for length in (70, 20)]
    assert served.ask(requests, 3) == served.expected(requests, 3)
    with monkeypatch.context() as patch, pytest.raises(MissedRequest, match="row 0"):
        patch.setattr(listener, "update_state", lambda update: None)
        rows_of(served.llm.llm_engine.vllm_config).by_index.clear()
        served.ask(requests, 3)
    assert np.size(served.scheduler.running)  # what was refused was not answered
