"""The kernels of CPUs give what the reference gives, whatever the batch, and read nothing that nobody sees."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite.binding import ffi
from paged_cases import SHAPES, runs

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan
from hsa_factory.attention.backends.reference import reference_attention
from hsa_factory.attention.layer_rules import LayerRules
from hsa_factory.models.cache.tagger import ConstantTagger
from hsa_factory.vllm.cpu import attention as module
from hsa_factory.vllm.cpu import let_vllm_look
from hsa_factory.vllm.cpu.attention import Forward, Piece, sight_of
from hsa_factory.vllm.cpu.keys import KeysByType
from hsa_factory.vllm.tokens import TokenTypes
from hsa_factory.vllm.types import PromptTypes


RULES = {
    "default": LayerRules.of(HSAConfig()),
    "none": LayerRules(),
    "all fade": LayerRules.of(HSAConfig(global_decay=0.01, landmark_decay=0.1, noise_window=30)),
    "windows": LayerRules.of(HSAConfig(noise_window=0, landmark_window=70, noise_decay=0, landmark_decay=0)),
    "turns": LayerRules.of(HSAConfig(noise_turns=1, landmark_turns=2, landmark_window=3)),
    "turns alone": LayerRules.of(HSAConfig(noise_turns=0), sliding_window=60),
    "hidden": LayerRules.of(HSAConfig(hide=[["NOISE", "LANDMARK"], ["GLOBAL", "GLOBAL"]])),
    "sliding": LayerRules.of(HSAConfig(), sliding_window=33),
}
HEADS = [(4, 4, 8), (9, 1, 100), (2, 1, 128)]


@pytest.fixture(autouse=True)
def threads(request):
    """Run with so many threads, one where a test does not say."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request, "param", 1))
    yield
    torch.set_num_threads(before)


