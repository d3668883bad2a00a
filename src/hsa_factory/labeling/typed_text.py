"""Text that carries semantic types, and the types of the tokens it becomes. `input_ids` never change by it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..semantics import SemanticType


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TypedText(str):
    """A text made of spans, each with a semantic type; equal to the plain text in every other respect.

    Adding keeps the spans; plain text that is added takes the type it is added to.

    Attributes:
        spans: (number of characters, type) of each span, in order; at least one.
    """

    spans: tuple[tuple[int, int], ...]

    def __new__(
        cls, text: str, semantic_type: int | None = None, spans: Sequence[tuple[int, SemanticType]] = ()
    ) -> "TypedText":
        self = super().__new__(cls, text)
        self.spans = tuple(spans) if spans else ((len(text), semantic_type),)
        return self

    def __add__(self, other: str) -> "TypedText":
        spans = other.spans if isinstance(other, TypedText) else ((len(other), self.spans[-1][1]),)
        return TypedText(str(self) + str(other), spans=self.spans + spans)

    def __radd__(self, other: str) -> "TypedText":
        return TypedText(other + str(self), spans=((len(other), self.spans[0][1]), *self.spans))

    def __reduce__(self) -> tuple:
        return (_rebuild, (str(self), self.spans))

    @property
    def semantic_type(self) -> SemanticType:
        """Type of the last span: the message the text belongs to."""
        return self.spans[-1][1]

    @property
    def is_uniform(self) -> bool:
        """Whether all characters have one type."""
        return len(self.spans) == 1 or len({semantic_type for length, semantic_type in self.spans if length}) <= 1


def _rebuild(text: str, spans: tuple[tuple[int, SemanticType], ...]) -> TypedText:
    return TypedText(text, spans=spans)


def type_rendered_text(rendered: str, content: TypedText) -> TypedText:
    """Type a template's rendering of a message: the message's own text keeps its spans, the rest is the message's.

    Args:
        rendered: What the template made of the content.
        content: The message.

    Returns:
        The rendered text. Where the content cannot be found in it (a tool call that was reformatted), all of it
        has the message's type.
    """
    if len(content.spans) == 1:
        return TypedText(rendered, content.spans[0][1])
    start = -1 if content.is_uniform else rendered.find(str(content))
    if start < 0:
        return TypedText(rendered, content.semantic_type)

    before, after = start, len(rendered) - start - len(content)
    spans = ((before, content.semantic_type), *content.spans, (after, content.semantic_type))
    return TypedText(rendered, spans=[span for span in spans if span[0]])


def token_types(text: TypedText, token_ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the type of each token of a text.

    A token that straddles two spans takes the type that remembers more. Offsets come from the same tokenization;
    a slow tokenizer has none, and then a text of several types takes the one that remembers most.

    Args:
        text: The text.
        token_ids: Its ids, made without special tokens.
        tokenizer: The tokenizer that made them.
    """
    strongest = min((semantic_type for length, semantic_type in text.spans if length), default=text.semantic_type)
    if text.is_uniform or not getattr(tokenizer, "is_fast", False):
        return [int(strongest)] * len(token_ids)

    encoding = tokenizer(str(text), add_special_tokens=False, return_offsets_mapping=True)
    if list(encoding["input_ids"]) != list(token_ids):
        return [int(strongest)] * len(token_ids)

    characters = [semantic_type for length, semantic_type in text.spans for _ in range(length)]
    types = []
    for start, end in encoding["offset_mapping"]:
        covered = characters[start : max(end, start + 1)]
        types.append(int(min(covered)) if covered else (types[-1] if types else int(strongest)))

    return types
