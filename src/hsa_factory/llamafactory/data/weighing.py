"""Which ids of a message its weight holds for."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...feedback import REPLIES
from ...typed.ids import TypedTokenId, weigh


@dataclass(frozen=True)
class Weighing:
    """What decides it, besides the message.

    Attributes:
        system_length: Ids at the start of the first message that are not its own: the system prompt's.
        media_ids: Ids that stand for parts of media: no text to learn.
        mask_history: Whether the last turn alone is trained.
    """

    system_length: int = 0
    media_ids: frozenset[int] = frozenset()
    mask_history: bool = False

    def weigh(
        self,
        sides: Sequence[list[TypedTokenId]],
        roles: Sequence[str],
        weights: Sequence[float | None],
        eos_follows: bool,
        train_on_prompt: bool,
    ) -> list[list[TypedTokenId]]:
        """Return the ids of each message with its weight.

        An id that carries a weight is trained, whatever its role. The first id of a conversation never is: nothing stands
        before it from which it could be learned.

        Args:
            sides: Ids of each message, prompts and responses in turn.
            roles: Their roles.
            weights: Theirs; None, 1 or 0: nothing is done.
            eos_follows: Whether the label that ends a reply stands at the first id of the next prompt.
            train_on_prompt: Whether prompts are trained anyway.
        """
        first = len(sides) - 2 if self.mask_history else 0
        weighed = [list(ids) for ids in sides]
        for k in range(first, len(sides)):
            ids, weight = sides[k], weights[k]
            if not weight:
                continue
            start = max(self.system_length, 1) if k == 0 else 0
            weighed[k][start:] = weigh(ids[start:], weight)
            if roles[k] not in REPLIES and not train_on_prompt:
                for place, token in enumerate(ids):
                    if token in self.media_ids:
                        weighed[k][place] = token
        for k in range(first + 1, len(sides) - 1, 2) if eos_follows else ():
            weighed[k + 1][:1] = weigh(sides[k + 1][:1], weights[k] or None)
        return weighed
