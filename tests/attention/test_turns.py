"""Windows in turns, in every backend, against an oracle that looks at one pair of tokens after the other."""

import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules, api, hsa_attention, run_attention
from hsa_factory.attention.backends.flex import FlexMask, flex_hsa_attention


BACKENDS = ("reference", "dense", "blockwise")  # forward and backward
CONFIGS = {
    "none after": HSAConfig(noise_turns=0),
    "one after": HSAConfig(noise_turns=1),
    "four after": HSAConfig(noise_turns=4, landmark_decay=0),
    "two bands": HSAConfig(noise_turns=0, landmark_turns=2),
    "all": HSAConfig(noise_turns=0, landmark_turns=1, global_turns=3),
    "with a window": HSAConfig(noise_turns=0, noise_window=25, landmark_turns=1, landmark_window=70),
    "fading": HSAConfig(noise_turns=1, noise_decay=0.05, landmark_turns=2, landmark_decay=0.3),
    "hide": HSAConfig(noise_turns=1, hide=[("GLOBAL", "NOISE"), (1, 1)]),
    "turns and a near window": HSAConfig(landmark_turns=1, noise_window=20),
    "more than there are": HSAConfig(noise_turns=10**20, landmark_turns=2**31),
}
NUMBERS = (None, 0, 1, 3)


def sees(row, i, j, config, sliding_window=None):
    """Say whether token i of a row (types, documents, positions and turns) sees token j, in the words of the rules."""
    types, documents, positions, turns = row
    if i == j:
        return True
    if j > i or documents[i] != documents[j] or documents[i] == 0:
        return False
    kind, distance, apart = types[j], positions[i] - positions[j], turns[i] - turns[j]
    if (types[i], kind) in config.hide or (sliding_window is not None and distance >= sliding_window):
        return False
    window, limit = config.windows[kind], config.turns[kind]
    if window is None and limit is None:
        return True
    return (window is not None and distance <= window) or (limit is not None and apart <= limit)


def count_positions(documents):
    seen = {}
    positions = []
    for document in documents:
        positions.append(seen.get(document, 0))
        seen[document] = positions[-1] + 1
    return positions


def as_rows(types, documents, turns):
    """Return what the oracle is told of each row, from (B, L) tensors."""
    return [
        (kinds, numbers, count_positions(numbers), of_turns)
        for kinds, numbers, of_turns in zip(types.tolist(), documents.tolist(), turns.tolist())
    ]


def oracle_bias(rows, config, sliding_window=None):
    """Return (B, 1, L, L) float64: −decay·d where a pair sees each other, −inf elsewhere."""
    length = len(rows[0][0])
    bias = torch.full((len(rows), 1, length, length), -torch.inf, dtype=torch.float64)
    for number, row in enumerate(rows):
        for i in range(length):
            for j in range(i + 1):
                if sees(row, i, j, config, sliding_window):
                    bias[number, 0, i, j] = -config.decays[row[0][j]] * (row[2][i] - row[2][j])
    return bias


def attend(query, key, value, bias):
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    logits = query @ key.transpose(2, 3) / math.sqrt(query.shape[3]) + bias[:, :, -query.shape[2] :]
    return logits.softmax(-1) @ value


