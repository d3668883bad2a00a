"""Every backend equals the reference: outputs and the gradients of query, key and value."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import RESULTS, bounds, fused

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules, hsa_attention, run_attention
from hsa_factory.attention.api import available_backends
from hsa_factory.attention.backends.blockwise import segment


BACKENDS = [backend for backend in available_backends() if backend not in ("auto", "reference")]
ALL = [*BACKENDS, "reference"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 16
TOLERANCE = 2e-5
DEFAULTS = LayerRules.of(HSAConfig())
HIDING = HSAConfig(hide=[(0, 1)])
REFUSED = {
    "dense": {"soft-cap", "sinks"},
    "blockwise": {"soft-cap", "sinks", "dropout"},
    "flex": {"soft-cap", "sinks", "dropout"},
    "triton": {"soft-cap", "sinks", "dropout"},
}


def draw(batch, heads, length, seed=0):
    """Return query, key, value and a gradient for the output."""
    generator = torch.Generator().manual_seed(seed)
    counts = (heads[0], heads[1], heads[1], heads[0])
    return [torch.randn(batch, count, length, SIZE, generator=generator).to(DEVICE) for count in counts]


def run(backend, tensors, types, config=None, dtype=torch.float32, **options):
    """Return the output and the gradients of query, key and value."""
    query, key, value, upstream = (tensor.to(dtype) for tensor in tensors)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (query, key, value)]
    output = hsa_attention(*leaves, types, config or HSAConfig(), backend=backend, **options)
    assert output.shape == query.shape and output.dtype == dtype
    output.backward(upstream)
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def check(actual, expected, tolerance=TOLERANCE, nonzero=True):
    for name, got, wanted in zip(("output", "query", "key", "value"), actual, expected, strict=True):
        assert got.isfinite().all(), name
        error, size = (got - wanted).abs().max(), wanted.abs().max()
        assert error <= tolerance * max(1, size), f"{name}: {error:.2e} off at a size of {size:.2e}"
        if nonzero:  # an agreement of zeros proves nothing
            assert size > 1e-3 and got.abs().max() > 1e-3, name


def compare(backend, tensors, types, config=None, nonzero=True, **options):
    expected = run("reference", tensors, types, config, **options)
    check(run(backend, tensors, types, config, **options), expected, nonzero=nonzero)


def check_within(actual, exact, errors, mask):
    is_real = (mask != 0)[:, None, :, None]
    for name, got, wanted, error in zip(RESULTS, actual, exact, errors, strict=True):
        off = (got.float() - wanted).abs() * is_real
        assert (off <= error + 1e-6).all(), f"{name}: {(off - error).max():.1e} beyond what rounding explains"


def random_types(batch, length, seed=0):
    return torch.randint(0, 3, (batch, length), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def trajectory(length):
    """A task, then turns: a long passing observation, a short key event."""
    types, turn = [0] * min(40, length), 0
    while len(types) < length:
        types += [2] * (20 + 17 * turn % 41) + [1] * (3 + turn % 7)
        turn += 1
    return types[:length]


def some_types(kind, batch, length):
    rows = {
        "global": [0] * length,
        "landmark": [1] * length,
        "noise": [2] * length,
        "alternating": [position % 3 for position in range(length)],
        "trajectory": trajectory(length),
    }
    return random_types(batch, length) if kind == "random" else torch.tensor([rows[kind]] * batch, device=DEVICE)


def numbered(*lengths):
    return torch.tensor([[number for number, length in enumerate(lengths, 1) for _ in range(length)]], device=DEVICE)


KINDS = ("global", "landmark", "noise", "alternating", "random", "trajectory")
PADDINGS = {
    "none": None,
    "left": [[0] * 31 + [1] * 98, [1] * 129],
    "right": [[1] * 98 + [0] * 31, [1] * 129],
    "holes": [[1, 1, 0] * 43, [0] + [1] * 127 + [0]],
    "one token": [[0] * 128 + [1], [1] + [0] * 128],
}


@pytest.mark.parametrize("backend", BACKENDS)
class TestEqualsReference:
    @pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=str)
    @pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 1000])
    def test_lengths_and_heads(self, backend, length, heads):
        batch = 1 if length == 1000 else 2
        tensors = draw(batch, heads, length)
        expected = run("reference", tensors, random_types(batch, length))
        actual = run(backend, tensors, random_types(batch, length))
        check(actual, expected, nonzero=length > 2)
        if length == 1:
            assert torch.equal(actual[0], tensors[2].repeat_interleave(4 // heads[1], dim=1))

    @pytest.mark.parametrize("window", [0, 1, 50, 5000])
    @pytest.mark.parametrize("kind", KINDS)
    def test_types_and_windows(self, backend, kind, window):
        config = HSAConfig(noise_window=window, landmark_window=2 * window, noise_decay=0.05)
        only_itself = window == 0 and kind in ("noise", "landmark")  # one weight, 1: no gradient of q and k
        types = some_types(kind, 1, 200)
        compare(backend, draw(1, (4, 2), 200), types, config, nonzero=not only_itself)

    @pytest.mark.parametrize("kind", KINDS)
    def test_long(self, backend, kind):
        compare(backend, draw(1, (2, 1), 700), some_types(kind, 1, 700))

    @pytest.mark.parametrize("kind", ["trajectory", pytest.param("alternating", marks=pytest.mark.long)])
    def test_very_long(self, backend, kind):
        compare(backend, draw(1, (2, 1), 4096), some_types(kind, 1, 4096))

    @pytest.mark.parametrize(
        "config",
        [
            HSAConfig(landmark_decay=0, noise_decay=0, noise_window=None),
            HSAConfig(global_decay=0.1, global_window=30, landmark_window=7, noise_window=3),
            HSAConfig(noise_window=None, noise_decay=0.001),
            HSAConfig(global_window=0, landmark_window=0, noise_window=10),
            HSAConfig(landmark_decay=0.9, global_decay=1.1, noise_window=None),
            HSAConfig(landmark_decay=20, noise_decay=1000),
            HSAConfig(landmark_decay=1e6, noise_decay=1e30, noise_window=None),
            HSAConfig(global_decay=3e38, landmark_decay=1e30, landmark_window=100),
            HSAConfig(landmark_window=120, noise_window=110, global_window=130),
            HSAConfig(hide=[("GLOBAL", "NOISE"), ("LANDMARK", "NOISE")]),
            HSAConfig(hide=[(kind, kind) for kind in range(3)], noise_window=4),
            HSAConfig(noise_window=10**20),
        ],
    )
    def test_rules(self, backend, config):
        tensors = draw(2, (4, 2), 150)
        compare(backend, tensors, random_types(2, 150), config)
        compare(backend, tensors, some_types("trajectory", 2, 150), config)

    @pytest.mark.parametrize(
        "windows", [(255, 256, 257), (300, 400, 500), (600, 299, 1), (None, 300, 50), (0, 301, 599)]
    )
    @pytest.mark.parametrize("kind", ["random", "trajectory"])
    def test_wide_windows(self, backend, windows, kind):
        config = HSAConfig(
            **dict(zip(("noise_window", "landmark_window", "global_window"), windows)), noise_decay=0.01
        )
        compare(backend, draw(1, (2, 1), 600), some_types(kind, 1, 600), config)

    @pytest.mark.parametrize("padding", PADDINGS)
    @pytest.mark.parametrize("kind", ["random", "trajectory"])
    def test_padding(self, backend, padding, kind):
        mask = None if PADDINGS[padding] is None else torch.tensor(PADDINGS[padding], device=DEVICE)
        nonzero = padding != "one token"
        tensors = draw(2, (4, 2), 129)
        for as_type in (torch.Tensor.long, torch.Tensor.bool, torch.Tensor.float):
            options = {} if mask is None else {"attention_mask": as_type(mask)}
            compare(backend, tensors, some_types(kind, 2, 129), nonzero=nonzero, **options)

    @pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
    def test_documents(self, backend, count):
        generator = torch.Generator().manual_seed(count)
        cuts = sorted(torch.randperm(299, generator=generator)[: count - 1].add(1).tolist())
        documents = numbered(*(end - start for start, end in zip([0, *cuts], [*cuts, 300])))
        tensors, types = draw(1, (4, 2), 300), random_types(1, 300)
        compare(backend, tensors, types, document_ids=documents)
        padded = torch.where(torch.arange(300, device=DEVICE) < 280, documents, 0)
        compare(backend, tensors, types, attention_mask=padded)

    def test_documents_that_interleave(self, backend):
        documents = torch.tensor([[1, 2, 2, 3] * 40], device=DEVICE)
        compare(backend, draw(1, (4, 2), 160), random_types(1, 160), HSAConfig(noise_window=5), document_ids=documents)

    @pytest.mark.parametrize("scale", [1.0, 0.01])
    def test_scale(self, backend, scale):
        compare(backend, draw(1, (4, 2), 70), random_types(1, 70), scale=scale)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("length", [5, 129, 700])
    def test_low_precision(self, backend, dtype, length):
        """Each number is as near as a fused kernel's roundings let it be; in long rows the reference's own errors are a scale, too."""
        tensors, types = draw(1, (4, 2), length), some_types("trajectory", 1, length)
        mask = torch.ones(1, length, dtype=torch.long, device=DEVICE)
        mask[:, : length // 5] = 0
        actual = run(backend, tensors, types, dtype=dtype, attention_mask=mask)
        check_within(actual, *bounds(tensors, AttentionPlan.from_inputs(types, mask), HSAConfig(), dtype), mask)
        if length < 100:  # the reference's own errors are few numbers, which may be small by luck
            return
        exact = run("reference", tensors, types, attention_mask=mask)
        rounded = run("reference", tensors, types, dtype=dtype, attention_mask=mask)
        for name, got, low, high in zip(RESULTS, actual, rounded, exact, strict=True):
            error, budget = got.float() - high, low.float() - high
            assert 0 < budget.norm() < 0.02 * high.norm(), name
            assert error.norm() <= 2 * budget.norm(), name
            assert error.abs().max() <= 4 * budget.abs().max(), name

    def test_not_contiguous(self, backend):
        query, key, value, upstream = draw(2, (4, 2), 40)
        turned = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (query, key, value, upstream)]
        assert not turned[0].is_contiguous()
        types = random_types(2, 80)[:, ::2]
        check(run(backend, turned, types), run("reference", (query, key, value, upstream), types.contiguous()))

    @pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int8])
    def test_types_of_the_types(self, backend, dtype):
        tensors, types = draw(1, (4, 2), 40), random_types(1, 40)
        check(run(backend, tensors, types.to(dtype)), run("reference", tensors, types))


@settings(max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("backend", BACKENDS)
def test_property(backend, data):
    length = data.draw(st.integers(1, 40))
    rows = lambda low, high: torch.tensor(
        data.draw(
            st.lists(st.lists(st.integers(low, high), min_size=length, max_size=length), min_size=2, max_size=2)
        ),
        device=DEVICE,
    )
    window = st.none() | st.integers(0, 45)
    config = HSAConfig(
        **{f"{kind}_window": data.draw(window) for kind in ("global", "landmark", "noise")},
        **{f"{kind}_decay": data.draw(st.floats(0, 2)) for kind in ("global", "landmark", "noise")},
        hide=data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=4)),
    )
    options = {
        "attention_mask": data.draw(st.none() | st.just(rows(0, 2))),
        "document_ids": data.draw(st.none() | st.just(rows(-1, 1))),
        "scale": data.draw(st.none() | st.just(0.7)),
    }
    heads = data.draw(st.sampled_from([(4, 4), (4, 2), (3, 1)]))
    tensors = draw(2, heads, length, seed=data.draw(st.integers(0, 5)))
    compare(backend, tensors, rows(0, 2), config, nonzero=False, **options)


@pytest.mark.parametrize("backend", BACKENDS)
class TestModelArguments:
    """What a model itself asks for is honoured exactly, or refused by name (`REFUSED`); never dropped."""

    @pytest.mark.parametrize(
        ("argument", "words"),
        [
            ({"rules": LayerRules.of(HIDING, 1)}, "sliding"),
            ({"rules": LayerRules.of(HIDING, 16)}, "sliding"),
            ({"softcap": 0.5}, "soft-cap"),
            ({"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0], device=DEVICE)}, "sinks"),
            ({"rules": LayerRules.plain()}, "plain"),
            ({"rules": LayerRules.plain(16)}, "plain"),
        ],
        ids=["window 1", "window 16", "softcap", "sinks", "plain", "plain window"],
    )
    def test_honoured_or_refused(self, backend, argument, words):
        query, key, value, _ = draw(2, (4, 2), 90)
        mask = torch.tensor([[0] * 9 + [1] * 40 + [2] * 41, [1] * 80 + [0] * 10], device=DEVICE)
        plan, rules = AttentionPlan.from_inputs(random_types(2, 90), mask), LayerRules.of(HIDING)
        argument = {"rules": rules} | argument
        expected, _ = run_attention(query, key, value, plan, backend="reference", **argument)
        plain, _ = run_attention(query, key, value, plan, rules, "reference")
        assert (expected - plain).abs().max() > 1e-2
        if words in REFUSED[backend]:
            with pytest.raises(ValueError, match=f"{backend!r} cannot honour .*{words}"):
                run_attention(query, key, value, plan, backend=backend, **argument)
            return
        output, weights = run_attention(query, key, value, plan, backend=backend, **argument)
        assert weights is None
        assert (output - expected).abs().max() < TOLERANCE

    def test_weights_are_refused(self, backend):
        query, key, value, _ = draw(1, (4, 2), 20)
        plan = AttentionPlan.from_inputs(random_types(1, 20))
        with pytest.raises(ValueError, match=f"{backend!r} cannot honour output_attentions"):
            run_attention(query, key, value, plan, DEFAULTS, backend, output_attentions=True)

    def test_dropout_is_applied_or_refused(self, backend):
        query, key, value, _ = draw(1, (4, 2), 90)
        plan = AttentionPlan.from_inputs(random_types(1, 90))
        plain, _ = run_attention(query, key, value, plan, DEFAULTS, backend)
        if "dropout" in REFUSED[backend]:
            with pytest.raises(ValueError, match=f"{backend!r} cannot honour attention dropout"):
                run_attention(query, key, value, plan, DEFAULTS, backend, dropout=0.5)
            return
        outputs = [run_attention(query, key, value, plan, DEFAULTS, backend, dropout=0.5)[0] for _ in range(200)]
        assert (outputs[0] - outputs[1]).abs().max() > 0.1
        assert (torch.stack(outputs).mean(0) - plain).abs().mean() < 0.1  # right on average

    @pytest.mark.parametrize("queries", [0, 1, 7, 25, 50])
    @pytest.mark.parametrize(
        "mask",
        [[0] * 9 + [1] * 41, [1] * 20 + [2] * 20 + [3] * 10, [1, 2, 2, 3, 0] * 10, [1] * 40 + [0] * 10],
        ids=["left", "packed", "interleaved", "right"],
    )
    def test_the_queries_may_be_the_last_of_the_keys(self, backend, queries, mask):
        query, key, value, upstream = draw(2, (4, 2), 50)
        types, mask = random_types(2, 50), torch.tensor([mask, [1] * 50], device=DEVICE)
        results, first, rules = [], 50 - queries, LayerRules.of(HSAConfig(noise_window=5))
        for name, number in (("reference", 50), (backend, queries)):
            leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
            plan = AttentionPlan.from_inputs(types, mask, query_length=number)
            output, _ = run_attention(leaves[0][:, :, 50 - number :], *leaves[1:], plan, rules, name)
            assert output.shape[2] == number
            output = output[:, :, number - queries :]
            output.backward(upstream[:, :, first:])
            results.append([output.detach(), *(leaf.grad for leaf in leaves)])
        if queries:
            check(results[1], results[0], nonzero=queries > 10)


@pytest.mark.parametrize("backend", ALL)
class TestPadding:
    @pytest.mark.parametrize("padding", ["left", "right", "holes", "one token"])
    def test_poison_at_padding_does_not_leak(self, backend, padding):
        mask = torch.tensor(PADDINGS[padding], device=DEVICE)
        tensors, types = draw(2, (4, 2), 129), random_types(2, 129)
        clean = run(backend, tensors, types, attention_mask=mask)
        is_padding = (mask == 0)[:, None, :, None]
        poisoned = [tensor.masked_fill(is_padding, float("nan")) for tensor in tensors[:3]]
        outputs = run(backend, [*poisoned, tensors[3]], types, attention_mask=mask)
        for got, wanted in zip(outputs, clean, strict=True):
            assert got.isfinite().all()
            assert torch.equal(got, wanted)
        for gradient in outputs[1:]:
            assert (gradient.masked_select(is_padding) == 0).all()
        assert (outputs[0].masked_select(is_padding) == 0).all()

    def test_the_type_at_padding_does_not_matter(self, backend):
        mask = torch.tensor(PADDINGS["left"], device=DEVICE)
        tensors, types = draw(2, (4, 2), 129), random_types(2, 129)
        first, second = (
            run(backend, tensors, types.masked_fill(mask == 0, kind), attention_mask=mask) for kind in (0, 2)
        )
        assert all(torch.equal(*pair) for pair in zip(first, second))

    def test_a_row_that_is_all_padding(self, backend):
        mask = torch.ones(3, 70, dtype=torch.long, device=DEVICE)
        mask[1] = 0
        tensors, types = draw(3, (4, 2), 70), random_types(3, 70)
        outputs = run(backend, tensors, types, attention_mask=mask)
        assert all((tensor[1] == 0).all() and tensor.isfinite().all() for tensor in outputs)
        others = run(backend, [tensor[[0, 2]] for tensor in tensors], types[[0, 2]])
        check([tensor[[0, 2]] for tensor in outputs], others)

    @pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)], ids=str)
    @pytest.mark.parametrize("masked", [False, True])
    def test_nothing(self, backend, shape, masked):
        batch, length = shape
        types = torch.zeros(shape, dtype=torch.long, device=DEVICE)
        mask = torch.zeros_like(types) if masked else None
        outputs = run(backend, draw(batch, (4, 2), length), types, attention_mask=mask)
        assert outputs[0].shape == (batch, 4, length, SIZE)

    def test_promise_3_left_right_and_alone(self, backend):
        lengths, width = (23, 60, 1), 60
        alone, rows = [], {"left": [], "right": []}
        masks = {"left": torch.zeros(3, width, device=DEVICE), "right": torch.zeros(3, width, device=DEVICE)}
        types = {side: torch.full((3, width), 2, device=DEVICE) for side in rows}
        samples = [(draw(1, (4, 2), length, seed=length), random_types(1, length, length)) for length in lengths]
        places = {"left": lambda n: slice(width - n, width), "right": lambda n: slice(0, n)}
        for row, (length, (tensors, kinds)) in enumerate(zip(lengths, samples)):
            alone.append(run(backend, tensors, kinds))
            for side, place in places.items():
                masks[side][row, place(length)] = 1
                types[side][row, place(length)] = kinds[0]

        for side, place in places.items():
            padded = draw(3, (4, 2), width, seed=99)
            for row, (length, (tensors, _)) in enumerate(zip(lengths, samples)):
                for whole, sample in zip(padded, tensors):
                    whole[row, :, place(length)] = sample[0]
            outputs = run(backend, padded, types[side], attention_mask=masks[side])
            for row, length in enumerate(lengths):
                check([tensor[row : row + 1, :, place(length)] for tensor in outputs], alone[row], nonzero=length > 1)

    def test_promise_4_packed_and_alone(self, backend):
        lengths = (40, 1, 77, 2, 60)
        samples = [(draw(1, (4, 2), length, seed=length), random_types(1, length, length)) for length in lengths]
        tensors = [torch.cat(parts, dim=2) for parts in zip(*(sample[0] for sample in samples))]
        types = torch.cat([kinds for _, kinds in samples], dim=1)
        alone = [run(backend, *sample) for sample in samples]
        for options in ({"attention_mask": numbered(*lengths)}, {"document_ids": numbered(*lengths) - 3}):
            parts = [tensor.split(lengths, dim=2) for tensor in run(backend, tensors, types, **options)]
            for index, expected in enumerate(alone):
                check([part[index] for part in parts], expected, nonzero=lengths[index] > 2)


@pytest.mark.parametrize("config", [HSAConfig(), HSAConfig(landmark_window=280, global_decay=2, hide=[(0, 1)])])
def test_blockwise_with_blocks_as_small_as_they_get_and_nothing_kept(config, monkeypatch):
    tensors, types = draw(1, (4, 2), 400), some_types("trajectory", 1, 400)
    expected = run("blockwise", tensors, types, config)
    check(expected, run("reference", tensors, types, config))
    monkeypatch.setattr(segment, "_BLOCK_BYTES", 0)
    monkeypatch.setattr(segment, "_KEPT_BYTES", 0)
    check(run("blockwise", tensors, types, config), expected)


@pytest.mark.parametrize("length", [1023, 1024, 1100])
def test_auto_agrees_with_the_reference_at_the_lengths_where_its_choice_changes(length):
    tensors, types = draw(1, (2, 1), length), some_types("trajectory", 1, length)
    check(run("auto", tensors, types), run("reference", tensors, types))


def test_auto_agrees_with_the_reference_and_serves_every_argument():
    query, key, value, _ = draw(1, (4, 2), 60)
    types = random_types(1, 60)
    plan, sliding = AttentionPlan.from_inputs(types), {"rules": LayerRules.of(HSAConfig(), 5)}
    for argument in ({}, {"softcap": 1.0}, {"sinks": torch.zeros(4, device=DEVICE)}, sliding):
        argument = {"rules": DEFAULTS} | argument
        automatic, weights = run_attention(query, key, value, plan, backend="auto", **argument)
        expected, _ = run_attention(query, key, value, plan, backend="reference", **argument)
        assert weights is None
        assert (automatic - expected).abs().max() < TOLERANCE
    _, weights = run_attention(query, key, value, plan, DEFAULTS, "auto", output_attentions=True)
    assert weights.shape == (1, 4, 60, 60)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_bounds_of_low_precision_hold_for_a_kernel_that_rounds_and_not_for_one_that_is_wrong(dtype):
    for seed in range(25):
        tensors, types = draw(1, (4, 2), 5, seed), some_types("trajectory", 1, 5)
        mask = torch.tensor([[0, 1, 1, 1, 1]], device=DEVICE)
        plan = AttentionPlan.from_inputs(types, mask)
        exact, errors = bounds(tensors, plan, HSAConfig(), dtype)
        check_within(fused(tensors, plan, HSAConfig(), dtype), exact, errors, mask)
        slower = [tensor * 1.1 for tensor in tensors[:2]]  # logits that are a fifth too large
        with pytest.raises(AssertionError, match="beyond what rounding explains"):
            check_within(fused([*slower, *tensors[2:]], plan, HSAConfig(), dtype), exact, errors, mask)