class Requests:
    """A batch in a cache as an engine leaves it: NaN where nobody sees anything, blocks given back named after others'."""

    def __init__(self, rules, heads, dtype=torch.float32, shapes=SHAPES, block=16, seed=0):
        rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        self.rules, self.shapes, self.block = rules, shapes, block
        self.asked_heads, self.heads, self.size = heads
        self.held = [torch.randn(length, self.heads, 2 * self.size, generator=generator) for length, _ in shapes]
        self.held = [held.to(dtype) for held in self.held]
        self.tokens = [self._tokens(rng, length) for length, _ in shapes]
        number = sum(queries for _, queries in shapes)
        self.query = torch.randn(number, self.asked_heads, self.size, generator=generator).to(dtype)
        self._fill(rng, dtype)

    def _tokens(self, rng, length):
        turns = np.sort(rng.integers(0, 6, length)) if self.rules.has_turns else None
        return TokenTypes(PromptTypes(runs(rng, length), turns), ConstantTagger(2), [self.rules])

    def _fill(self, rng, dtype):
        most = max(-(-length // self.block) for length, _ in self.shapes)
        pages = rng.permutation(len(self.shapes) * most).reshape(len(self.shapes), most).astype(np.int32)
        self.cache = torch.full((pages.size, self.heads, self.block, 2 * self.size), float("nan"), dtype=dtype)
        self.pages = pages
        for (length, queries), held, tokens, table in zip(self.shapes, self.held, self.tokens, pages):
            seen = np.flatnonzero(tokens.last[: length - queries] >= length - queries)
            self.cache[table[seen // self.block], :, seen % self.block] = held[seen]
            is_needed = np.zeros(most, bool)
            is_needed[np.append(seen, np.arange(length - queries, length)) // self.block] = True
            table[~is_needed] = pages[0, 0]

    def answer(self, repeat=1):
        pieces, slots, place = [], [], 0
        for (length, queries), tokens, table in zip(self.shapes, self.tokens, self.pages):
            keys = KeysByType(self.heads, self.block)
            keys.grow(tokens.types, length, table)
            pieces.append(Piece(place, length - queries, length, tokens.types, tokens.turns, keys))
            at = np.arange(length - queries, length)
            slots.append(table[at // self.block].astype(np.int64) * self.block + at % self.block)
            place += queries
        group = self.asked_heads // self.heads
        self.forward = Forward(pieces, np.concatenate(slots), group, self.heads, self.size)
        new = torch.cat([held[length - queries :] for (length, queries), held in zip(self.shapes, self.held)])
        found = torch.full_like(self.query, float("nan"))
        key, value = new.split(self.size, dim=-1)  # their rows do not follow each other
        for _ in range(repeat):
            self.forward.attend(self.query, key, value, self.cache, sight_of(self.rules, 0.3), found)
        return found

    def expected(self):
        answers, place = [], 0
        for (length, queries), tokens, held in zip(self.shapes, self.tokens, self.held):
            turns = None if tokens.turns is None else torch.from_numpy(tokens.turns.copy())[None]
            types = torch.from_numpy(tokens.types.astype(np.int64))[None]
            plan = AttentionPlan.from_inputs(types, query_length=queries, turn_ids=turns)
            key, value = (half.float().transpose(0, 1)[None] for half in held.split(self.size, dim=-1))
            asked = self.query[place : place + queries].float().transpose(0, 1)[None]
            answer, _ = reference_attention(asked, key, value, plan, self.rules, scale=0.3)
            answers.append(answer[0].transpose(0, 1))
            place += queries
        return torch.cat(answers)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("heads", HEADS)
def test_as_the_reference(name, heads):
    requests = Requests(RULES[name], heads)
    assert torch.allclose(requests.answer(repeat=2), requests.expected(), atol=5e-6)


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.parametrize("name", ["default", "turns", "hidden"])
def test_half_the_bits(name, dtype, bound):
    requests = Requests(RULES[name], (4, 4, 8), dtype)
    found, right = requests.answer(), requests.expected()
    assert found.dtype is dtype
    assert torch.allclose(found.float(), right, rtol=bound, atol=1e-5)  # rounded once


@pytest.mark.parametrize("block", [4, 7, 32])
def test_blocks_of_any_size(block):
    requests = Requests(RULES["default"], (4, 2, 16), block=block)
    assert torch.allclose(requests.answer(), requests.expected(), atol=5e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(RULES)),
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 150)), min_size=1, max_size=4),
    st.integers(0, 2**16),
)
def test_any_batch(name, shapes, seed):
    shapes = [(before + queries, queries) for before, queries in shapes]
    requests = Requests(RULES[name], (4, 2, 16), shapes=shapes, seed=seed)
    assert torch.allclose(requests.answer(), requests.expected(), atol=5e-6)


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("queries", [1, 2, 30])
def test_keys_are_divided_where_there_are_threads_for_it(name, queries):
    requests = Requests(RULES[name], (4, 1, 8), shapes=[(1300, queries)])
    assert torch.allclose(requests.answer(), requests.expected(), atol=5e-6)
    assert requests.forward._tiles["parts"].tolist() == [2, 2]


@pytest.mark.parametrize("first", [-7, -(2**31) + 1, 2**31 - 6])
@pytest.mark.parametrize("rules", [RULES["turns"], RULES["sliding"]], ids=["counted", "of another layer"])
def test_turns_may_have_any_numbers(rules, first):
    """Numbers of turns that a request may give, in layers that count them and in those that do not."""
    requests = Requests(RULES["turns"], (2, 1, 128), shapes=[(100, 100), (37, 37)])
    requests.rules = rules
    for tokens in requests.tokens:
        tokens.turns[:] += first
    assert torch.allclose(requests.answer(), requests.expected(), atol=5e-6)


def test_nothing_overflows():
    """Logits far apart, as a broken model may have them: a query sees the key that the reference says, but for near ties."""
    requests = Requests(RULES["all fade"], (2, 1, 128))
    requests.query *= 1e4
    found = requests.answer()
    assert found.isfinite().all()
    assert torch.isclose(found, requests.expected(), atol=1e-4).float().mean() > 0.98


def test_what_is_no_number_is_not_lost():
    requests = Requests(RULES["default"], (2, 1, 128), shapes=[(80, 80), (70, 1)])
    requests.held[0][40, 0, 3] = float("nan")
    found = requests.answer()
    assert found[:40].isfinite().all() and found[40:80].isnan().all()
    assert found[80:].isfinite().all()  # another request


def test_keys_come_one_by_one_or_at_once(rng):
    types, table = runs(rng, 300), rng.permutation(20).astype(np.int32)
    at_once, grown = KeysByType(2, 16), KeysByType(2, 16)
    at_once.grow(types, 300, table)
    for stop in (1, 1, 17, 100, 99, 101, 300):
        grown.grow(types[:stop], stop, table)
    assert grown.number == at_once.number == 300
    assert grown.numbers.tolist() == at_once.numbers.tolist() == np.bincount(types, minlength=3).tolist()
    for kind, number in enumerate(grown.numbers):
        places = np.flatnonzero(types == kind)
        for keys in (grown, at_once):
            assert keys.places[kind, :number].tolist() == places.tolist()
            assert keys.slots[kind, :number].tolist() == (table[places // 16] * 32 + places % 16).tolist()


NARROWER = {8: ("haswell", "+avx,+avx2,+bmi2,+f16c,+fma,+sse4.2"), 4: ("generic", "+sse2")}


def test_narrower_registers():
    """What is compiled for processors without AVX-512, and for those without AVX2; both at once, as it takes long."""
    code = """
import pytest, sys, torch
sys.path[:0] = sys.argv[2:]
torch.set_num_threads(1)
from test_engine_cpu_kernels import RULES, Requests
from hsa_factory.vllm.cpu.instructions import LANES
from hsa_factory.vllm.cpu.kernels import kernels_for
assert LANES == int(sys.argv[1])
requests = Requests(RULES["turns"], (6, 2, 24))
assert torch.allclose(requests.answer(), requests.expected(), atol=5e-6)
if LANES == 4:
    with pytest.raises(ValueError, match="F16C"):
        kernels_for(24, "float16")
"""
    paths = [str(Path(__file__).parent), *sys.path]
    started = []
    for lanes, (name, features) in NARROWER.items():
        environment = os.environ | {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
        command = [sys.executable, "-c", code, str(lanes), *paths]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)


def test_vllm_may_look_at_what_numba_loads(monkeypatch):
    """Also where somebody has asked before: an engine starts where numba was imported."""
    monkeypatch.delitem(ffi.lib._fntab, "__dict__", raising=False)
    assert not isinstance(vars(ffi.lib), dict)
    let_vllm_look()
    assert vars(ffi.lib).get("kernel") is None


def test_a_tile_is_as_large_as_its_memory():
    """As many query heads as a tile has rows, and more."""
    for heads in (256, 300):
        requests = Requests(RULES["default"], (heads, 1, 8), shapes=[(20, 3)])
        assert module._ROWS <= heads
        assert torch.allclose(requests.answer(), requests.expected(), atol=5e-6)