def draw(batch, length, queries, heads=(4, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((heads[0], queries), (heads[1], length), (heads[1], length), (heads[0], queries))
    return [torch.randn(batch, *shape, 16, generator=generator, dtype=torch.float64) for shape in shapes]


def check_flex(plan, rules, bias, is_real):
    """What flex's kernel adds to the logits, and where, is the oracle's bias."""
    mask = plan.once(FlexMask, rules)
    b, q, k = (torch.arange(size) for size in (plan.batch_size, plan.query_length, plan.key_length))
    b, q = b[:, None, None], q[:, None]
    distance = mask.query_place[b, q] - mask.key_place[b, k]
    added = torch.where(mask.block_mask.mask_mod(b, None, q, k), -mask.slope[b, k] * distance, -torch.inf)
    if mask.inverse is not None:
        added = added.take_along_dim(mask.inverse[:, None], dim=2)
    expected = bias[:, 0, -plan.query_length :].float().masked_fill(~is_real[:, 0, :, None], -torch.inf)
    torch.testing.assert_close(added, expected, rtol=1e-5, atol=1e-6)


def compare(plan, rules, bias, tensors, backends=BACKENDS, with_flex=True):
    """Compare outputs and gradients of all backends with the oracle's."""
    first = plan.key_length - plan.query_length
    is_real = (plan.document_ids[:, first:] != 0)[:, None, :, None]
    upstream = tensors[3] * is_real
    results = []
    for name in ("oracle", *backends):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors[:3]]
        output = attend(*leaves, bias) if name == "oracle" else run_attention(*leaves, plan, rules, name)[0]
        output.backward(upstream)
        results.append([output.detach() * is_real, *(leaf.grad for leaf in leaves)])
    for name, actual in zip(backends, results[1:]):
        for of, got, wanted in zip("oqkv", actual, results[0], strict=True):
            # the products' biases are float32
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-5, msg=lambda text: f"{name} {of}: {text}")  # noqa: B023
    if with_flex:
        check_flex(plan, rules, bias, is_real[:, :, :, 0])
    return results[0]


def random_turns(length, generator, longest=60, skips=3):
    """Return turn numbers that start anywhere, never fall and sometimes skip."""
    turns, number = [], int(torch.randint(-5, 100, (1,), generator=generator))
    while len(turns) < length:
        turns += [number] * int(torch.randint(1, longest + 1, (1,), generator=generator))
        number += int(torch.randint(1, skips + 1, (1,), generator=generator))
    return torch.tensor(turns[:length])


def random_types(batch, length, generator):
    return torch.multinomial(torch.tensor([0.1, 0.2, 0.7]), batch * length, True, generator=generator).view(batch, -1)


