"""What a forward says of its documents: by numbers, by lengths, by positions. Two that disagree are an error."""

from typing import Any

import torch

from ...attention.documents import first_places, numbered
from ...attention.inputs import check_ids
from .lengths import documents_from_lengths
from .positions import check_positions, documents_from_positions, restarts


PACKED_INPUTS = ("seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""Arguments of a forward that say where documents begin, and nothing else."""


def find_documents(
    given: dict[str, Any], rows: int, number: int, seen: int, document_ids: torch.Tensor | None
) -> torch.Tensor | None:
    """Return what numbers the documents of a forward's rows.

    Args:
        given: The forward's arguments by name.
        rows: B.
        number: Q, new tokens a row.
        seen: Tokens before them, in a cache of transformers' own.
        document_ids: (B, seen + Q), what the user says beside `semantic_ids`, with the last word over `position_ids`; None:
            nothing.

    Returns:
        (B, seen + Q) numbers; None: the attention mask says it.

    Raises:
        ValueError: If one statement has a wrong form, two disagree, `position_ids` leave open where a document begins, or
            a packed row goes on from a cache.
    """
    mask = _flat_mask(given, (rows, seen + number))
    if (mask is None and given.get("attention_mask") is not None) or _has_other_shape(
        document_ids, rows, seen + number
    ):
        return document_ids  # the plan says what is wrong with it
    is_real = _real_tokens(mask, given, (rows, seen + number))
    stated = {} if document_ids is None else {"document_ids": document_ids}
    if mask is not None and bool((mask > 1).any()):
        stated["the numbers in attention_mask"] = mask.long()  # it may be of floats
    positions = given.get("position_ids") if document_ids is None else None
    if seen:
        refuse_packed({**given, "position_ids": None if stated else positions}, rows, number, seen)
        _compare(stated, is_real)
        return document_ids

    stated |= _of_kernels(given, is_real)
    _compare(stated, is_real)
    if not stated:
        return None if positions is None else documents_from_positions(positions, is_real, has_mask=mask is not None)
    name, documents = next(iter(stated.items()))
    if positions is not None:
        check_positions(positions, documents, is_real, name)
    return documents


def refuse_packed(given: dict[str, Any], rows: int, number: int, seen: int) -> None:
    """Refuse a packed row that goes into a cache, or on from one: what is there has no documents.

    Args:
        given: The forward's arguments by name; the attention mask covers what is in the cache, too.
        rows: B.
        number: Q, new tokens a row.
        seen: Tokens before them, in the cache.

    Raises:
        ValueError: If `seq_idx`, `cu_seq_lens_q`/`cu_seq_lens_k` or `position_ids` tell of more than one document a row.
    """
    if number == 1 or all(given.get(name) is None for name in (*PACKED_INPUTS, "position_ids")):
        return
    shape = (rows, seen + number)
    is_real = _real_tokens(_flat_mask(given, shape), given, shape)
    new = is_real[:, seen:]
    for name, documents in _of_kernels(given, new, in_cache=seen).items():
        first = documents.gather(1, new.byte().argmax(dim=1, keepdim=True))
        if bool(((documents != first) & new).any()):
            raise _cannot_be_cached(name)
    positions = given.get("position_ids")
    if positions is not None and bool(restarts(positions, new, is_real[:, :seen].any(dim=1)).any()):
        raise _cannot_be_cached("position_ids that begin anew")


def without_documents(given: dict[str, Any], keeps_lengths: bool) -> dict[str, Any]:
    """Return a forward's arguments without what a plan of its documents holds now.

    Models count positions on the mask, where numbers of documents would make leaps, and hand the lengths on to their vision
    model, which has its own.

    Args:
        given: The arguments by name.
        keeps_lengths: Whether the model has layers that carry a state, which go by the lengths themselves.
    """
    kept = given if keeps_lengths else {name: value for name, value in given.items() if name not in PACKED_INPUTS}
    mask = given.get("attention_mask")
    return kept if mask is None else {**kept, "attention_mask": (mask != 0).to(mask.dtype)}


def _of_kernels(given: dict[str, Any], is_real: torch.Tensor, in_cache: int = 0) -> dict[str, torch.Tensor]:
    """Return the documents by what flash attention and state spaces are told, (B, L) numbers each."""
    stated = {}
    lengths = documents_from_lengths(given, is_real, in_cache)
    if lengths is not None:
        stated[lengths[0]] = lengths[1]
    sequences = given.get("seq_idx")
    if sequences is not None:
        stated["seq_idx"] = _sequences(sequences, is_real)
    return stated


def _sequences(seq_idx: Any, is_real: torch.Tensor) -> torch.Tensor:
    """Return `seq_idx`, (B, L), after a look at it: a number that comes back would be two sequences to a state space."""
    check_ids("seq_idx", seq_idx, is_real)
    runs = torch.zeros_like(seq_idx)
    runs[:, 1:] = (seq_idx[:, 1:] != seq_idx[:, :-1]).cumsum(dim=1)
    place = _first_difference(runs, seq_idx, is_real)
    if place is not None:
        raise ValueError(
            f"seq_idx has the number {seq_idx[place]} again at row {place[0]}, token {place[1]}, after others: give each "
            "document one number and one run of tokens."
        )
    return seq_idx


def _flat_mask(given: dict[str, Any], shape: tuple[int, int]) -> torch.Tensor | None:
    mask = given.get("attention_mask")
    return mask if isinstance(mask, torch.Tensor) and tuple(mask.shape) == shape else None


def _has_other_shape(document_ids: Any, rows: int, length: int) -> bool:
    return document_ids is not None and tuple(getattr(document_ids, "shape", ())) != (rows, length)


def _real_tokens(mask: torch.Tensor | None, given: dict[str, Any], shape: tuple[int, int]) -> torch.Tensor:
    if mask is not None:
        return mask != 0
    tokens = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
    return torch.ones(shape, dtype=torch.bool, device=tokens.device)


def _compare(stated: dict[str, torch.Tensor], is_real: torch.Tensor) -> None:
    """Refuse two statements of which one puts together what the other tells apart."""
    (name, documents), *others = stated.items() or [("", is_real)]
    for other, numbers in others:
        place = _first_difference(documents, numbers, is_real)
        if place is not None:
            raise ValueError(
                f"{name} and {other} disagree on where documents begin: at row {place[0]}, token {place[1]}. Pass one of "
                "them, or both for the same packing."
            )


def _first_difference(one: torch.Tensor, other: torch.Tensor, is_real: torch.Tensor) -> tuple[int, int] | None:
    """Return row and place of the first token that two numberings, (B, L), put in documents of different beginnings."""
    firsts = [first_places(numbered(numbers, is_real)) for numbers in (one, other)]
    differs = ((firsts[0] != firsts[1]) & is_real).nonzero()
    return None if not len(differs) else (int(differs[0, 0]), int(differs[0, 1]))


def _cannot_be_cached(how: str) -> ValueError:
    return ValueError(f"A packed row ({how}) cannot be cached: run its documents on their own.")
