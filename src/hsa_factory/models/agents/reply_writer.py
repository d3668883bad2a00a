"""Writing replies: token by token, for all rows together, and what stands around them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..cache.tagger import ConstantTagger
from ..generation.rule_tagger import RuleTagger
from .reply import Reply
from .reply_tagger import ReplyTagger
from .row import Row
from .sampling import Choices, Sampler
from .shared_cache import SharedCache


class ReplyWriter:
    """Writes replies.

    Args:
        tokenizer: Of the model.
        sampler: Chooses tokens.
        limit: Tokens of a reply, at most.
        header: Text or ids before each reply.
        footer: Text or ids after it.
        stops: Tokens that end one.

    Attributes:
        header: The tokens before each reply.
        filler: What stands where a row has no token.
        ends: What a tagger may take for the end of a reply.
    """

    def __init__(
        self,
        tokenizer: Any,
        sampler: Sampler,
        limit: int,
        header: str | Sequence[int],
        footer: str | Sequence[int],
        stops: Sequence[int],
    ) -> None:
        self._tokenizer, self._sampler, self._limit = tokenizer, sampler, limit
        self.header, self._footer = encode(tokenizer, "header", header), encode(tokenizer, "footer", footer)
        self._stops = frozenset(stops)
        self._last = next((token for token in (*self._footer[:1], *stops) if token in self._stops), 0)  # of a choice
        ends = (tokenizer.eos_token_id, tokenizer.pad_token_id, *sorted(self._stops), 0)
        self.filler = next(token for token in ends if token is not None)
        self.ends = self._stops | {self.filler}

    def write(
        self,
        shared: SharedCache,
        taggers: Sequence[ConstantTagger | RuleTagger],
        options: Mapping[int, list[list[int]]],
    ) -> dict[int, Reply]:
        """Let each row that has news write a reply, and add it to its history.

        Args:
            shared: The rows.
            taggers: Of their replies: one for all, or one for each.
            options: By the row's number, of which token sequences its reply must be one.

        Returns:
            The replies by row's number.
        """
        rows = shared.rows
        tagger = ReplyTagger(taggers, [self._own_header(row) for row in rows])
        for row, message_type in zip(rows, tagger.message_types()):
            if row.has_news:
                kind = message_type if row.talk is None else row.types[-1]
                row.add(self.header_of(row), [kind] * len(self.header_of(row)))
        sampler = self._sampler
        if options:
            sampler = sampler.limited_to(Choices([options.get(row.number) for row in rows], self._last))

        logits = shared.read(tagger, self._limit)
        written = torch.full((len(rows), self._limit), self.filler, device=logits.device)
        running = [row.has_news for row in rows]
        replies: list[list[int]] = [[] for _ in rows]
        for number in range(self._limit):
            sources = [row.source if runs else None for row, runs in zip(rows, running)]
            chosen = sampler.choose(logits, written[:, :number], sources)
            written[:, number] = torch.tensor(
                [token if runs else self.filler for token, runs in zip(chosen, running)], device=logits.device
            )
            for place, token in enumerate(chosen):
                if running[place]:
                    replies[place].append(token)
                    running[place] = token not in self._stops
            if number + 1 == self._limit or not any(running):
                break
            logits = shared.step([token if runs else None for token, runs in zip(chosen, running)])
        return self._end(shared, tagger, replies, running)

    def _end(
        self, shared: SharedCache, tagger: ReplyTagger, replies: Sequence[list[int]], running: Sequence[bool]
    ) -> dict[int, Reply]:
        """End the replies: add them to the histories, with the types that they have now. `running`: not ended by a token."""
        lasts = [ids[-1] if runs else self.filler for ids, runs in zip(replies, running)]
        tagger.tag(torch.tensor(lasts)[:, None])
        tagger.tag(torch.full((len(lasts), 1), self.filler))
        changed = {change.row for change in tagger.settled()}
        ended = {}
        around, types = tagger.message_types(), [] if tagger.types is None else tagger.types.tolist()
        for place, row in enumerate(shared.rows):
            ids = replies[place]
            if not ids:
                continue
            is_complete = not running[place]
            kinds = types[place][: len(ids)]
            if is_complete:
                kinds[-1] = around[place]
            if self._type_header(row, around[place]):
                changed.add(place)
            content = slice(len(ids) - is_complete)
            text = self._tokenizer.decode(ids[content], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            ended[row.number] = Reply(text, ids[content], kinds[content], is_complete)
            footer = self._footer if row.talk is None else []  # a template writes its own
            footer = footer[1:] if is_complete and footer[:1] == ids[-1:] else footer
            row.answer([*ids, *footer], [*kinds, *[around[place]] * len(footer)])
            row.stop_id = ids[-1] if is_complete and not self._footer else None
        shared.retype([shared.rows[place] for place in sorted(changed)])
        return ended

    def _type_header(self, row: Row, semantic_type: int) -> bool:
        """Give the header before a reply the type of its message. Returns whether that is another."""
        number = self._own_header(row)
        start = len(row.ids) - number
        differs = row.types[start:] != [semantic_type] * number
        row.types[start:] = [semantic_type] * number
        return differs

    def _own_header(self, row: Row) -> int:
        """Return how many tokens before a row's next reply have its type: a template's have the last message's."""
        return 0 if row.talk is not None else len(self.header_of(row))

    def header_of(self, row: Row) -> list[int]:
        """Return the tokens before a row's next reply."""
        return self.header if row.header is None else row.header


def encode(tokenizer: Any, name: str, text: Any) -> list[int]:
    """Return the tokens of a text, or ids as they are. `name`: of what it is, for the message.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(text, str):
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = text.tolist() if isinstance(text, torch.Tensor) else text
    if not isinstance(ids, (list, tuple)) or not all(isinstance(token, int) for token in ids):
        raise ValueError(f"AgentBatch: {name} is a text or token ids, got {text!r:.60}.")
    return list(ids)


def find_stops(model: nn.Module, tokenizer: Any, stop: Any) -> list[int]:
    """Return the tokens that end a reply.

    Args:
        model: Whose generation configuration may say them.
        tokenizer: Likewise, its end token.
        stop: Ids or names of tokens, one or several; None: as those say.

    Raises:
        ValueError: If one is no token, or there is none.
    """
    if stop is None:
        known = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        known = [known] if isinstance(known, int) else list(known or ())
        stops = [*known, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]
    else:
        given = [stop] if isinstance(stop, (str, int)) else list(stop)
        stops = [_token_id(tokenizer, token) for token in given]
    if not stops:
        raise ValueError(
            "AgentBatch: nothing ends a reply: neither the model nor the tokenizer names a token. Pass stop=…."
        )
    return list(dict.fromkeys(stops))


def _token_id(tokenizer: Any, token: Any) -> int:
    if isinstance(token, int) and not isinstance(token, bool):
        return token
    ids = tokenizer(token, add_special_tokens=False)["input_ids"] if isinstance(token, str) else []
    if len(ids) != 1:
        raise ValueError(
            f"AgentBatch: stop = {token!r} is {len(ids)} tokens, but a reply is ended by one: give its id or text."
        )
    return int(ids[0])
