"""What a user gives for a plan: checked, and brought into one form."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..semantics import SemanticType
from .documents import by_document, numbered


LARGEST_TURN = 2**31 - 1


def check_ids(name: str, ids: torch.Tensor, like: torch.Tensor | None) -> None:
    """Refuse ids that are no (B, L) whole numbers, or do not fit `semantic_ids`.

    Args:
        name: For the message.
        ids: What was given.
        like: `semantic_ids`; None: they are `ids`.

    Raises:
        ValueError: If so.
    """
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2:
        shape = tuple(ids.shape) if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise ValueError(f"{name} must be a tensor of shape (batch, length), got {shape}.")
    has_numbers = not (ids.is_floating_point() or ids.is_complex() or (name == "turn_ids" and ids.dtype == torch.bool))
    if not has_numbers and name != "attention_mask":
        raise ValueError(f"{name} must hold whole numbers, got {ids.dtype}.")
    if like is not None and ids.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(ids.shape)}, but semantic_ids has {tuple(like.shape)}.")
    if like is not None and ids.device != like.device:
        raise ValueError(f"{name} is on {ids.device}, but semantic_ids is on {like.device}.")


def number_documents(
    semantic_ids: torch.Tensor, attention_mask: torch.Tensor | None, document_ids: torch.Tensor | None
) -> torch.Tensor:
    """Number the documents from 1; 0 is padding. The arguments are those of `AttentionPlan.from_inputs`.

    Raises:
        ValueError: If a shape, device or type does not fit.
    """
    documents = torch.ones_like(semantic_ids, dtype=torch.long)
    if attention_mask is not None:
        if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 4:
            raise ValueError(
                "A 4-D attention_mask cannot be combined with HSA: pass the 2-D mask, with documents numbered "
                "1, 1, 2, 2, … if the row is packed (block_diag_attn must be off)."
            )
        check_ids("attention_mask", attention_mask, semantic_ids)
        documents = attention_mask.long()

    if document_ids is not None:
        check_ids("document_ids", document_ids, semantic_ids)
        documents = numbered(document_ids, documents != 0)

    return documents


@dataclass(frozen=True)
class RowsSeen:
    """What one look at the rows of a batch tells.

    Attributes:
        have_padding: Whether a token is padding.
        are_whole: Whether each row is one document without padding.
        types: Those that there are, growing; None: there are no tokens.
    """

    have_padding: bool
    are_whole: bool
    types: tuple[int, ...] | None


def look_at_rows(semantic_ids: torch.Tensor, document_ids: torch.Tensor | None) -> RowsSeen:
    """Look at types and documents, once: for each look the CPU waits until a GPU has done all that it was given before.

    Args:
        semantic_ids: (B, L) int64.
        document_ids: (B, L), 0 is padding. None: each row is one document.

    Raises:
        ValueError: If a type is not 0, 1 or 2.
    """
    if semantic_ids.numel() == 0:
        return RowsSeen(have_padding=False, are_whole=document_ids is None, types=None)
    found = [*semantic_ids.aminmax(), (semantic_ids == SemanticType.LANDMARK).any()]
    if document_ids is not None:
        found += [(document_ids == 0).any(), (document_ids != document_ids[:, :1]).any()]
    lowest, highest, has_landmarks, *documents = torch.stack([number.long() for number in found]).tolist()
    if lowest < 0 or highest > 2:
        wrong = semantic_ids[(semantic_ids < 0) | (semantic_ids > 2)][0].item()
        raise ValueError(f"semantic_ids holds {wrong}; allowed are 0 (GLOBAL), 1 (LANDMARK) and 2 (NOISE).")
    types = sorted({lowest, highest, *[int(SemanticType.LANDMARK)] * has_landmarks})
    return RowsSeen(any(documents[:1]), not any(documents), tuple(types))


def check_turns(
    turn_ids: torch.Tensor, document_ids: torch.Tensor, is_whole: bool = False
) -> tuple[torch.Tensor, int | None]:
    """Check turn numbers; those at padding are not looked at.

    Args:
        turn_ids: (B, L) whole numbers.
        document_ids: (B, L), 0 is padding.
        is_whole: Whether each row is one document without padding.

    Returns:
        The numbers as int32, and for how many turns a row goes on after its first at most (None: not known).

    Raises:
        ValueError: If shape, device or type do not fit, a number is too large, or the numbers of a document fall.
    """
    check_ids("turn_ids", turn_ids, document_ids)
    if is_whole and turn_ids.numel():
        turns = turn_ids.long()
        first, last = turns[:, 0], turns[:, -1]
        falls = (turns[:, 1:] < turns[:, :-1]).any().long()
        falls, lowest, highest, most = torch.stack([falls, first.amin(), last.amax(), (last - first).amax()]).tolist()
        if not falls and -LARGEST_TURN <= lowest and highest <= LARGEST_TURN:
            return turns.int(), most
    turns = turn_ids.long().masked_fill(document_ids == 0, 0)
    order, starts = by_document(document_ids)
    sorted_turns = turns.gather(1, order)
    falls = torch.zeros_like(starts)
    falls[:, 1:] = (sorted_turns[:, 1:] < sorted_turns[:, :-1]) & ~starts[:, 1:]
    too_large = is_too_large(turns)
    if not bool((falls | too_large).any()):
        return turns.int(), None

    if bool(too_large.any()):
        raise too_large_turn(turns[too_large][0])
    row, index = falls.nonzero()[0].tolist()
    before, after = order[row, index - 1], order[row, index]
    raise falling_turns(
        row,
        (turns[row, before], before),
        (turns[row, after], after),
        "; where a row holds several documents, number them in document_ids or attention_mask",
    )


def is_too_large(turns: torch.Tensor) -> torch.Tensor:
    """Return where numbers of turns are beyond `LARGEST_TURN`, on either side of 0."""
    return (turns > LARGEST_TURN) | (turns < -LARGEST_TURN)  # the magnitude of the lowest int64 is no int64


def too_large_turn(number: Any) -> ValueError:
    """Return the error for a turn's number beyond `LARGEST_TURN`."""
    return ValueError(f"turn_ids holds {number}; a turn's number fits 32 bits.")


def falling_turns(row: int, former: tuple[Any, Any], later: tuple[Any, Any], way_out: str = "") -> ValueError:
    """Return the error for turn numbers that fall within a document.

    Args:
        row: The row.
        former: A turn's number, and its place.
        later: The lower one behind it, and its place.
        way_out: What else to say of it, from its semicolon on.
    """
    return ValueError(
        f"turn_ids fall within a document: row {row} has {former[0]} at place {former[1]} and {later[0]} at place {later[1]}. "
        f"A token's number counts the replies that are over before its message, so it never falls{way_out}."
    )


def missing_turns(turns: Sequence[int | None]) -> ValueError:
    """Return the error for rules that need turn numbers where there are none.

    Args:
        turns: Those of the rules, by `SemanticType`; None: not given.
    """
    options = [f"{kind.name.lower()}_turns" for kind in SemanticType if turns[kind] is not None]
    need = "needs" if len(options) == 1 else "need"
    return ValueError(
        f"{' and '.join(options)} {need} turn_ids, (batch, length) whole numbers: how many replies are over before each "
        "token's message. The collator (HSADataCollator), encode_conversation and generate supply them; whoever makes "
        "semantic_ids otherwise gives turn_ids beside them."
    )
