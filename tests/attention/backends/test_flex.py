"""The flex backend: its mask, score and block lists against the reference on CPU, the compiled kernel on CUDA."""

from types import SimpleNamespace

import pytest
import torch
from halves import half_long
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules, hsa_attention, reference_attention
from hsa_factory.attention.backends import flex


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
CONFIGS = {
    "defaults": HSAConfig(),
    "no window": HSAConfig(noise_window=None),
    "windows": HSAConfig(landmark_window=280, global_window=7, noise_window=0),
    "steep": HSAConfig(global_decay=2.0, landmark_decay=0.3),
    "hide": HSAConfig(hide=[("GLOBAL", "NOISE"), (0, 0), (1, 2)]),
}
DEFAULTS, NO_WINDOW = LayerRules.of(HSAConfig()), LayerRules.of(HSAConfig(noise_window=None))


def draw(batch, heads, kv_heads, length, query_length=None, size=16):
    generator = torch.Generator().manual_seed(length)
    shapes = ((heads, query_length or length), (kv_heads, length), (kv_heads, length))
    return [torch.randn(batch, *shape, size, generator=generator) for shape in shapes]


def random_types(batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(torch.tensor([0.05, 0.1, 0.85]), batch * length, True, generator=generator).view(
        batch, -1
    )


def compare(plan, tensors, rules=DEFAULTS, **options):
    """Run the functions without a kernel, and the reference."""
    output = flex.flex_hsa_attention(*tensors, plan, rules, compiled=False, **options)
    expected, _ = reference_attention(*tensors, plan, rules, **options)
    padding = plan.document_ids[:, plan.key_length - plan.query_length :] == 0
    assert output.isfinite().all() and (output[padding[:, None].expand(output.shape[:3])] == 0).all()
    expected = expected.masked_fill(padding[:, None, :, None], 0)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=2e-6)


def listed_blocks(numbers, indices):
    """Return (B, query blocks, key blocks) bool of a block mask's lists."""
    columns = indices.shape[-1]
    is_listed = torch.arange(columns) < numbers[..., None]
    blocks = torch.zeros(*indices.shape[:-1], columns + 1, dtype=torch.bool)
    return blocks.scatter(-1, indices.long().where(is_listed, columns), True)[:, 0, :, :columns]


