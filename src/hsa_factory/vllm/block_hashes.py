"""Keys of the prefix cache that cover types as well as ids: the same text with other types has other keys and values."""

from collections.abc import Callable
from typing import Any

import numpy as np
from vllm.v1.core.kv_cache_utils import BlockHash, generate_block_hash_extra_keys, hash_block_tokens
from vllm.v1.request import Request

from .tokens import TokenTypes


class TypedBlockHashes(list[BlockHash]):
    """The hashes of a request's full blocks, with what they were made of, so that whoever looks for a hit knows its types.

    Args:
        tokens: The request's.
    """

    def __init__(self, tokens: TokenTypes) -> None:
        super().__init__()
        self.tokens = tokens


class TypedBlockHasher:
    """Makes the hashes of a request's new full blocks: of ids, first types, turns and changes of types, chained.

    Types that a tag changed later belong to the keys of the tokens after it; a text that has those types from the start
    has other keys, and other hashes.

    Args:
        block_size: Tokens of a block.
        hash_function: vLLM's.
    """

    def __init__(self, block_size: int, hash_function: Callable[[Any], bytes]) -> None:
        self._block_size, self._hash = block_size, hash_function

    def __call__(self, request: Request) -> list[BlockHash]:
        """Return the hashes of the blocks that are full and have none yet."""
        known = request.block_hashes
        assert isinstance(known, TypedBlockHashes), "the scheduler sets it"
        if request.num_tokens < (len(known) + 1) * self._block_size:
            return []
        tokens = known.tokens
        tokens.read()
        hashes: list[BlockHash] = []
        parent = known[-1] if known else None
        for stop in range((len(known) + 1) * self._block_size, request.num_tokens + 1, self._block_size):
            start = stop - self._block_size
            extra, _ = generate_block_hash_extra_keys(request, start, stop, 0)
            keys = (*(extra or ()), *self._keys(tokens, start, stop))
            parent = hash_block_tokens(self._hash, parent, request.all_token_ids[start:stop], keys)
            hashes.append(parent)
        return hashes

    def _keys(self, tokens: TokenTypes, start: int, stop: int) -> tuple[Any, ...]:
        changes = tuple(tuple(event) for event in tokens.events if start <= event.at < stop)
        turns = b""
        if tokens.turns is not None:
            turns = (tokens.turns[start:stop] - tokens.turns[0]).astype(np.int64).tobytes()
        return tokens.first_types[start:stop].tobytes(), turns, changes
