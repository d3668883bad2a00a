"""The entry to the attention: what it refuses, which backend it chooses, and what it shares between layers."""

import logging
from types import SimpleNamespace

import pytest
import torch

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules, api, hsa_attention, run_attention
from hsa_factory.attention.api import available_backends
from hsa_factory.config import BACKENDS


def tensors(heads=4, key_heads=2, length=6, size=8, **options):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, count, length, size, generator=generator).to(**options)
        for count in (heads, key_heads, key_heads)
    ]


DEFAULTS = LayerRules.of(HSAConfig())
TYPES = torch.tensor([[0, 1, 2, 2, 1, 0], [2, 2, 2, 0, 0, 1]])


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"query": torch.zeros(4, 6, 8)}, r"query must have shape \(batch, heads, length.*got \(4, 6, 8\)"),
            ({"value": torch.zeros(2, 6, 8)}, "value must have shape"),
            ({"key": torch.zeros(2, 2, 6, 8).double()}, "key is torch.float64 on cpu, but query is torch.float32"),
            ({"value": torch.zeros(2, 2, 6, 8).half()}, "value is torch.float16"),
            ({"key": torch.zeros(2, 2, 6, 8, device="meta")}, "key is torch.float32 on meta, but query .* on cpu"),
            ({"value": torch.zeros(2, 1, 6, 8)}, "value .* differ in batch, heads or length"),
            ({"value": torch.zeros(2, 2, 5, 8)}, "value .* differ in batch, heads or length"),
            ({"key": torch.zeros(2, 2, 6, 4)}, "query has head size 8, key has 4"),
            ({"query": torch.zeros(2, 3, 6, 8)}, "3 query heads are not a multiple of 2 key/value heads"),
            ({"semantic_ids": TYPES[:, :5]}, "query_length 6 does not fit 5 semantic_ids"),
            ({"semantic_ids": TYPES[:1]}, r"\(1, 6, 6\), but the attention got \(2, 6, 6\)"),
            ({"semantic_ids": torch.zeros(2, 7).long()}, r"\(2, 6, 7\), but the attention got \(2, 6, 6\)"),
            ({"semantic_ids": TYPES + 1}, "semantic_ids holds 3"),
            ({"semantic_ids": TYPES.float()}, "semantic_ids must hold whole numbers"),
            ({"semantic_ids": TYPES.to("meta").new_zeros(0, 0)}, "query_length 6 does not fit 0"),
            ({"attention_mask": torch.ones(2, 1, 6, 6)}, "4-D attention_mask"),
            ({"document_ids": torch.ones(2, 5).long()}, "document_ids has shape"),
            ({"backend": "fast"}, "Unknown HSA backend 'fast'. Available: auto, reference"),
            ({"backend": "Dense"}, "Unknown HSA backend 'Dense'"),
        ],
    )
    def test_arguments(self, change, message):
        arguments = dict(zip(("query", "key", "value"), tensors())) | {"semantic_ids": TYPES, "config": HSAConfig()}
        hsa_attention(**arguments)
        with pytest.raises(ValueError, match=message):
            hsa_attention(**arguments | change)

    def test_no_key_heads(self):
        query, key, value = tensors(key_heads=0)
        with pytest.raises(ValueError, match="4 query heads are not a multiple of 0"):
            hsa_attention(query, key, value, TYPES, HSAConfig())

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_each_backend_runs_or_is_refused_by_name(self, backend):
        config = HSAConfig(backend=backend)
        if backend in available_backends():
            assert hsa_attention(*tensors(size=16), TYPES, config).isfinite().all()
            assert hsa_attention(*tensors(size=16), TYPES, HSAConfig(), backend=backend).isfinite().all()
        else:
            with pytest.raises(ValueError, match=f"{backend!r} needs CUDA. Available here: auto"):
                hsa_attention(*tensors(), TYPES, config)

    def test_available_backends_are_documented_ones(self):
        assert set(available_backends()) <= set(BACKENDS)
        assert {"auto", "reference", "dense", "blockwise"} <= set(available_backends())

    def test_dense_names_what_it_cannot_honour(self):
        plan = AttentionPlan.from_inputs(TYPES)
        with pytest.raises(ValueError) as error:
            run_attention(
                *tensors(), plan, DEFAULTS, "dense", softcap=1.0, sinks=torch.zeros(4), output_attentions=True
            )
        message = str(error.value)
        for part in ("'dense'", "soft-capped logits", "attention sinks", "output_attentions", "'auto' or 'reference'"):
            assert part in message


