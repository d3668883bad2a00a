"""The cut into chunks, tiles and blocks covers every visible pair once."""

from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules, run_attention
from hsa_factory.attention.backends.blockwise.far_keys import LOG2_E
from hsa_factory.attention.backends.blockwise.layout import Layout
from hsa_factory.attention.backends.blockwise.segment import MAX_BLOCK_ROWS


DEFAULTS = LayerRules.of(HSAConfig())


def types_of(length, seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(torch.tensor([0.1, 0.2, 0.7]), batch * length, True, generator=generator).view(batch, -1)


def counted(plan, rules):
    """Return (B, Q, L): how often each pair is counted, and its bias, both as the layout has them."""
    times = torch.zeros(plan.batch_size, plan.query_length, plan.key_length)
    bias = torch.full_like(times, float("-inf"))
    offset = plan.key_length - plan.query_length
    for segment in plan.once(Layout, rules).segments:
        places = torch.arange(plan.key_length)[segment.places]
        for chunk in segment.chunks(heads=4):
            rows = range(chunk.start, chunk.stop)
            near = chunk.near_bias[:, 0].flatten(0, 1) / LOG2_E
            far = defaultdict(list)
            for block in chunk.blocks:
                for tile in range(block.tiles.start, block.tiles.stop):
                    for row in range(segment.tile):
                        columns = torch.zeros(block.far_stop - block.far_start)
                        for part in block.biases:
                            values = part.values[tile - block.tiles.start, 0, row] / LOG2_E
                            columns[part.start - block.far_start :][: len(values)] = values
                        far[tile * segment.tile + row].append((block.far_start, columns))
            for number, row in enumerate(rows):
                query = (segment.row, int(places[row]) - offset)
                first = chunk.start + number // segment.tile * segment.tile - segment.window
                for column, value in enumerate(near[number].tolist()):
                    if value > float("-inf"):
                        times[query][places[first + column]] += 1
                        bias[query][places[first + column]] = value
                for far_start, columns in far[number]:
                    for key, value in enumerate(columns, far_start):
                        if value > float("-inf"):
                            at = int(segment.far.index[key])
                            times[query][places[at]] += 1
                            bias[query][places[at]] = value - segment.far.decay[key] * (row - at)
    return times, bias


class TestEveryPairOnce:
    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def test_pairs_and_biases(self, data):
        length = data.draw(st.integers(1, 90))
        window = st.one_of(st.none(), st.integers(0, 100))
        turns = st.one_of(st.none(), st.integers(0, 3))
        config = HSAConfig(
            noise_window=data.draw(window),
            landmark_window=data.draw(window),
            noise_turns=data.draw(turns),
            landmark_turns=data.draw(turns),
            landmark_decay=data.draw(st.sampled_from([0.0, 0.001, 0.4])),
            hide=data.draw(st.sampled_from([(), [("GLOBAL", "NOISE")], [(1, 1), (2, 0)]])),
        )
        mask = torch.arange(length) // data.draw(st.integers(1, 60)) + 1
        if data.draw(st.booleans()):
            mask = torch.arange(length) % 2 + 1
        mask = mask.masked_fill(torch.arange(length) < data.draw(st.integers(0, length)), 0)
        queries = data.draw(st.integers(1, length))
        turn_ids = torch.arange(length)[None] // data.draw(st.integers(1, 60))
        plan = AttentionPlan.from_inputs(types_of(length, length), mask[None], query_length=queries, turn_ids=turn_ids)
        rules = LayerRules.of(config, data.draw(st.sampled_from([None, 1, 20])))

        times, bias = counted(plan, rules)
        expected = plan.dense_bias(torch.float32, rules)[:, 0]
        expected = expected.masked_fill((mask[length - queries :] == 0)[None, :, None], float("-inf"))
        assert torch.equal(times, (expected > float("-inf")).float())
        torch.testing.assert_close(bias, expected, rtol=1e-5, atol=1e-5)


class TestShape:
    def test_packed_rows_are_one_segment_and_interleaved_ones_one_a_document(self):
        types = types_of(60)
        packed = AttentionPlan.from_inputs(types, torch.arange(60)[None] // 7 + 1)
        assert len(packed.once(Layout, DEFAULTS).segments) == 1
        interleaved = AttentionPlan.from_inputs(types, torch.arange(60)[None] % 3 + 1)
        assert len(interleaved.once(Layout, DEFAULTS).segments) == 3

    def test_padding_is_left_out(self):
        mask = torch.tensor([[0] * 20 + [1] * 40, [0] * 60])
        (segment,) = AttentionPlan.from_inputs(types_of(60, batch=2), mask).once(Layout, DEFAULTS).segments
        assert segment.length == 40 and segment.places == slice(20, 60)

    def test_far_keys_that_all_rows_see_need_no_bias(self):
        (segment,) = AttentionPlan.from_inputs(types_of(3000)).once(Layout, DEFAULTS).segments
        blocks = [block for chunk in segment.chunks(8) for block in chunk.blocks]
        assert len(blocks) > 8
        assert all(bias.values.shape[-1] < MAX_BLOCK_ROWS for block in blocks for bias in block.biases)

    def test_biases_are_kept_for_the_other_layers_until_they_are_too_large(self, monkeypatch):
        (segment,) = AttentionPlan.from_inputs(types_of(300)).once(Layout, DEFAULTS).segments
        made = list(segment.chunks(8))
        assert all(one is other for one, other in zip(segment.chunks(8), made, strict=True))
        monkeypatch.setattr("hsa_factory.attention.backends.blockwise.segment._KEPT_BYTES", 0)
        (segment,) = AttentionPlan.from_inputs(types_of(300)).once(Layout, DEFAULTS).segments
        made = list(segment.chunks(8))
        assert not any(one is other for one, other in zip(segment.chunks(8), made, strict=True))


class TestFarAboveNear:
    """Logits of far keys so far above those of near ones that exponentials over the near maximum overflow."""

    @pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-3), (torch.float64, 1e-6)])
    def test_outputs_and_gradients(self, dtype, tolerance):
        generator = torch.Generator().manual_seed(0)
        types = torch.full((1, 400), 2)
        types[0, [3, 40, 41, 300]] = 1
        query, key, value = (torch.randn(1, 2, 400, 16, generator=generator, dtype=dtype) for _ in range(3))
        query += 3
        key[:, :, [3, 40, 300]] = 40  # q·k about 500
        key[:, :, 41] = -40
        plan = AttentionPlan.from_inputs(types)
        results = []
        for backend in ("blockwise", "reference"):
            leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
            output, _ = run_attention(*leaves, plan, DEFAULTS, backend)
            output.pow(2).sum().backward()
            results.append([output, *(leaf.grad for leaf in leaves)])
        for actual, expected in zip(*results):
            assert actual.isfinite().all()
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())
