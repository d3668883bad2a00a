"""Requests in a paged cache as an engine leaves it, and what attention must make of them. Imports no vLLM."""

from dataclasses import dataclass

import numpy as np
import torch

from hsa_factory.attention import AttentionPlan
from hsa_factory.attention.api import run_attention
from hsa_factory.models.cache.tagger import ConstantTagger
from hsa_factory.vllm.paged.attention import Forward, queries_of_a_block, works_of
from hsa_factory.vllm.paged.pages import pieces_of
from hsa_factory.vllm.paged.type_table import TypeTable
from hsa_factory.vllm.tokens import TokenTypes
from hsa_factory.vllm.types import PromptTypes


HEADS, KV_HEADS, SIZE, PAGES = 4, 2, 16, 64
SHAPES = [(100, 100), (37, 5), (150, 1), (1, 1), (16, 16), (17, 1), (129, 40)]
"""Tokens of each request, and how many of them, the last, are queries of this forward: whole prompts, chunks, decoding."""


def runs(rng, length, most=30):
    """Return types in runs."""
    types = []
    while len(types) < length:
        types += [int(rng.choice(3, p=[0.1, 0.2, 0.7]))] * int(rng.integers(1, most))
    return np.array(types[:length], np.uint8)


def tokens_of(rng, length, rules):
    turns = np.sort(rng.integers(0, 6, length)) if rules.has_turns else None
    return TokenTypes(PromptTypes(runs(rng, length), turns), ConstantTagger(2), [rules])


@dataclass
class Case:
    """A forward.

    Attributes:
        requests: (tokens, queries), as in `SHAPES`.
        tokens: Types of each request.
        query: (T, HEADS, SIZE).
        keys: Of each request, (tokens, KV_HEADS, 2·SIZE).
        cache: (PAGES·page size, KV_HEADS, 2·SIZE); NaN where nothing can be seen any more.
        forward: What the kernel is told; where a page was given back, the block table names that of another request.
        page: Tokens of a page.
    """

    requests: list
    tokens: list
    query: torch.Tensor
    keys: list
    cache: torch.Tensor
    forward: Forward
    page: int


def make_case(rules, requests=SHAPES, page=16, seed=0, device="cpu", dtype=torch.float32, tokens=None, heads=HEADS):
    """Lay requests into a cache as an engine would have, and prepare a forward."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    tokens = tokens or [tokens_of(rng, length, rules) for length, _ in requests]
    pieces, place = [], 0
    for row, ((length, number), known) in enumerate(zip(requests, tokens)):
        pieces += pieces_of(row, place, number, length, known)
        place += number
    keys = [torch.randn(length, KV_HEADS, 2 * SIZE, generator=generator) for length, _ in requests]
    cache, table = _lay(rng, requests, tokens, keys, page)
    longest = -(-max(length for length, _ in requests) // page) * page
    types = TypeTable(longest, torch.device(device), rules.has_turns)
    rows = types.rows_for([(piece.tokens, piece.start) for piece in pieces])
    told = works_of(pieces, rows, page, queries_of_a_block(heads // KV_HEADS, dtype), torch.device(device))
    pages = torch.from_numpy(table).int().to(device)
    forward = Forward(*told, pages, types.types, types.turns, page)
    query = torch.randn(place, heads, SIZE, generator=generator)
    return Case(requests, tokens, query.to(device, dtype), keys, cache.to(device, dtype), forward, page)


def _lay(rng, requests, tokens, keys, page):
    """Write keys into free pages in any order; those that nobody can see again go to another request, or hold NaN."""
    free = list(rng.permutation(PAGES))
    cache = torch.full((PAGES, page, KV_HEADS, 2 * SIZE), float("nan"))
    table = np.zeros((len(requests), max(-(-length // page) for length, _ in requests)), np.int64)
    stale = []
    for row, ((length, number), known, own) in enumerate(zip(requests, tokens, keys)):
        for index in range(-(-length // page)):
            here = slice(index * page, min((index + 1) * page, length))
            if known.last[here].max() < length - number:
                stale.append((row, index))
                continue
            table[row, index] = free.pop()
            cache[table[row, index]] = 0
            cache[table[row, index], : here.stop - here.start] = own[here]
    used = table[table > 0]
    for row, index in stale:
        table[row, index] = rng.choice(used) if rng.random() < 0.5 else free[-1]
    return cache.view(-1, KV_HEADS, 2 * SIZE), table


def expected(case, rules):
    """Return (T, HEADS, SIZE): each request alone, by the product's own attention, each query with the types of its time."""
    answers, place = [], 0
    for (length, number), known, own in zip(case.requests, case.tokens, case.keys):
        for start, stop in known.pieces(length - number, length):
            types = torch.from_numpy(known.types_at(start)[:stop].astype(np.int64))[None]
            turns = None if known.turns is None else torch.from_numpy(known.turns[:stop].copy())[None]
            plan = AttentionPlan.from_inputs(types, query_length=stop - start, turn_ids=turns)
            key, value = (half.transpose(0, 1)[None] for half in own[:stop].split(SIZE, dim=-1))
            asked = case.query[place : place + stop - start].float().cpu().transpose(0, 1)[None]
            answer, _ = run_attention(asked, key, value, plan, rules, backend="reference", scale=SIZE**-0.5)
            answers.append(answer[0].transpose(0, 1))
            place += stop - start
    return torch.cat(answers)


def by_hand(query, cache, forward, rules, scale, output):
    """Do what the kernel does, and return which slots of the cache were read, and which of them seen, (T, S) each."""
    size, group = query.shape[2], query.shape[1] // cache.shape[1]
    read, seen = (torch.zeros(len(query), len(cache), dtype=torch.bool) for _ in range(2))
    window, reach = torch.tensor(rules.window_reach), torch.tensor(rules.turn_reach)
    decay = torch.tensor(rules.decays, dtype=torch.float64)
    for work in forward.works:
        for first, queries, position, row, batch, number, begin in work.blocks.tolist():
            pages = forward.numbers[begin : begin + number].long()
            asked, q = torch.arange(first, first + queries), torch.arange(position, position + queries)[:, None]
            k = (pages[:, None] * forward.page_size + torch.arange(forward.page_size)).flatten()
            slots = forward.table[batch].long()[k // forward.page_size] * forward.page_size + k % forward.page_size
            read[asked[:, None], slots] = True
            slots, k = slots[k < position + queries], k[k < position + queries]
            kinds, far = forward.types[row].long(), q - k
            is_seen = far <= window[kinds[k]]
            if rules.has_turns:
                turns = forward.turns[row]
                is_seen = (is_seen | (turns[q] - turns[k] <= reach[kinds[k]])) & (far <= rules.sliding_reach)
            for query_type, key_type in rules.hide:
                is_seen &= (kinds[q] != query_type) | (kinds[k] != key_type) | (far == 0)
            is_seen &= far >= 0
            seen[asked[:, None], slots] |= is_seen
            keys, values = (half.repeat_interleave(group, 1).float() for half in cache[slots].split(size, dim=-1))
            scores = torch.einsum("qhd,khd->hqk", query[asked].float(), keys) * scale - decay[kinds[k]] * far
            weights = scores.masked_fill(~is_seen, -torch.inf).softmax(-1).nan_to_num()
            output[asked] = torch.einsum("hqk,khd->qhd", weights, values.double()).to(output.dtype)
    return read, seen


def written(key, value, cache, slots):
    """Do what the kernel does that writes keys."""
    is_real = slots >= 0
    cache[slots[is_real]] = torch.cat([key, value], dim=-1)[is_real].to(cache.dtype)