class TestChoice:
    def test_the_argument_stands_above_the_configuration(self, monkeypatch):
        used = []
        monkeypatch.setattr(api, "dense_attention", lambda query, *rest: used.append("dense") or query)
        monkeypatch.setattr(api, "reference_attention", lambda query, *rest: (used.append("reference") or query, None))
        for configured, argument in (("reference", "dense"), ("dense", "reference"), ("dense", "auto")):
            hsa_attention(*tensors(), TYPES, HSAConfig(backend=configured), backend=argument)
        assert used == ["dense", "reference", "dense"]

    def test_auto_says_once_what_it_chose_and_why(self, caplog, monkeypatch):
        monkeypatch.setattr(api, "_logged", set())
        plan = AttentionPlan.from_inputs(TYPES)
        with caplog.at_level(logging.INFO, logger="hsa_factory"):
            for _ in range(3):
                run_attention(*tensors(), plan, DEFAULTS)
                run_attention(*tensors(), plan, DEFAULTS, softcap=1.0)
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 2
        assert lines[1] == "HSA attention uses the reference backend (for soft-capped logits)."

    def test_an_explicit_choice_is_not_announced(self, caplog, monkeypatch):
        monkeypatch.setattr(api, "_logged", set())
        with caplog.at_level(logging.INFO, logger="hsa_factory"):
            hsa_attention(*tensors(), TYPES, HSAConfig(), backend="reference")
        assert not caplog.records


class TestSharing:
    @pytest.mark.parametrize("backend", ["dense", "reference"])
    def test_two_layers_use_one_bias(self, backend, monkeypatch):
        built = []
        rows = AttentionPlan._bias_rows
        monkeypatch.setattr(AttentionPlan, "_bias_rows", lambda self, *rest: built.append(1) or rows(self, *rest))
        plan = AttentionPlan.from_inputs(TYPES)
        first, _ = run_attention(*tensors(), plan, DEFAULTS, backend)
        held = [id(bias) for bias in plan._bias.values()]
        second, _ = run_attention(*tensors(), plan, DEFAULTS, backend)
        assert len(built) == 1
        assert [id(bias) for bias in plan._bias.values()] == held and len(held) == 1
        assert torch.equal(first, second)

    def test_arguments_are_left_as_they_were(self):
        query, key, value = tensors()
        mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 2, 2]])
        before = [tensor.clone() for tensor in (query, key, value, TYPES, mask)]
        for backend in available_backends():
            hsa_attention(query, key, value, TYPES, HSAConfig(), mask, mask, backend)
        assert all(torch.equal(*pair) for pair in zip(before, (query, key, value, TYPES, mask)))


def test_the_value_may_have_another_head_size():
    query, key, _ = tensors()
    value = torch.randn(2, 2, 6, 5, generator=torch.Generator().manual_seed(1))
    expected = hsa_attention(query, key, value, TYPES, HSAConfig(), backend="reference")
    for backend in set(available_backends()) - {"flex"}:
        output = hsa_attention(query, key, value, TYPES, HSAConfig(), backend=backend)
        assert output.shape == (2, 4, 6, 5)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("switch", [*api.COMPILER_SWITCHES, None])
def test_flex_is_not_taken_without_torchs_compiler(switch, monkeypatch):
    """Switched off, torch would run the kernel's functions as they are, in N×N memory."""
    query = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(1, 1, 4096, 64))
    monkeypatch.setattr(api, "has_triton", lambda: True)
    for name in api.COMPILER_SWITCHES:
        monkeypatch.delenv(name, raising=False)
    assert api.flex_obstacle(query) is None
    with torch._dynamo.config.patch(disable=switch is None):
        if switch is not None:
            monkeypatch.setenv(switch, "1")
        assert "TORCHDYNAMO_DISABLE" in api.flex_obstacle(query)


@pytest.mark.parametrize(
    ("length", "dtype", "backend"),
    [
        (127, torch.bfloat16, "dense"),
        (128, torch.bfloat16, "triton"),
        (8191, torch.float64, "dense"),
        (8192, torch.float64, "blockwise"),
    ],
)
def test_what_auto_takes_on_cuda(length, dtype, backend, monkeypatch):
    monkeypatch.setattr(api, "has_triton", lambda: True)
    monkeypatch.setattr(api, "_compiler_is_off", lambda: False)
    monkeypatch.setattr(api, "_capability", lambda device: (9, 0))
    device = torch.device("cuda")
    query = SimpleNamespace(device=device, dtype=dtype, shape=(1, 1, length, 64))
    plan = SimpleNamespace(device=device, query_length=length, is_causal=lambda rules: False)
    assert api.choose_backend(query, plan, None)[0] == backend
