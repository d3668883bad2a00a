"""Attention over pages: what the kernel is told, done by hand, and the kernel itself, against the product's own attention."""

import os

import numpy as np
import pytest
import torch
from paged_cases import PAGES, SIZE, by_hand, expected, make_case, tokens_of, written
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import create_function_from_signature

from hsa_factory import HSAConfig
from hsa_factory.attention import LayerRules
from hsa_factory.models.generation.rule_tagger import make_tagger
from hsa_factory.vllm.paged import attention
from hsa_factory.vllm.paged.attention import attend, queries_of_a_block, write
from hsa_factory.vllm.paged.pages import blocks_of, pieces_of
from hsa_factory.vllm.paged.type_table import TypeTable
from hsa_factory.vllm.tokens import TokenTypes
from hsa_factory.vllm.types import PromptTypes


RULES = {
    "defaults": LayerRules.of(HSAConfig()),
    "narrow": LayerRules.of(HSAConfig(noise_window=3, landmark_window=20, landmark_decay=0.1)),
    "nothing fades": LayerRules.of(HSAConfig(noise_window=0, noise_decay=0, landmark_decay=0)),
    "hidden": LayerRules.of(HSAConfig(noise_window=30, hide=[("GLOBAL", "NOISE"), ("NOISE", "NOISE"), (1, 0)])),
    "turns": LayerRules.of(HSAConfig(noise_turns=0, landmark_turns=2)),
    "turns and windows": LayerRules.of(HSAConfig(noise_turns=1, noise_window=10, hide=[(0, 2)]), 60),
    "the model's window": LayerRules.of(HSAConfig(noise_window=None), 25),
    "no HSA": LayerRules.plain(),
}


ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
runs_kernels = pytest.mark.skipif(
    not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1", reason="needs CUDA, or TRITON_INTERPRET=1 from the start"
)


def answer_by_hand(case, rules):
    answer = torch.full_like(case.query, torch.nan)
    return answer, *by_hand(case.query, case.cache, case.forward, rules, SIZE**-0.5, answer)


def answer_of_the_kernel(case, rules):
    answer = torch.full_like(case.query, torch.nan)
    attend(case.query, case.cache, case.forward, rules, SIZE**-0.5, answer)
    return answer.float().cpu()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("page", [16, 32])
def test_the_same_as_each_request_alone(name, page):
    rules = RULES[name]
    case = make_case(rules, page=page, seed=len(name))
    answer, read, _ = answer_by_hand(case, rules)
    torch.testing.assert_close(answer, expected(case, rules), atol=2e-5, rtol=0)
    assert read.sum() < read.numel() / 2


@pytest.mark.parametrize("name", ["narrow", "turns", "the model's window"])
def test_pages_without_a_key_in_sight_are_not_read(name):
    """Nor are they there: they hold NaN, or keys of another request, at another place in it."""
    case = make_case(RULES[name], requests=[(400, 16), (300, 1)])
    _, read, seen = answer_by_hand(case, RULES[name])
    is_nan = case.cache.isnan().any(-1).any(-1)
    assert is_nan.any() and not (read & is_nan).any()
    for queries in (slice(0, 16), slice(16, 17)):  # a block each
        by_page = (slots[queries].view(-1, PAGES, 16).any(2).any(0) for slots in (read, seen))
        assert torch.equal(*by_page)  # each page that is read has something to see


@runs_kernels
@pytest.mark.parametrize("name", RULES)
def test_the_kernel(name):
    case = make_case(RULES[name], page=32 if name == "defaults" else 16, seed=len(name), device=DEVICE)
    torch.testing.assert_close(answer_of_the_kernel(case, RULES[name]), expected(case, RULES[name]), atol=2e-5, rtol=0)


@runs_kernels
def test_three_heads_to_a_key_head():
    rules = RULES["turns and windows"]
    case = make_case(rules, requests=[(100, 100), (150, 1), (60, 7)], device=DEVICE, heads=6)
    torch.testing.assert_close(answer_of_the_kernel(case, rules), expected(case, rules), atol=2e-5, rtol=0)


class Compiled:
    """Stands for the kernel, and notes for what it would be compiled."""

    def __init__(self, kernel):
        backend = CUDABackend(GPUTarget("cuda", 90, 32))
        self.bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        self.kinds = set()

    def __getitem__(self, grid):
        return lambda *args, **options: self.kinds.add(str(self.bind(*args, **options, debug=False)[1:]))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled then")
def test_the_kernel_is_compiled_once_for_prompts_and_once_for_single_tokens(monkeypatch):
    """Whatever the numbers of requests and pages: where they begin in what is copied to the device is not always a round place."""
    compiled = Compiled(attention.attend_kernel)
    monkeypatch.setattr(attention, "attend_kernel", compiled)
    for seed in range(6):
        requests = [(30 * place + seed + 10, 1 if place % 2 else 7) for place in range(2 + seed)]
        answer_of_the_kernel(make_case(RULES["defaults"], requests=requests, seed=seed), RULES["defaults"])
    assert len(compiled.kinds) == 2, compiled.kinds


