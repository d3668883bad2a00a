"""What model runner V2 of vLLM, which runs on GPUs, is told and tells: that its interfaces are those we rely on, and ours fit.

Nothing of it can run on a CPU, where vLLM refuses V2; a version that moves one of these places fails here.
"""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from serving_checkpoints import save_checkpoint
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu import attn_utils, input_batch, model_runner
from vllm.v1.worker.gpu.model_states import default, init_model_state, interface, resolve_model_state_cls
from vllm.v1.worker.gpu.sample.logits_processor import loader

from hsa_factory import HSAConfig
from hsa_factory.attention import LayerRules
from hsa_factory.models.cache.tagger import ConstantTagger
from hsa_factory.serving_checkpoint import ARCHITECTURES, PREFIX, VISION_ARCHITECTURES
from hsa_factory.vllm import models, vision_models
from hsa_factory.vllm.at_start import GATE, LISTENER, HSAModelConfig
from hsa_factory.vllm.listener import MissedRequest, Row, rows_of
from hsa_factory.vllm.paged.backend import PagedMetadataBuilder
from hsa_factory.vllm.paged.model_state import HSAModelState, TypeGate
from hsa_factory.vllm.tokens import TokenTypes
from hsa_factory.vllm.types import PromptTypes


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_the_places_in_vllm_that_we_rely_on():
    state = interface.ModelState
    assert parameters(state.__init__) == ["self", "vllm_config", "model", "encoder_cache", "device"]
    assert parameters(state.add_request) == ["self", "req_index", "new_req_data"]
    assert parameters(state.remove_request) == ["self", "req_id"]
    assert parameters(state.prepare_attn)[:2] == ["self", "input_batch"]
    assert parameters(default.DefaultModelState.prepare_attn)[:2] == ["self", "input_batch"]
    fields = set(NewRequestData.__dataclass_fields__)
    assert {"req_id", "prompt_token_ids", "sampling_params", "prefill_token_ids"} <= fields
    fields = set(input_batch.InputBatch.__dataclass_fields__)
    assert {"req_ids", "input_ids", "query_start_loc_np", "seq_lens_cpu_upper_bound"} <= fields
    fields = set(CommonAttentionMetadata.__dataclass_fields__)
    assert {"query_start_loc_cpu", "seq_lens_cpu_upper_bound", "block_table_tensor", "slot_mapping"} <= fields
    assert "seq_lens_cpu_upper_bound" in parameters(attn_utils.build_attn_metadata)
    assert parameters(AttentionMetadataBuilder.build)[1:] == parameters(PagedMetadataBuilder.build)[1:]
    assert "get_model_state_cls" in inspect.getsource(resolve_model_state_cls)
    source = inspect.getsource(model_runner)
    for call in ("self.model_state.add_request(req_index, new_req_data)", "self.model_state.remove_request(req_id)"):
        assert call in source
    assert "self.model_state.prepare_attn(" in source and init_model_state is not None


def test_models_name_their_state():
    for name in ARCHITECTURES:
        model = getattr(vision_models if name in VISION_ARCHITECTURES else models, f"{PREFIX}{name}")
        assert resolve_model_state_cls(None, model) is HSAModelState
    assert issubclass(HSAModelState, interface.ModelState)


def test_the_gate_is_a_processor_of_v2():
    (loaded,) = loader._load_v2_logitsprocs_by_fqcns([GATE])
    assert loaded is TypeGate
    validate = loader.build_custom_logits_processors_params_validator([GATE])
    validate(SamplingParams(extra_args={"hsa_types": "012"}))
    with pytest.raises(VLLMValidationError, match="hsa_type is no field of HSA"):
        validate(SamplingParams(extra_args={"hsa_type": "012"}))
    gate = TypeGate(None, None)
    logits = torch.randn(2, 3)
    assert not gate.add_request(0, SamplingParams()) and gate.apply(logits, None) is logits


RULES = [{"tag": ["think"], "type": "NOISE"}, {"role": "user", "type": "LANDMARK"}]


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny_tokenizer):
    def make(config, **options):
        directory = tmp_path_factory.mktemp("v2")
        save_checkpoint(directory, tiny_tokenizer, config=config)
        return EngineArgs(str(directory), dtype="float32", max_model_len=512, **options).create_engine_config()

    return make


def test_v2_is_for_gpus(start, monkeypatch):
    config = start(HSAConfig())
    monkeypatch.setattr(VllmConfig, "use_v2_model_runner", True)
    with pytest.raises(ValueError, match="model runner V2 without a GPU"):
        HSAModelConfig.verify_and_update_config(config)
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: True)
    for processors, runs_v2 in ((GATE, True), (LISTENER, False)):
        monkeypatch.setattr(VllmConfig, "use_v2_model_runner", runs_v2)
        config.model_config.logits_processors = None
        HSAModelConfig.verify_and_update_config(config)
        assert config.model_config.logits_processors == [processors]


def request_data(name, ids, fields, generated=()):
    return SimpleNamespace(
        req_id=name,
        prompt_token_ids=ids,
        sampling_params=SamplingParams(extra_args=fields),
        prefill_token_ids=[*ids, *generated],
        mm_features=[],
    )


def batch(names, lengths, numbers, ids):
    starts = np.concatenate([[0], np.cumsum(numbers)])
    return SimpleNamespace(
        req_ids=names,
        seq_lens_cpu_upper_bound=torch.tensor(lengths, dtype=torch.int32),
        query_start_loc_np=starts.astype(np.int32),
        input_ids=torch.tensor(ids, dtype=torch.int32),
    )


