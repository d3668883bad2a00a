"""Requests in a paged cache as an engine leaves it, and what attention must make of them. Imports no vLLM."""

from dataclasses import dataclass

import numpy as np
import torch

from hsa_factory.attention import AttentionPlan
from hsa_factory.attention.api import run_attention
from hsa_factory.models.cache.tagger import ConstantTagger
from hsa_factory.vllm.paged.kernel import page_mask
from hsa_factory.vllm.paged.mods import Layout, mods_of
from hsa_factory.vllm.paged.pages import QUERIES, blocks_of, pieces_of
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
        table: (requests, pages), the block table; where a page was given back, that of another request stands in it.
        blocks: Of the forward.
        layout: Of the forward.
        mask: (T', columns) as the kernel gets it.
        score_mod: Likewise.
    """

    requests: list
    tokens: list
    query: torch.Tensor
    keys: list
    cache: torch.Tensor
    table: np.ndarray
    blocks: object
    layout: Layout
    mask: object
    score_mod: object


def make_case(rules, requests=SHAPES, page=16, seed=0, device="cpu", dtype=torch.float32, tokens=None, width=None):
    """Lay requests into a cache as an engine would have, and prepare a forward."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    tokens = tokens or [tokens_of(rng, length, rules) for length, _ in requests]
    pieces, place = [], 0
    for row, ((length, number), known) in enumerate(zip(requests, tokens)):
        pieces += pieces_of(row, place, number, length, known)
        place += number
    blocks = blocks_of(pieces, page)
    keys = [torch.randn(length, KV_HEADS, 2 * SIZE, generator=generator) for length, _ in requests]
    cache, table = _lay(rng, requests, tokens, keys, page)
    types = TypeTable(-(-max(length for length, _ in requests) // page) * page, torch.device(device), rules.has_turns)
    rows = np.array(types.rows_for([(piece.tokens, piece.start) for piece in pieces]))
    batch = np.array([piece.row for piece in pieces])[blocks.pieces]
    pages = table[batch[:, None], blocks.pages]
    logical = torch.full((PAGES,), 2**20, dtype=torch.int32)
    logical[torch.from_numpy(pages.ravel())] = torch.from_numpy(blocks.pages.ravel()).int()
    layout = Layout(
        torch.from_numpy(np.repeat(rows[blocks.pieces], QUERIES)).to(device),
        torch.from_numpy(blocks.positions).to(device),
        logical.to(device),
        page,
        types.types,
        types.turns,
    )
    mask_mod, score_mod = mods_of(layout, rules)
    padded = np.pad(pages, ((0, 0), (0, (width or pages.shape[1]) - pages.shape[1])))
    mask = page_mask(
        torch.from_numpy(blocks.number).to(device),
        torch.from_numpy(padded).int().to(device),
        page,
        PAGES * page,
        mask_mod,
    )
    query = torch.randn(place, HEADS, SIZE, generator=generator)
    return Case(
        requests,
        tokens,
        query.to(device, dtype),
        keys,
        cache.to(device, dtype),
        table,
        blocks,
        layout,
        mask,
        score_mod,
    )


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


def of_queries(case, answer):
    """Take the rows that are queries from those of blocks."""
    is_query = case.blocks.queries >= 0
    places = np.zeros(len(case.query), np.int64)
    places[case.blocks.queries[is_query]] = np.flatnonzero(is_query)
    return answer.float().cpu()[torch.from_numpy(places)]


def by_hand(case):
    """Do what the kernel does, by the same functions, with a score for each pair of a query and a slot of the cache."""
    count, slots = len(case.layout.position), len(case.cache)
    query = case.query[torch.from_numpy(np.maximum(case.blocks.queries, 0))]
    key, value = case.cache.split(SIZE, dim=-1)
    q, k, zero = torch.arange(count)[:, None], torch.arange(slots)[None], torch.tensor(0)
    number, index = case.mask.kv_num_blocks[0, 0], case.mask.kv_indices[0, 0].long()
    is_listed = torch.arange(index.shape[1]) < number[:, None]
    pages = torch.zeros(len(index), PAGES + 1, dtype=torch.bool)
    pages = pages.scatter_(1, torch.where(is_listed, index, PAGES), True)[:, :PAGES]
    read = pages.repeat_interleave(QUERIES, 0).repeat_interleave(case.layout.page_size, 1)
    first = (index[:, :1] * case.layout.page_size).repeat_interleave(QUERIES, 0)
    places = torch.where(read, k, first)  # the functions are asked of pages only that are read
    seen = read & case.mask.mask_mod(zero, zero, q, places)
    group = HEADS // KV_HEADS
    scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(group, 1)) * SIZE**-0.5
    if case.score_mod is not None:
        scores = case.score_mod(scores, zero, zero, q, places)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
    return torch.einsum("hqk,khd->qhd", weights, value.nan_to_num().repeat_interleave(group, 1)), seen, read