def layout(name, length=150):
    """Return types, documents and turns (1, L) of a row; turns at padding are nonsense."""
    generator = torch.Generator().manual_seed(len(name))
    types, turns = random_types(1, length, generator), random_turns(length, generator)
    documents = {
        "one": torch.ones(length),
        "packed": torch.arange(length) // 67 + 1,
        "packed out of order": 5 - torch.arange(length) // 67,
        "interleaved": torch.arange(length) % 3 + 1,
        "left": (torch.arange(length) >= 40),
        "right": (torch.arange(length) < length - 40),
        "holes": (torch.arange(length) % 7 != 3),
        "packed and padded": torch.where(torch.arange(length) < 130, torch.arange(length) // 50 + 1, 0),
    }[name].long()
    for number in documents.unique().tolist():  # each document counts from somewhere else
        turns = torch.where(documents == number, turns + 17 * (number * 5 % 7), turns)
    turns = torch.where(documents == 0, torch.randint(-(2**40), 2**40, (length,), generator=generator), turns)
    return types, documents[None], turns[None]


LAYOUTS = ("one", "packed", "packed out of order", "interleaved", "left", "right", "holes", "packed and padded")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_and_rules(name, config):
    types, documents, turns = layout(name)
    sliding_window = 40 if name in ("packed", "left") else None
    plan = AttentionPlan.from_inputs(types, documents, turn_ids=turns)
    bias = oracle_bias(as_rows(types, documents, turns), config, sliding_window)
    compare(plan, LayerRules.of(config, sliding_window), bias, draw(1, 150, 150))


@pytest.mark.parametrize("queries", [1, 50])
@pytest.mark.parametrize("name", ["one", "packed", "left"])
@pytest.mark.parametrize("config", ["one after", "two bands", "with a window", "hide"])
def test_the_queries_may_be_the_last_of_the_keys(config, name, queries):
    config = CONFIGS[config]
    types, documents, turns = layout(name, 120)
    plan = AttentionPlan.from_inputs(types, documents, query_length=queries, turn_ids=turns)
    bias = oracle_bias(as_rows(types, documents, turns), config, 30)
    compare(plan, LayerRules.of(config, 30), bias, draw(1, 120, queries))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_flex_without_its_kernel(config):
    types, documents, turns = layout("packed and padded")
    plan = AttentionPlan.from_inputs(types, documents, turn_ids=turns)
    query, key, value, _ = (tensor.float() for tensor in draw(1, 150, 150))
    output = flex_hsa_attention(query, key, value, plan, LayerRules.of(config), compiled=False)
    bias = oracle_bias(as_rows(types, documents, turns), config).float()
    expected = attend(query, key, value, bias) * (documents != 0)[:, None, :, None]
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_missing_keys(config, queries):
    """A row from which keys were taken, as a cache takes them, and padding where a row holds fewer."""
    types, documents, turns = layout("one", 140)
    generator = torch.Generator().manual_seed(1)
    kept = (torch.rand(140, generator=generator) < 0.6) | (torch.arange(140) >= 140 - queries)
    bias = oracle_bias(as_rows(types, documents, turns), config)[:, :, :, kept]
    pad = lambda values, fill: torch.nn.functional.pad(values[:, kept], (5, 0), value=fill)
    plan = AttentionPlan(
        pad(types, 2),
        pad(documents, 0).bool(),
        pad(torch.arange(140)[None], 3),
        queries,
        has_gaps=True,
        is_packed=False,
        turn_ids=pad(turns, 99).int(),
    )
    bias = torch.nn.functional.pad(bias, (5, 0), value=-torch.inf)
    compare(plan, LayerRules.of(config), bias, draw(1, plan.key_length, queries))


@settings(max_examples=30)
@given(st.data())
def test_property(data):
    length = data.draw(st.integers(1, 40))
    rows = lambda low, high: torch.tensor(
        data.draw(st.lists(st.lists(st.integers(low, high), min_size=length, max_size=length), min_size=2, max_size=2))
    )
    config = HSAConfig(
        **{f"{kind}_turns": data.draw(st.sampled_from(NUMBERS)) for kind in ("global", "landmark", "noise")},
        **{f"{kind}_window": data.draw(st.sampled_from((None, 0, 4, 30))) for kind in ("global", "landmark", "noise")},
        noise_decay=data.draw(st.sampled_from((0, 0.01, 0.5))),
        hide=data.draw(st.sampled_from(([], [(0, 2)], [(2, 2), (1, 0)]))),
    )
    sliding_window = data.draw(st.sampled_from((None, 1, 6)))
    types, documents, turns = rows(0, 2), rows(0, 2), rows(0, 2).cumsum(1)
    queries = data.draw(st.integers(1, length))
    plan = AttentionPlan.from_inputs(types, documents, query_length=queries, turn_ids=turns)
    bias = oracle_bias(as_rows(types, documents, turns), config, sliding_window)
    compare(plan, LayerRules.of(config, sliding_window), bias, draw(2, length, queries, (2, 1)))


@pytest.mark.parametrize(
    ("config", "turn"),
    [("none after", 100), ("one after", 450), ("two bands", 450), ("with a window", 100), ("fading", 450)],
)
def test_long_rows(config, turn):
    """Several chunks of queries, and bands that several panels of keys are needed for; the reference is the oracle."""
    config, length = CONFIGS[config], 2600
    generator = torch.Generator().manual_seed(turn)
    types = random_types(1, length, generator)
    turns = random_turns(length, generator, longest=2 * turn, skips=1)[None]
    plan, rules = AttentionPlan.from_inputs(types, turn_ids=turns), LayerRules.of(config)
    tensors = [tensor.float() for tensor in draw(1, length, length, (2, 1))]
    bias = plan.dense_bias(torch.float32, rules)
    compare(plan, rules, bias, tensors, backends=("blockwise",), with_flex=False)


class TestEntry:
    def test_the_function_on_tensors(self):
        types, documents, turns = layout("packed")
        query, key, value, _ = draw(1, 150, 150)
        config = CONFIGS["one after"]
        expected = attend(query, key, value, oracle_bias(as_rows(types, documents, turns), config))
        for backend in ("auto", *BACKENDS):
            for dtype in (torch.int64, torch.int32, torch.int16):
                options = {"document_ids": documents, "backend": backend, "turn_ids": turns.to(dtype)}
                actual = hsa_attention(query, key, value, types, config, **options)
                torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("backend", ["auto", *BACKENDS])
    def test_missing_numbers(self, backend):
        query, key, value, _ = draw(1, 20, 20)
        config = HSAConfig(noise_turns=1, landmark_turns=0)
        with pytest.raises(ValueError, match="landmark_turns and noise_turns need turn_ids.*encode_conversation"):
            hsa_attention(query, key, value, torch.zeros(1, 20).long(), config, backend=backend)
        plan, rules = AttentionPlan.from_inputs(torch.zeros(1, 20).long()), LayerRules.of(HSAConfig(noise_turns=1))
        with pytest.raises(ValueError, match="^noise_turns needs turn_ids.*HSADataCollator.*generate"):
            flex_hsa_attention(query, key, value, plan, rules, compiled=False)

    def test_numbers_that_no_rule_needs_change_nothing(self):
        types, documents, turns = layout("packed")
        query, key, value, _ = draw(1, 150, 150)
        given = hsa_attention(query, key, value, types, HSAConfig(), documents, turn_ids=turns)
        assert torch.equal(given, hsa_attention(query, key, value, types, HSAConfig(), documents))

    def test_everything_in_sight_is_plain_causal_attention(self):
        types, turns = torch.tensor([[0, 2, 2, 1, 2]]), torch.tensor([[3, 3, 4, 4, 5]])
        plan = AttentionPlan.from_inputs(types, turn_ids=turns)
        is_causal = [
            plan.is_causal(LayerRules.of(HSAConfig(noise_turns=turns, landmark_decay=0))) for turns in (0, 1, 2)
        ]
        assert is_causal == [False, False, True]
        assert not plan.is_causal(LayerRules.of(HSAConfig(noise_turns=2, landmark_decay=0), 4))
        assert not plan.is_causal(LayerRules.of(HSAConfig(noise_turns=2)))

    def test_auto_takes_the_fast_backend_where_something_is_hidden(self, caplog, monkeypatch):
        monkeypatch.setattr(api, "_logged", set())
        query, key, value, _ = draw(1, 1100, 1100, (1, 1))
        types, turns = torch.full((1, 1100), 2), torch.arange(1100)[None] // 500
        with caplog.at_level(logging.INFO, logger="hsa_factory"):
            for limit in (2, 1):
                hsa_attention(query, key, value, types, HSAConfig(noise_turns=limit), turn_ids=turns)
        assert ["dense" in caplog.messages[0], "blockwise" in caplog.messages[1]] == [True, True]


class TestRefusals:
    @pytest.mark.parametrize(
        ("turns", "message"),
        [
            (torch.zeros(2, 5).long(), r"turn_ids has shape \(2, 5\), but semantic_ids has \(2, 4\)"),
            (torch.zeros(2, 4), "turn_ids must hold whole numbers, got torch.float32"),
            (torch.zeros(2, 4).bool(), "turn_ids must hold whole numbers, got torch.bool"),
            (torch.zeros(2, 4, dtype=torch.complex64), "turn_ids must hold whole numbers, got torch.complex64"),
            ([[0, 0, 1, 1]] * 2, r"turn_ids must be a tensor of shape \(batch, length\), got list"),
            (torch.zeros(2, 4, device="meta").long(), "turn_ids is on meta, but semantic_ids is on cpu"),
            (torch.tensor([[0, 1, 1, 2], [4, 5, 3, 3]]), "row 1 has 5 at place 1 and 3 at place 2.*document_ids"),
            (torch.tensor([[0, 1, 2**31, 2**31], [0, 0, 0, 0]]), "turn_ids holds 2147483648.*32 bits"),
            (torch.tensor([[-(2**63), 0, 0, 0], [0, 0, 0, 0]]), "turn_ids holds -9223372036854775808.*32 bits"),
        ],
    )
    def test_arguments(self, turns, message):
        with pytest.raises(ValueError, match=message):
            AttentionPlan.from_inputs(torch.zeros(2, 4).long(), turn_ids=turns)

    def test_numbers_fall_between_documents_only(self):
        types, turns = torch.zeros(1, 6).long(), torch.tensor([[5, 6, 1, 7, 2, 0]])
        AttentionPlan.from_inputs(types, torch.tensor([[1, 1, 2, 1, 2, 0]]), turn_ids=turns)
        with pytest.raises(ValueError, match="row 0 has 6 at place 1 and 1 at place 2"):
            AttentionPlan.from_inputs(types, torch.tensor([[1, 1, 1, 1, 2, 0]]), turn_ids=turns)
        with pytest.raises(ValueError, match="row 0 has 7 at place 3 and 2 at place 4"):
            AttentionPlan.from_inputs(types, torch.tensor([[1, 1, 2, 1, 1, 0]]), turn_ids=turns)


class TestFaded:
    """A decay that leaves nothing of what turns let see."""

    def attend(self, caplog, monkeypatch, config, sliding_window=None):
        monkeypatch.setattr(api, "_logged", set())
        query, key, value, _ = draw(1, 300, 300)
        types, turns = torch.full((1, 300), 2), torch.arange(300)[None] // 50
        plan = AttentionPlan.from_inputs(types, turn_ids=turns)
        with caplog.at_level(logging.WARNING, logger="hsa_factory"):
            for _ in range(3):
                run_attention(query, key, value, plan, LayerRules.of(config, sliding_window))
        return caplog.messages

    def test_is_said_once(self, caplog, monkeypatch):
        (message,) = self.attend(caplog, monkeypatch, HSAConfig(noise_turns=1, noise_decay=0.5))
        assert "noise_turns = 1 lets NOISE be seen from up to 99 tokens" in message
        assert "noise_decay = 0.5 takes 49.5" in message and "noise_decay: 0" in message

    @pytest.mark.parametrize(
        ("options", "sliding_window"),
        [
            ({"noise_turns": 1}, None),
            ({"noise_turns": 1, "noise_decay": 0.2}, None),
            ({"noise_turns": 0, "noise_decay": 0.4}, None),
            ({"noise_turns": 1, "noise_decay": 0.5}, 30),
            ({"landmark_turns": 1, "landmark_decay": 5.0}, None),
            ({}, None),
        ],
    )
    def test_is_not_said_where_something_is_left(self, options, sliding_window, caplog, monkeypatch):
        assert self.attend(caplog, monkeypatch, HSAConfig(**options), sliding_window) == []


@pytest.mark.parametrize("name", ["reference", "dense", "blockwise"])
@pytest.mark.parametrize("queries", [1, 4])
def test_numbers_as_far_apart_as_they_can_be(name, queries):
    """Their difference has more than 32 bits."""
    query, key, value, _ = draw(1, 4, queries)
    turns = torch.tensor([[1 - 2**31, 0, 0, 2**31 - 1]], dtype=torch.int32)
    types, config = torch.full((1, 4), 2), HSAConfig(noise_turns=1)
    actual = hsa_attention(query, key, value, types, config, backend=name, turn_ids=turns)
    torch.testing.assert_close(
        actual[:, :, -1], value[:, :, -1].repeat_interleave(query.shape[1] // value.shape[1], 1)
    )
