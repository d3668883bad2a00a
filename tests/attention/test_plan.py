"""The plan: what it reads out of ids and masks, what it refuses, and what it costs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules


DEFAULTS = LayerRules.of(HSAConfig())


def zeros(*shape, dtype=torch.long):
    return torch.zeros(*shape, dtype=dtype)


class TestDocuments:
    def test_without_mask_it_is_one_document(self):
        plan = AttentionPlan.from_inputs(zeros(2, 3))
        assert plan.document_ids.tolist() == [[1, 1, 1]] * 2
        assert plan.positions.tolist() == [[0, 1, 2]] * 2
        assert plan.is_padding is None
        assert (plan.batch_size, plan.query_length, plan.key_length) == (2, 3, 3)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32, torch.uint8])
    def test_padding_from_masks_of_any_type(self, dtype):
        plan = AttentionPlan.from_inputs(zeros(1, 4), torch.tensor([[0, 1, 1, 0]]).to(dtype))
        assert plan.is_padding.tolist() == [[True, False, False, True]]
        assert plan.positions[0, 1:3].tolist() == [0, 1]

    def test_positions_start_anew_in_every_document(self):
        mask = torch.tensor([[1, 1, 1, 2, 3, 3, 0], [0, 0, 2, 2, 2, 5, 5]])
        plan = AttentionPlan.from_inputs(zeros(2, 7), mask)
        assert plan.positions[0, :6].tolist() == [0, 1, 2, 0, 0, 1]
        assert plan.positions[1, 2:].tolist() == [0, 1, 2, 0, 1]

    def test_document_ids_stand_above_the_numbers_of_the_mask(self):
        mask = torch.tensor([[0, 1, 1, 2, 2]])
        plan = AttentionPlan.from_inputs(zeros(1, 5), mask, torch.tensor([[-4, -4, 0, 0, -4]]))
        assert plan.is_padding.tolist() == [[True, False, False, False, False]]
        assert plan.positions[0, 1:].tolist() == [0, 0, 1, 1]
        assert plan.document_ids[0, 0] == 0 and (plan.document_ids[0, 1:] > 0).all()

    @given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
    def test_positions_count_the_earlier_tokens_of_the_document(self, documents):
        plan = AttentionPlan.from_inputs(zeros(1, len(documents)), torch.tensor([documents]))
        expected = [documents[:index].count(number) for index, number in enumerate(documents)]
        real = [index for index, number in enumerate(documents) if number]
        assert [plan.positions[0, index].item() for index in real] == [expected[index] for index in real]

    @pytest.mark.parametrize("shape", [(0, 0), (0, 4), (3, 0)])
    def test_nothing(self, shape):
        for mask in (None, zeros(*shape)):
            plan = AttentionPlan.from_inputs(zeros(*shape), mask, mask)
            assert plan.positions.shape == plan.document_ids.shape == shape
            assert plan.dense_bias(torch.float32, DEFAULTS).shape == (shape[0], 1, shape[1], shape[1])


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"semantic_ids": [[0, 1]]}, r"semantic_ids must be a tensor of shape \(batch, length\), got list"),
            ({"semantic_ids": zeros(3)}, r"semantic_ids must be a tensor of shape .*got \(3,\)"),
            ({"semantic_ids": zeros(1, 2, 3)}, r"semantic_ids must be .*got \(1, 2, 3\)"),
            ({"semantic_ids": zeros(1, 2, dtype=torch.float32)}, "semantic_ids must hold whole numbers.*float32"),
            ({"semantic_ids": torch.tensor([[0, 3, 1]])}, "semantic_ids holds 3; allowed are 0 .GLOBAL.*2 .NOISE"),
            ({"semantic_ids": torch.tensor([[0, 2], [-100, 1]])}, "semantic_ids holds -100"),
            ({"attention_mask": zeros(2, 4)}, r"attention_mask has shape \(2, 4\), but semantic_ids has \(2, 3\)"),
            ({"attention_mask": zeros(1, 3)}, r"attention_mask has shape \(1, 3\)"),
            ({"attention_mask": zeros(2, 1, 3, 3)}, "4-D attention_mask cannot be combined with HSA.*block_diag_attn"),
            ({"attention_mask": zeros(2, 3, 3)}, r"attention_mask must be .*got \(2, 3, 3\)"),
            ({"attention_mask": zeros(2, 3).to("meta")}, "attention_mask is on meta, but semantic_ids is on cpu"),
            ({"document_ids": zeros(2, 4)}, r"document_ids has shape \(2, 4\)"),
            ({"document_ids": zeros(2, 3).float()}, "document_ids must hold whole numbers, got torch.float32"),
            ({"document_ids": zeros(2, 3).to("meta")}, "document_ids is on meta"),
            ({"query_length": 4}, "query_length 4 does not fit 3 semantic_ids"),
            ({"query_length": -1}, "query_length -1 does not fit 3 semantic_ids"),
        ],
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            AttentionPlan.from_inputs(**{"semantic_ids": zeros(2, 3)} | arguments)

    @pytest.mark.parametrize(
        ("query", "key", "message"),
        [
            ((2, 4, 3, 8), (2, 2, 6, 8), r"\(2, 3, 5\), but the attention got \(2, 3, 6\).*cached ones included"),
            ((2, 4, 4, 8), (2, 2, 5, 8), r"\(2, 3, 5\), but the attention got \(2, 4, 5\)"),
            ((1, 4, 3, 8), (1, 2, 5, 8), r"\(2, 3, 5\), but the attention got \(1, 3, 5\)"),
        ],
    )
    def test_tensors_of_other_lengths(self, query, key, message):
        plan = AttentionPlan.from_inputs(zeros(2, 5), query_length=3)
        with pytest.raises(ValueError, match=message):
            plan.check(torch.empty(query), torch.empty(key))
        plan.check(torch.empty(2, 4, 3, 8), torch.empty(2, 2, 5, 8))

    def test_tensors_on_another_device(self):
        plan = AttentionPlan.from_inputs(zeros(2, 5))
        with pytest.raises(ValueError, match="semantic_ids are on cpu, the attention runs on meta"):
            plan.check(torch.empty(2, 4, 5, 8, device="meta"), torch.empty(2, 2, 5, 8, device="meta"))


class TestDenseBias:
    def test_the_numbers_of_the_design(self):
        types = torch.tensor([[0, 1, 2] + [0] * 60])
        bias = AttentionPlan.from_inputs(types).dense_bias(torch.float64, DEFAULTS)[0, 0]
        assert bias[40, 0] == 0
        assert bias[40, 1] == pytest.approx(-0.039) and bias[62, 1] == pytest.approx(-0.061)
        assert bias[40, 2] == -19 and bias[52, 2] == -25 and bias[53, 2] == float("-inf")
        assert (bias.triu(1)[torch.ones(63, 63).triu(1).bool()] == float("-inf")).all()
        assert (bias.diagonal() == 0).all()

    def test_long_rows_are_filled_in_steps_without_seams(self):
        types = torch.randint(0, 3, (1, 600), generator=torch.Generator().manual_seed(0))
        bias = AttentionPlan.from_inputs(types).dense_bias(torch.float32, DEFAULTS)
        tail = AttentionPlan.from_inputs(types, query_length=90).dense_bias(torch.float32, DEFAULTS)
        assert torch.equal(tail, bias[:, :, 510:])
        for row in (0, 255, 256, 257, 511, 512, 599):
            one = AttentionPlan.from_inputs(types[:, : row + 1], query_length=1).dense_bias(torch.float32, DEFAULTS)
            assert torch.equal(one[0, 0, 0], bias[0, 0, row, : row + 1])

    def test_is_built_once_for_all_layers(self):
        plan = AttentionPlan.from_inputs(zeros(1, 5))
        arguments = [
            (dtype, rules)
            for dtype in (torch.float32, torch.bfloat16)
            for window in (None, 2)
            for rules in (LayerRules.of(HSAConfig(), window), LayerRules.plain(window))
        ]
        first = [plan.dense_bias(*argument) for argument in arguments]
        again = [plan.dense_bias(*argument) for argument in arguments]
        assert all(one is other for one, other in zip(first, again))
        assert len({bias.data_ptr() for bias in first}) == len(arguments)
        assert [bias.dtype for bias in first] == [argument[0] for argument in arguments]

    def test_every_row_sees_itself_even_where_nothing_else_is_visible(self):
        config = HSAConfig(hide=[(a, b) for a in range(3) for b in range(3)], noise_window=0)
        mask = torch.tensor([[0, 1, 1, 0]])
        bias = AttentionPlan.from_inputs(torch.tensor([[2, 0, 1, 2]]), mask).dense_bias(
            torch.float32, LayerRules.of(config)
        )
        assert torch.equal(bias[0, 0] == 0, torch.eye(4).bool())
        assert torch.equal(bias[0, 0].isinf(), ~torch.eye(4).bool())

    def test_a_padded_row_sees_only_itself(self):
        bias = AttentionPlan.from_inputs(zeros(1, 4), torch.tensor([[0, 0, 1, 1]])).dense_bias(torch.float32, DEFAULTS)
        assert (bias[0, 0] == 0).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_nothing_quadratic_before_a_bias_is_asked_for():
    """At 200 000 tokens an N×N tensor of bytes would need 40 GB, the plan itself a few numbers a token."""
    length = 200_000
    plan = AttentionPlan.from_inputs(zeros(1, length), torch.ones(1, length, dtype=torch.long))
    held = [tensor for tensor in vars(plan).values() if isinstance(tensor, torch.Tensor)]
    assert plan._bias == {}
    assert sum(tensor.numel() for tensor in held) <= 8 * length