@pytest.mark.parametrize("rules", [None, RULES])
def test_the_state_follows_the_requests(start, monkeypatch, tiny_tokenizer, rules):
    """Rows go by the batch's order; generated tokens are read where rules need them; a preempted request comes again."""
    config = HSAConfig(rules=rules, generated_type="NOISE", noise_window=5)
    vllm_config = start(config)
    rows = rows_of(vllm_config)
    rows.rules = (LayerRules.of(config),)
    state = HSAModelState(vllm_config, torch.nn.Linear(1, 1), None, torch.device("cpu"))
    monkeypatch.setattr(
        default.DefaultModelState, "prepare_attn", lambda self, input_batch, *rest, **more: (rest, more)
    )
    ids = tiny_tokenizer("<think>go</think> on")["input_ids"]
    state.add_request(5, request_data("a", [1, 2, 3], {"hsa_types": "012"}))
    state.add_request(2, request_data("b", [4, 5], {"hsa_types": "00"}))
    assert state.prepare_attn(batch(["b", "a"], [2, 3], [2, 3], [4, 5, 1, 2, 3]), 7, x=1) == ((7,), {"x": 1})
    assert types_in(rows, 0, 2) == [0, 0] and types_in(rows, 1, 3) == [0, 1, 2]
    for step, token in enumerate(ids, 1):
        state.prepare_attn(batch(["a"], [3 + step], [1], [token]))
        known = types_in(rows, 0, 3 + step)
    assert len(known) == 3 + len(ids)
    with pytest.raises(MissedRequest, match="row 1"):
        rows.get(1, 1)
    state.remove_request("a")
    state.add_request(0, request_data("a", [1, 2, 3], {"hsa_types": "012"}, ids))
    state.prepare_attn(batch(["a", "b"], [3 + len(ids), 3], [3 + len(ids), 1], [1, 2, 3, *ids, 9]))
    assert types_in(rows, 0, 3 + len(ids)) == known and len(types_in(rows, 1, 3)) == 3
    state.prepare_attn(batch(["of a dry run"], [1], [1], [0]))
    with pytest.raises(MissedRequest, match="row 0"):
        rows.get(0, 1)


def types_in(rows, index, length):
    return rows.get(index, length).tokens.types.tolist()


@pytest.fixture
def build(start, rng, monkeypatch):
    """A function that builds the metadata of a forward of two requests, of 20 and 150 tokens, with a row to spare."""
    config = HSAConfig(noise_window=20)
    vllm_config = start(config)
    vllm_config.cache_config.num_gpu_blocks = 40
    rows = rows_of(vllm_config)
    rows.rules = (LayerRules.of(config),)
    monkeypatch.setattr(VllmConfig, "use_v2_model_runner", True)  # of which no logits processor need be there
    builder = PagedMetadataBuilder(
        SimpleNamespace(block_size=16, num_kv_heads=2, dtype=torch.bfloat16), ["x"], vllm_config, torch.device("cpu")
    )
    table = torch.from_numpy(rng.permutation(np.arange(1, 40))[: 3 * 10].reshape(3, 10)).int()

    def make(slots, known=()):
        rows.by_index = {
            index: Row(TokenTypes(PromptTypes(np.array(types, np.uint8)), ConstantTagger(0), rows.rules))
            for index, types in enumerate(known)
        }
        common = CommonAttentionMetadata(
            query_start_loc=torch.tensor([0, 20, 21, 21]),
            query_start_loc_cpu=torch.tensor([0, 20, 21, 21]),
            seq_lens=torch.tensor([20, 150, 0]),
            num_reqs=3,
            num_actual_tokens=21,
            max_query_len=20,
            max_seq_len=150,
            block_table_tensor=table,
            slot_mapping=torch.tensor(slots),
        )
        return builder.build(0, common)

    make.table, make.builder, make.rows = table, builder, rows
    return make


DRY = [-1] * 32
SLOTS = [*range(640 - 21, 640), *[-1] * 11]  # what is beyond the forward's tokens is padding


def test_metadata_of_a_dry_run(build):
    """The builder takes what vLLM says of a forward, V1's and V2's, with more rows in its tensors than there are requests."""
    made = build(DRY)
    assert made.new_slots.tolist() == [-1] * 21 and made.forward.table is build.table
    single, several = made.forward.works
    assert (single.queries, single.blocks.tolist()) == (1, [[20, 1, 149, 0, 1, 10, 0]])
    assert several.queries >= 20 and several.blocks.tolist() == [[0, 20, 0, 0, 0, 2, 10]]
    assert made.forward.numbers.tolist() == [*range(10), 0, 1]
    assert build.builder.get_cudagraph_support(build.builder.vllm_config, None).name == "NEVER"


def test_metadata_of_requests(build):
    """Types of each request's own row; NOISE out of sight is not read."""
    made = build(SLOTS, known=([0] * 20, [0] * 16 + [2] * 134))
    assert made.new_slots.tolist() == SLOTS[:21]
    single, several = made.forward.works
    assert made.forward.numbers.tolist() == [0, 8, 9, 0, 1]
    rows = [work.blocks[0, 3].item() for work in (single, several)]
    assert rows[0] != rows[1] and made.forward.types[rows[0], :150].tolist() == [0] * 16 + [2] * 134


@pytest.mark.parametrize("known", [(), ([0] * 20,), ([0] * 20, [0] * 149)])
def test_requests_nobody_told_of(build, known):
    """None of them, one of two, or one token too few; the same rows are no matter in a dry run."""
    with pytest.raises(MissedRequest, match=f"row {min(len(known), 1)} of vLLM's batch"):
        build(SLOTS, known)
    with pytest.raises(MissedRequest):
        build([*SLOTS[:1], *DRY[1:]], known)  # a single token with a place in the cache is somebody's
    assert len(build(DRY, known).new_slots) == 21