@pytest.mark.skipif(not ON_GPU, reason="needs CUDA")
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_in_half_precision(name, dtype):
    for seed in range(3):
        requests = [(400 + 7 * seed, 130), (300, 1), (33 + seed, 2), (1, 1)][: seed + 2]
        case = make_case(RULES[name], requests=requests, seed=seed, device=DEVICE, dtype=dtype)
        torch.testing.assert_close(
            answer_of_the_kernel(case, RULES[name]), expected(case, RULES[name]), atol=4e-2, rtol=0
        )


@runs_kernels
def test_new_keys_are_written_where_they_belong():
    """Those of a dry run, which have no place, nowhere; key and value lie within one row of a token, as vLLM makes them."""
    rng = np.random.default_rng(0)
    both = torch.randn(7, 2 * 3 * 20, device=DEVICE)
    key, value = (half.view(7, 3, 20) for half in both.split(60, dim=-1))
    slots = torch.from_numpy(rng.permutation(50)[:7]).to(DEVICE)
    slots[3] = -1
    cache, wanted = torch.zeros(2, 50, 3, 40, device=DEVICE)
    written(key, value, wanted, slots)
    write(key, value, cache, slots)
    assert torch.equal(cache, wanted) and (cache != 0).any(-1).any(-1).sum() == 6


RETYPING = HSAConfig(
    rules=[{"tag": ["m"], "type": "LANDMARK"}, {"tag": ["think"], "verbs": ["go"], "type": "NOISE"}], noise_window=4
)


def test_what_is_computed_anew_sees_what_it_saw_first(tiny_tokenizer):
    """Tokens that a closing tag typed anew, in one forward with the queries before it and those after it."""
    ids = tiny_tokenizer("I <m>open</m> it. <think>go to the table now</think> and <m>see</m> the apple")["input_ids"]
    rules = LayerRules.of(RETYPING)
    tokens = TokenTypes(
        PromptTypes(np.array([0, 2, 2, 1], np.uint8)), make_tagger(RETYPING, tiny_tokenizer), [rules], ids
    )
    tokens.read()
    assert len(tokens.events) > 1
    length = len(tokens)
    other = tokens_of(np.random.default_rng(0), 50, rules)
    case = make_case(rules, requests=[(length, length), (50, 3)], tokens=[tokens, other])
    answer, _, _ = answer_by_hand(case, rules)
    torch.testing.assert_close(answer, expected(case, rules), atol=2e-5, rtol=0)
    rows = torch.cat([work.blocks[:, 3] for work in case.forward.works])
    assert len(rows.unique()) == len(tokens.events) + 2


# -- the table ---------------------------------------------------------------------------------------------------


def read_row(table, row, tokens):
    assert table.types[row, : len(tokens)].tolist() == tokens.types.tolist()
    if table.turns is not None:
        assert table.turns[row, : len(tokens)].tolist() == tokens.turns.tolist()


def test_a_table_is_written_as_tokens_come(tiny_tokenizer):
    """Also what is typed anew; and rows of requests that are gone are used again."""
    table = TypeTable(256, torch.device("cpu"), has_turns=True)
    config = HSAConfig(rules=RETYPING.rules, noise_turns=1)
    ids = tiny_tokenizer("<m>open</m> it <think>go on</think> and <m>see</m>")["input_ids"]
    output = []
    prompt = PromptTypes(np.array([0, 1], np.uint8), np.array([3, 4]))
    tokens = TokenTypes(prompt, make_tagger(config, tiny_tokenizer), [LayerRules.of(config)], output)
    rows = set()
    for token in ids:
        output.append(token)
        tokens.read()
        rows.add(*table.rows_for([(tokens, len(tokens) - 1)]))
        read_row(table, *rows, tokens)
    assert len(rows) == 1 and tokens.events
    many = [tokens_of(np.random.default_rng(n), 100 + n, LayerRules.of(config)) for n in range(40)]
    found = table.rows_for([(None, 0), *((one, 0) for one in many)])
    assert found[0] == 0 and len(set(found)) == 41 and not rows & set(found) and not table.types[0].any()
    for row, one in zip(found[1:], many):
        read_row(table, row, one)
    read_row(table, *rows, tokens)
    size = len(table.types)
    del one, many
    again = [tokens_of(np.random.default_rng(n), 50, LayerRules.of(config)) for n in range(40)]
    for row, one in zip(table.rows_for([(one, 0) for one in again]), again):
        read_row(table, row, one)
    assert len(table.types) == size


def test_blocks_of_a_dry_run():
    blocks = blocks_of(pieces_of(0, 0, 20, 20, None) + pieces_of(1, 20, 1, 1, None), 16, 16)
    assert blocks.pieces.tolist() == [0, 0, 1] and blocks.number.tolist() == [1, 2, 1]
    assert blocks.places.tolist() == [0, 16, 20] and blocks.queries.tolist() == [16, 4, 1]
    assert blocks.positions.tolist() == [0, 16, 0] and blocks.pages.tolist() == [0, 0, 1, 0]


def test_blocks_are_as_large_as_a_product_lets_them():
    sizes = [queries_of_a_block(group, torch.bfloat16) for group in (1, 2, 3, 7, 8, 64, 200)]
    assert sizes == [64, 64, 32, 16, 16, 2, 1] and queries_of_a_block(2, torch.float32) == 16
