"""The specification against a naive double loop, written from the formulas and from nothing else."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules, reference_attention


DEFAULTS = LayerRules.of(HSAConfig())


def naive_attention(
    query, key, value, types, config, documents, scale=None, sliding_window=None, softcap=None, sinks=None
):
    """One pair of query and key at a time, in double precision. `documents`: (B, L) numbers, 0 is padding."""
    batch, heads, length, size = query.shape
    groups = heads // key.shape[1]
    scale = 1 / math.sqrt(size) if scale is None else scale
    query, key, value = query.double(), key.double(), value.double()
    output = torch.zeros(batch, heads, length, value.shape[-1], dtype=torch.float64)
    weights = torch.zeros(batch, heads, length, length, dtype=torch.float64)
    decay = (config.global_decay, config.landmark_decay, config.noise_decay)
    window = (config.global_window, config.landmark_window, config.noise_window)

    for b in range(batch):
        place, seen = [], {}
        for document in documents[b]:
            place.append(seen.get(document, 0))
            seen[document] = place[-1] + 1

        for i in range(length):
            if documents[b][i] == 0:
                continue
            visible = []
            for j in range(i + 1):
                if documents[b][j] != documents[b][i]:
                    continue
                d, kind = place[i] - place[j], types[b][j]
                outside = window[kind] is not None and d > window[kind]
                hidden = (types[b][i], kind) in config.hide
                slid_out = sliding_window is not None and d >= sliding_window
                if i == j or not (outside or hidden or slid_out):
                    visible.append((j, decay[kind] * d))

            for h in range(heads):
                logits = []
                for j, penalty in visible:
                    logit = float(query[b, h, i] @ key[b, h // groups, j]) * scale
                    if softcap is not None:
                        logit = softcap * math.tanh(logit / softcap)
                    logits.append(logit - penalty)
                total = sum(math.exp(logit) for logit in logits)
                if sinks is not None:
                    total += math.exp(float(sinks[h]))
                for (j, _), logit in zip(visible, logits):
                    weights[b, h, i, j] = math.exp(logit) / total
                    output[b, h, i] += weights[b, h, i, j] * value[b, h // groups, j]

    return output, weights


def compare(types, config, documents=None, mask=None, document_ids=None, heads=(2, 1), sliding_window=None, **model):
    """Compare outputs and weights. `documents` are what the loop is told, `mask` and `document_ids` the plan."""
    types_of_rows = types if isinstance(types[0], list) else [types]
    batch, length = len(types_of_rows), len(types_of_rows[0])
    documents = documents or [[1] * length] * batch
    generator = torch.Generator().manual_seed(length)
    query, key, value = (
        2 * torch.randn(batch, count, length, size, generator=generator)
        for count, size in ((heads[0], 4), (heads[1], 4), (heads[1], 3))
    )
    to_tensor = lambda rows: None if rows is None else torch.tensor(rows)
    plan = AttentionPlan.from_inputs(torch.tensor(types_of_rows), to_tensor(mask), to_tensor(document_ids))
    output, weights = reference_attention(query, key, value, plan, LayerRules.of(config, sliding_window), **model)
    model["sliding_window"] = sliding_window
    expected, expected_weights = naive_attention(query, key, value, types_of_rows, config, documents, **model)
    assert output.dtype == weights.dtype == torch.float32
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=2e-6)

    real = torch.tensor(documents) != 0
    weights = weights.double() * real[:, None, :, None]
    torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-6)
    assert (weights[expected_weights == 0] == 0).all()  # invisible: exactly 0
    assert (weights[expected_weights > 1e-30] > 0).all()
    return output


def mixed(length, seed=0):
    return torch.randint(0, 3, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


SHORT = {"landmark_decay": 0.05, "noise_decay": 0.1}


class TestRules:
    @pytest.mark.parametrize("types", [[0] * 56, [1] * 56, [2] * 56, [0, 1, 2] * 18 + [2, 2], mixed(56)])
    def test_defaults(self, types):
        compare(types, HSAConfig())

    @pytest.mark.parametrize("window", [0, 1, 50, None, 57, 10**20])
    @pytest.mark.parametrize("kind", ["global", "landmark", "noise"])
    def test_windows(self, kind, window):
        compare(mixed(54), HSAConfig(**SHORT, **{f"{kind}_window": window}), heads=(1, 1))

    @pytest.mark.parametrize("decay", [0, 0.001, 0.3, 10.0])
    @pytest.mark.parametrize("kind", ["global", "landmark", "noise"])
    def test_decays(self, kind, decay):
        compare(mixed(20), HSAConfig(**{f"{kind}_decay": decay}))

    @pytest.mark.parametrize(
        "hide",
        [
            [("GLOBAL", "NOISE"), ("LANDMARK", "NOISE")],
            [("NOISE", "GLOBAL")],
            [(kind, kind) for kind in range(3)],
            [(query, key) for query in range(3) for key in range(3)],
        ],
    )
    def test_hidden_pairs(self, hide):
        output = compare(mixed(20), HSAConfig(hide=hide))
        if len(hide) == 9:  # all that is left is the token itself
            alone = compare(mixed(20), HSAConfig(global_window=0, landmark_window=0, noise_window=0))
            assert torch.equal(output, alone)

    def test_a_token_always_sees_itself_with_its_own_logit(self):
        everything = [(query, key) for query in range(3) for key in range(3)]
        config = HSAConfig(hide=everything, noise_window=0, global_window=0, landmark_window=0, noise_decay=1e30)
        compare([0, 1, 2, 2, 1, 0], config, sliding_window=1)

    @pytest.mark.parametrize("length", [0, 1, 2])
    def test_short_rows(self, length):
        if length:
            compare(mixed(length), HSAConfig(noise_window=0))
        empty = torch.zeros(1, 2, length, 4)
        plan = AttentionPlan.from_inputs(torch.zeros(1, length, dtype=torch.long))
        assert reference_attention(empty, empty, empty, plan, DEFAULTS)[0].shape == (1, 2, length, 4)


class TestDocuments:
    DOCUMENTS = [[1] * 7 + [2] + [3] * 12, [5] * 20]

    def types(self):
        return [mixed(20, seed) for seed in (1, 2)]

    def test_by_document_ids(self):
        compare(self.types(), HSAConfig(noise_window=5), self.DOCUMENTS, document_ids=self.DOCUMENTS)

    def test_by_document_ids_from_any_number_on(self):
        shifted = [[number - 9 for number in row] for row in self.DOCUMENTS]
        compare(self.types(), HSAConfig(noise_window=5), self.DOCUMENTS, document_ids=shifted)

    def test_by_a_mask_of_numbers(self):
        compare(self.types(), HSAConfig(noise_window=5), self.DOCUMENTS, mask=self.DOCUMENTS)

    def test_by_ids_with_padding_from_the_mask(self):
        mask = [[1] * 17 + [0] * 3, [0, 0] + [1] * 18]
        documents = [[number * real for number, real in zip(*rows)] for rows in zip(self.DOCUMENTS, mask)]
        ids = [[number - 1 for number in row] for row in self.DOCUMENTS]
        compare(self.types(), HSAConfig(noise_window=5), documents, mask=mask, document_ids=ids)

    def test_documents_that_interleave(self):
        documents = [[1, 2] * 10, [1, 1, 2, 3, 2] * 4]
        compare(self.types(), HSAConfig(noise_window=2), documents, document_ids=documents, sliding_window=4)


@pytest.mark.parametrize(
    "mask",
    [
        [[1] * 15 + [0] * 5, [1] * 20],
        [[0] * 5 + [1] * 15, [1] * 20],
        [[1, 0, 0, 1, 1] * 4, [0] * 9 + [1] + [0] * 10],
        [[0, 0] + [1] * 6 + [2] * 9 + [0] * 3, [3] * 10 + [0] * 5 + [3] * 5],
    ],
    ids=["right", "left", "holes", "packed"],
)
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -1.0])])
def test_padding(mask, sinks):
    types = [mixed(20, 3), mixed(20, 4)]
    output = compare(types, HSAConfig(**SHORT, noise_window=3), mask, mask=mask, sinks=sinks)
    assert (output.transpose(1, 2)[torch.tensor(mask) == 0] == 0).all()


class TestModels:
    """What the model itself asks of its attention."""

    @pytest.mark.parametrize("heads", [(1, 1), (4, 4), (4, 2), (4, 1), (6, 3)])
    def test_grouped_query_heads(self, heads):
        compare(mixed(12), HSAConfig(**SHORT), heads=heads)

    @pytest.mark.parametrize("window", [1, 3, 16, 100])
    def test_sliding_window(self, window):
        compare(mixed(20), HSAConfig(**SHORT, noise_window=5), sliding_window=window)

    @pytest.mark.parametrize("scale", [1.0, 0.1, 0.0])
    def test_scale(self, scale):
        compare(mixed(12), HSAConfig(**SHORT), scale=scale)

    @pytest.mark.parametrize("softcap", [0.5, 30.0])
    def test_softcap_is_before_the_bias(self, softcap):
        compare(mixed(20), HSAConfig(noise_decay=0.2), softcap=softcap)

    def test_sinks(self):
        compare(mixed(20), HSAConfig(**SHORT), heads=(4, 2), sinks=torch.tensor([-2.0, 0.0, 1.0, 5.0]))

    def test_all_together(self):
        mask = [[0] * 2 + [1] * 10 + [2] * 8]
        compare(
            mixed(20),
            HSAConfig(**SHORT, noise_window=4, hide=[(0, 2)]),
            mask,
            mask=mask,
            scale=0.3,
            softcap=2.0,
            sliding_window=7,
            sinks=torch.tensor([0.1, 0.2]),
        )

    def test_a_layer_without_hsa_keeps_causality_documents_and_padding(self):
        mask = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2, 2, 2]])
        generator = torch.Generator().manual_seed(0)
        query, key, value = (torch.randn(1, 2, 10, 4, generator=generator) for _ in range(3))
        plan = AttentionPlan.from_inputs(torch.tensor([[0, 2] * 5]), mask)
        output, _ = reference_attention(query, key, value, plan, LayerRules.plain(3))
        expected, _ = naive_attention(query, key, value, [[0] * 10], HSAConfig(), mask.tolist(), sliding_window=3)
        torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=2e-6)


class TestPrecision:
    def test_low_precision_is_rounded_once_at_the_end(self):
        generator = torch.Generator().manual_seed(0)
        query, key, value = (torch.randn(1, 2, 60, 8, generator=generator).bfloat16() for _ in range(3))
        plan = AttentionPlan.from_inputs(torch.tensor([mixed(60)]))
        output, weights = reference_attention(query, key, value, plan, DEFAULTS)
        exact, _ = reference_attention(query.float(), key.float(), value.float(), plan, DEFAULTS)
        assert output.dtype == weights.dtype == torch.bfloat16
        assert torch.equal(output, exact.bfloat16())

    def test_double_precision_stays_double(self):
        generator = torch.Generator().manual_seed(0)
        query, key, value = (torch.randn(1, 2, 20, 4, generator=generator, dtype=torch.float64) for _ in range(3))
        types = [mixed(20)]
        output, _ = reference_attention(query, key, value, AttentionPlan.from_inputs(torch.tensor(types)), DEFAULTS)
        expected, _ = naive_attention(query, key, value, types, HSAConfig(), [[1] * 20])
        torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-7)  # the bias itself is single precision

    def test_dropout_drops_weights_and_scales_the_rest(self):
        ones = torch.ones(1, 1, 200, 4)
        plan = AttentionPlan.from_inputs(torch.zeros(1, 200, dtype=torch.long))
        torch.manual_seed(0)
        output, weights = reference_attention(ones, ones, ones, plan, DEFAULTS, dropout=0.5)
        assert 0.4 < (weights[0, 0].tril() == 0).sum() / ones[0, 0, :, 0].numel() ** 2 < 0.8
        torch.testing.assert_close(weights[0, 0, -1].max(), torch.tensor(2 / 200))
        assert abs(output.mean() - 1) < 0.1


@given(data=st.data())
def test_property(data):
    length = data.draw(st.integers(1, 12))
    rows = lambda low, high: data.draw(st.lists(st.integers(low, high), min_size=length, max_size=length))
    window = st.none() | st.integers(0, 14)
    config = HSAConfig(
        **{f"{kind}_window": data.draw(window) for kind in ("global", "landmark", "noise")},
        **{f"{kind}_decay": data.draw(st.floats(0, 2)) for kind in ("global", "landmark", "noise")},
        hide=data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=4)),
    )
    mask = [rows(0, 3)]
    model = {
        "sliding_window": data.draw(st.none() | st.integers(1, 14)),
        "softcap": data.draw(st.none() | st.just(1.5)),
        "sinks": data.draw(st.none() | st.just(torch.tensor([0.3, -0.3]))),
    }
    compare([rows(0, 2)], config, mask, mask=mask, **model)
