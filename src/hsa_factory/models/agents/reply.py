"""What a model has answered."""

from collections.abc import Sequence


class Reply(str):
    """The text of a reply, without the token that ended it; in every other respect a text.

    Attributes:
        ids: Its tokens.
        semantic_ids: Their types, as they are once the reply has ended.
        is_complete: Whether the model ended it (a stop token, or one of the choices); False: `max_new_tokens` did.
    """

    ids: tuple[int, ...]
    semantic_ids: tuple[int, ...]
    is_complete: bool

    def __new__(cls, text: str, ids: Sequence[int], semantic_ids: Sequence[int], is_complete: bool) -> "Reply":
        self = super().__new__(cls, text)
        self.ids, self.semantic_ids, self.is_complete = tuple(ids), tuple(semantic_ids), is_complete
        return self

    def __reduce__(self) -> tuple[type, tuple[str, tuple[int, ...], tuple[int, ...], bool]]:
        return (Reply, (str(self), self.ids, self.semantic_ids, self.is_complete))
