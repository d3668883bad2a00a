"""Types of the replies that a batch writes, rows in different turns included, until they have ended."""

from collections.abc import Callable, Sequence

import torch

from ..cache.tagger import ConstantTagger, Settled
from ..generation.rule_tagger import RuleTagger


class ReplyTagger:
    """What a cache asks for the types of replies. It remembers them, and holds a reply's header as long as the reply.

    Args:
        taggers: One for all rows, or one for each.
        headers: For each of B rows, how many tokens before its reply have its message's type.

    Attributes:
        types: (B, n) int64, those of the tokens shown.
    """

    def __init__(self, taggers: Sequence[ConstantTagger | RuleTagger], headers: Sequence[int]) -> None:
        self._taggers, self._rows, self._headers = list(taggers), len(headers), list(headers)
        self.types: torch.Tensor | None = None

    def tag(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Take in the next tokens, (B, Q), and return their types for now, (B, Q)."""
        if len(self._taggers) == 1:
            types = self._taggers[0].tag(token_ids).long()
        else:
            pieces = [tagger.tag(token_ids[row : row + 1]).long() for row, tagger in enumerate(self._taggers)]
            types = torch.cat(pieces)
        self.types = types.clone() if self.types is None else torch.cat([self.types, types.to(self.types)], dim=1)
        return types

    def settled(self) -> list[Settled]:
        """Return the tokens whose type has changed since the last call."""
        if len(self._taggers) == 1:
            changes = self._taggers[0].settled()
        else:
            changes = [
                change._replace(row=row) for row, tagger in enumerate(self._taggers) for change in tagger.settled()
            ]
        for change in changes:
            assert self.types is not None, "no token was shown"
            self.types[change.row, change.start : change.stop] = change.semantic_type
        return changes

    def unsettled(self) -> list[int] | None:
        """Return, for each row, the first token whose type may change yet; the header's stand before 0."""
        if self.types is None:
            return [-header for header in self._headers] if any(self._headers) else None
        number = self.types.shape[1]
        if len(self._taggers) == 1:
            first = self._taggers[0].unsettled()
        else:
            asked = [tagger.unsettled() for tagger in self._taggers]
            first = None if all(each is None for each in asked) else [each[0] if each else number for each in asked]
        return None if first is None else [place or -header for place, header in zip(first, self._headers)]

    def message_types(self) -> list[int]:
        """Return, for each row, the type for now of what stands around its reply."""
        types: list[int] = []
        for tagger in self._taggers:
            number = self._rows if len(self._taggers) == 1 else 1
            types += tagger.message_types(number)
        return types

    def change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Do nothing: rows change between replies, each of which has a tagger of its own."""