def check_blocks(plan, rules=DEFAULTS):
    """No visible pair is left out, and a block without a mask holds visible pairs only."""
    mask = plan.once(flex.FlexMask, rules)
    visible = plan.dense_bias(torch.float32, rules)[:, 0] > float("-inf")
    offset = plan.key_length - plan.query_length
    visible &= (plan.document_ids[:, offset:] != 0)[:, :, None]  # a padded query's view of itself is nobody's concern
    if mask.order is not None:
        visible = visible.take_along_dim(mask.order[:, None], dim=2)
    block_mask = mask.block_mask
    partial = listed_blocks(block_mask.kv_num_blocks, block_mask.kv_indices)
    full = listed_blocks(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    assert torch.equal(listed_blocks(block_mask.q_num_blocks, block_mask.q_indices), partial.transpose(1, 2))
    assert torch.equal(listed_blocks(block_mask.full_q_num_blocks, block_mask.full_q_indices), full.transpose(1, 2))
    assert not (partial & full).any()
    spread = (partial | full).repeat_interleave(128, 1).repeat_interleave(128, 2)
    assert not (visible & ~spread[:, : plan.query_length, : plan.key_length]).any()
    spread = full.repeat_interleave(128, 1).repeat_interleave(128, 2)[:, : plan.query_length, : plan.key_length]
    assert visible[spread].all()
    return partial, full


class TestFunctionsEqualTheReference:
    @pytest.mark.parametrize(("config", "length"), half_long(list(CONFIGS.values()), [1, 2, 127, 129, 300]))
    def test_rules_and_lengths(self, config, length):
        mask = torch.ones(2, length, dtype=torch.long)
        mask[1, : length // 3] = 0
        compare(AttentionPlan.from_inputs(random_types(2, length), mask), draw(2, 4, 2, length), LayerRules.of(config))

    @pytest.mark.parametrize("heads", [(1, 1), (3, 3), (8, 2), (6, 1)])
    def test_heads(self, heads):
        compare(AttentionPlan.from_inputs(random_types(1, 140)), draw(1, *heads, 140))

    @pytest.mark.parametrize("documents", ["sorted", "interleaved", "holes"])
    @pytest.mark.parametrize("config", [HSAConfig(), CONFIGS["hide"]])
    def test_documents(self, documents, config):
        numbers = {
            "sorted": torch.arange(260) // 37 + 5,
            "interleaved": torch.arange(260) % 3 + 1,
            "holes": torch.where(torch.arange(260) % 50 < 7, 0, 1 + torch.arange(260) // 100),
        }[documents]
        compare(
            AttentionPlan.from_inputs(random_types(1, 260), numbers[None]), draw(1, 2, 1, 260), LayerRules.of(config)
        )

    def test_the_last_queries_and_a_sliding_window(self):
        plan = AttentionPlan.from_inputs(random_types(2, 260), query_length=9)
        compare(plan, draw(2, 4, 2, 260, 9))
        compare(plan, draw(2, 4, 2, 260, 9), LayerRules.of(HSAConfig(), 40))
        compare(plan, draw(2, 4, 2, 260, 9), LayerRules.plain(), scale=0.3)

    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
    def test_missing_keys(self, config):
        kept = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.6
        kept[[0, 399]] = True
        positions = kept.nonzero().flatten()[None]
        plan = AttentionPlan.from_inputs(random_types(1, 400)[:, kept], query_length=100, positions=positions)
        compare(plan, draw(1, 4, 2, positions.shape[1], 100), LayerRules.of(config))
        check_blocks(plan, LayerRules.of(config))

    def test_poisoned_padding(self):
        mask = torch.tensor([[0] * 30 + [1] * 150, [1] * 100 + [0] * 80])
        plan = AttentionPlan.from_inputs(random_types(2, 180), mask)
        tensors = draw(2, 4, 2, 180)
        clean = flex.flex_hsa_attention(*tensors, plan, DEFAULTS, compiled=False)
        poisoned = [tensor.masked_fill((mask == 0)[:, None, :, None], float("nan")) for tensor in tensors]
        assert torch.equal(flex.flex_hsa_attention(*poisoned, plan, DEFAULTS, compiled=False), clean)


class TestBlockLists:
    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_cover_what_is_visible(self, data):
        length = data.draw(st.integers(1, 700))
        types = random_types(2, length, data.draw(st.integers(0, 99)))
        if data.draw(st.booleans()):
            types = types.sort(descending=True, dim=1).values
        documents = data.draw(st.sampled_from(["one", "sorted", "interleaved"]))
        mask = torch.ones(2, length, dtype=torch.long)
        if documents == "sorted":
            mask = torch.arange(length).expand(2, -1) // data.draw(st.integers(1, 400)) + 1
        if documents == "interleaved":
            mask = torch.arange(length).expand(2, -1) % 3 + 1
        mask = mask.clone()
        mask[0, : data.draw(st.integers(0, length))] = 0
        mask[1, data.draw(st.integers(0, length)) :] = 0
        window = st.one_of(st.none(), st.integers(0, 300))
        turns = st.sampled_from([None, 0, 1, 3])
        config = HSAConfig(
            noise_window=data.draw(window),
            landmark_window=data.draw(window),
            noise_turns=data.draw(turns),
            landmark_turns=data.draw(turns),
            hide=data.draw(st.sampled_from([(), [(1, 2)]])),
        )
        queries = data.draw(st.integers(1, length))
        turn_ids = torch.arange(length).expand(2, -1) // data.draw(st.integers(1, 300))
        plan = AttentionPlan.from_inputs(types, mask, query_length=queries, turn_ids=turn_ids)
        check_blocks(plan, LayerRules.of(config, data.draw(st.sampled_from([None, 1, 90]))))

    def test_scattered_memory_is_as_cheap_as_it_can_be(self):
        length = 8192
        types = torch.where(torch.rand(1, length, generator=torch.Generator().manual_seed(0)) < 0.05, 1, 2)
        partial, full = check_blocks(AttentionPlan.from_inputs(types))
        computed = int((partial | full).sum()) * 128 * 128
        memory = int((types == 1).sum())
        assert computed < 1.2 * (length * memory / 2 + length * 3 * 128)
        assert full.any() and int(partial.sum(2).max()) <= 5  # 2 or 3 of the strip, one memory block being filled

    @pytest.mark.parametrize(
        ("config", "documents"),
        half_long(
            [
                HSAConfig(),
                HSAConfig(noise_turns=0),
                HSAConfig(noise_turns=2),
                HSAConfig(noise_turns=0, landmark_turns=3),
                HSAConfig(landmark_window=700),
            ],
            ["one", "packed", "padded"],
        ),
    )
    def test_no_block_is_listed_in_vain(self, config, documents):
        """Nowhere, the seams between the runs of keys included, where a run's first key is far from the last one."""
        length = 3000
        numbers = {
            "one": torch.ones(length),
            "packed": torch.arange(length) // 700 + 1,
            "padded": torch.arange(length) >= 777,
        }[documents].long()[None]
        types = random_types(1, length)
        plan = AttentionPlan.from_inputs(types, numbers, turn_ids=torch.arange(length)[None] // 430)
        rules = LayerRules.of(config)
        partial, full = check_blocks(plan, rules)
        mask = plan.once(flex.FlexMask, rules)
        visible = plan.dense_bias(torch.float32, rules)[0, 0] > float("-inf")
        visible &= (numbers != 0)[0, :, None]
        visible = torch.nn.functional.pad(visible[:, mask.order[0]], (0, 72, 0, 72))
        needed = visible.view(24, 128, 24, 128).any(3).any(1)
        assert torch.equal((partial | full)[0], needed)

    def test_missing_keys_and_documents_out_of_order_leave_full_blocks(self):
        places = torch.arange(0, 1200, 2)[None]
        _, full = check_blocks(AttentionPlan.from_inputs(torch.ones(1, 600).long(), positions=places))
        assert int(full.sum()) == 10
        documents = torch.tensor([[2] * 300 + [1] * 600 + [2] * 300])
        _, full = check_blocks(AttentionPlan.from_inputs(torch.ones(1, 1200).long(), documents))
        assert int(full.sum()) >= 5

    def test_no_windows_no_reordering(self):
        plan = AttentionPlan.from_inputs(random_types(1, 300))
        assert plan.once(flex.FlexMask, NO_WINDOW).order is None
        partial, full = check_blocks(plan, NO_WINDOW)
        assert int(full.sum()) == 3 and int(partial.sum()) == 3

    def test_made_once_for_all_layers(self):
        plan = AttentionPlan.from_inputs(random_types(1, 300))
        assert plan.once(flex.FlexMask, DEFAULTS) is plan.once(flex.FlexMask, LayerRules.of(HSAConfig()))
        assert plan.once(flex.FlexMask, DEFAULTS) is not plan.once(flex.FlexMask, LayerRules.of(HSAConfig(), 10))


class TestReorder:
    def test_gradients(self):
        places = torch.stack([torch.randperm(7) for _ in range(2)])
        order = flex._end_to_end(places)
        inverse = flex._end_to_end(places.argsort(dim=1))
        tensor = torch.randn(2, 3, 7, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda tensor: flex._Reorder.apply(tensor, order, inverse), tensor)


class TestCompilation:
    def compile(self, monkeypatch):
        counter = CompileCounter()
        compiled = torch.compile(flex._attend, fullgraph=True, dynamic=True, backend=counter)
        monkeypatch.setattr(flex, "_compiled_attend", lambda device_type: compiled)
        torch._dynamo.reset()
        return counter

    def test_lengths_types_and_rules_share_kernels(self, monkeypatch):
        counter = self.compile(monkeypatch)
        for length in (256, 512, 1000, 2048, 130):  # as many blocks as heads of keys, heads, then a head's 16 numbers
            plan = AttentionPlan.from_inputs(random_types(1, length))
            flex.flex_hsa_attention(*draw(1, 4, 2, length), plan, LayerRules.of(HSAConfig(noise_window=length // 10)))
        assert counter.frame_count == 1

    def test_the_recompile_limit_is_an_error(self, monkeypatch):
        self.compile(monkeypatch)
        plan = AttentionPlan.from_inputs(random_types(1, 140))
        with torch._dynamo.config.patch(recompile_limit=1):
            flex.flex_hsa_attention(*draw(1, 4, 2, 140), plan, DEFAULTS)
            with pytest.raises(RuntimeError, match="once more than torch allows.*recompile_limit.*blockwise"):
                flex.flex_hsa_attention(*draw(1, 4, 2, 140, size=32), plan, DEFAULTS)


class TestKernelOptions:
    def options(self, size=64, dtype=torch.bfloat16, length=4096, device="cuda"):
        query = SimpleNamespace(shape=(1, 8, length, size), dtype=dtype, device=torch.device(device))
        return flex._kernel_options(query)

    def test_heads_of_64_in_half_precision(self):
        options = self.options()
        assert options == self.options(dtype=torch.float16) == self.options(length=flex.BLOCK)
        assert flex.BLOCK % options["fwd_BLOCK_M"] == flex.BLOCK % options["fwd_BLOCK_N"] == 0
        assert options["bwd_num_stages"] == 2

    @pytest.mark.parametrize(
        "other", [{"size": 128}, {"size": 32}, {"dtype": torch.float32}, {"length": 1}, {"device": "cpu"}], ids=str
    )
    def test_all_else_is_left_to_torch(self, other):
        assert self.options(**other) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="the error without CUDA")
def test_without_cuda_it_is_an_error():
    query, key, value = draw(1, 2, 1, 20)
    with pytest.raises(ValueError, match="'flex' needs CUDA. Available here: auto, reference, dense, blockwise"):
        hsa_attention(query, key, value, random_types(1, 20), HSAConfig(), backend="flex")


@needs_cuda
class TestKernel:
    @pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-4), (torch.bfloat16, 3e-2)])
    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
    @pytest.mark.parametrize("length", [200, 1000])
    def test_outputs_and_gradients(self, config, length, dtype, tolerance):
        mask = torch.ones(2, length, dtype=torch.long, device="cuda")
        mask[1, : length // 3] = 0
        plan = AttentionPlan.from_inputs(random_types(2, length).cuda(), mask)
        tensors = draw(2, 4, 2, length, size=64)
        results = []
        for run, kind in ((flex.flex_hsa_attention, dtype), (reference_attention, torch.float32)):
            leaves = [tensor.to("cuda", dtype).to(kind).requires_grad_() for tensor in tensors]
            output = run(*leaves, plan, LayerRules.of(config))
            output = output if isinstance(output, torch.Tensor) else output[0]
            output = output.masked_fill((mask == 0)[:, None, :, None], 0)
            output.float().pow(2).sum().backward()
            results.append([output.float(), *(leaf.grad.float() for leaf in leaves)])
        for actual, expected in zip(*results):
            assert (actual - expected).abs().max() <= tolerance * expected.abs().max()

    def test_a_cpu_tensor_is_an_error(self):
        query, key, value = draw(1, 2, 1, 20)
        with pytest.raises(ValueError, match="'flex' needs tensors on CUDA, got cpu"):
            hsa_attention(query, key, value, random_types(1, 20), HSAConfig(), backend="flex")
