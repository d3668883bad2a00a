"""Documents that `position_ids` tell apart: where they begin anew.

Text positions, (B, L) or the first row of (4, B, L), go up by one within a document. Of M-RoPE's axes time, height and width,
(3, B, L), each repeats and falls in images, and time may fall after a long video; but all three are at the lowest place of the
row together at the beginning of a document only. A fall to another place proves nothing: it is refused where nothing else says
where documents begin. LLaMA-Factory's first row of (4, B, L) is a copy of time: where the axes differ, it is no text.
"""

from typing import Any

import torch

from ...attention.documents import first_places, numbered


_WAY_OUT = (
    "number the documents in document_ids (batch, length), passed beside semantic_ids (one number where it is one document): "
    "they have the last word"
)


def documents_from_positions(position_ids: Any, is_real: torch.Tensor, has_mask: bool) -> torch.Tensor | None:
    """Find packed documents where nothing but the positions tells them apart.

    Without a mask text positions are read as transformers does: a document begins wherever they do not go up by one. With one
    (which transformers' eager and sdpa attention then go by alone), or for M-RoPE's axes, where they begin anew.

    Args:
        position_ids: (B, L), (1, L), (3, B, L) or (4, B, L).
        is_real: (B, L) bool, which tokens are not padding.
        has_mask: Whether a mask says so.

    Returns:
        (B, L) numbers from 0; None: the positions go on through the rows.

    Raises:
        ValueError: If they fall to another place than the row's lowest, or have a form in which that cannot be told.
    """
    text, axes = _split(position_ids, is_real)
    if text is None and axes is None:
        return None
    if text is not None and not has_mask:
        begins = torch.zeros_like(is_real)
        begins[:, 1:] = text[0].diff(dim=1) != 1
    else:
        places = axes if text is None else text
        assert places is not None
        begins = _begins(places, is_real)
        _refuse_falls(places, begins, is_real)
    documents = begins.long().cumsum(dim=1)
    if text is not None and axes is not None:
        _check_axes(axes, documents, is_real, "the first row of position_ids, the text's,")
    return documents if bool(begins.any()) else None


def restarts(position_ids: Any, is_real: torch.Tensor, goes_on: torch.Tensor) -> torch.Tensor:
    """Return where the positions of new tokens begin anew or fall otherwise, (B, Q) bool.

    Args:
        position_ids: (B, Q), (1, Q), (3, B, Q) or (4, B, Q).
        is_real: (B, Q) bool, which of them are not padding.
        goes_on: (B,) bool, whether a real token is before them in the cache: then the first of them at 0 begins anew.
    """
    text, axes = _split(position_ids, is_real)
    places = axes if text is None else text
    if places is None:
        return torch.zeros_like(is_real)
    found = _begins(places, is_real) | _falls(places, is_real)
    is_first = is_real & (is_real.cumsum(dim=1) == 1)
    return found | (is_first & goes_on[:, None] & (places == 0).all(dim=0))


def check_positions(position_ids: Any, documents: torch.Tensor, is_real: torch.Tensor, name: str) -> None:
    """Compare positions with what numbers the documents outright.

    Positions that go on through the row say nothing.

    Args:
        position_ids: (B, L), (1, L), (3, B, L) or (4, B, L).
        documents: (B, L) numbers.
        is_real: (B, L) bool, which tokens are not padding.
        name: Of what numbers them, for messages.

    Raises:
        ValueError: If the positions begin anew inside a document, or at some documents of a row only.
    """
    for places in _split(position_ids, is_real):
        if places is not None:
            _check_axes(places, documents, is_real, name)


def _check_axes(places: torch.Tensor, documents: torch.Tensor, is_real: torch.Tensor, name: str) -> None:
    firsts = first_places(numbered(documents, is_real))
    is_start = (firsts == torch.arange(firsts.shape[1], device=firsts.device)) & is_real
    is_lowest = _is_lowest(places, is_real)
    is_like_first = (places == places.gather(2, firsts.expand_as(places))).all(dim=0)
    inside = ((is_lowest | is_like_first) & is_real & ~is_start).nonzero()
    if len(inside):
        row, token = inside[0].tolist()
        raise _disagreement(name, f"position_ids begin anew at row {row}, token {token}, inside a document of {name}")

    later = is_start & (is_real.cumsum(dim=1) > 1)
    goes_on = later & _follows(places, is_real)
    mixed = ((later & is_lowest).any(dim=1, keepdim=True) & goes_on).nonzero()
    if len(mixed):
        row, token = mixed[0].tolist()
        raise _disagreement(
            name,
            f"position_ids begin anew in row {row}, but go on at token {token}, where a document of {name} begins",
        )


def _disagreement(name: str, what: str) -> ValueError:
    return ValueError(
        f"position_ids and {name} disagree on where documents begin: {what}. Pass one of them, or both alike."
    )


def _split(position_ids: Any, is_real: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return text positions, (1, B, L), and M-RoPE's, (3, B, L); None: there are none."""
    rows, length = is_real.shape
    if not isinstance(position_ids, torch.Tensor) or position_ids.shape[-1:] != (length,):
        return None, None  # the model says what is wrong with them
    if position_ids.dim() == 2 and position_ids.shape[0] in (1, rows):
        return position_ids[None].expand(1, rows, length), None
    if position_ids.dim() == 3 and position_ids.shape[0] in (3, 4) and position_ids.shape[1] in (1, rows):
        expanded = position_ids.expand(-1, rows, length)
        is_copy = torch.equal(expanded[0], expanded[1]) and not torch.equal(expanded[-3:-1], expanded[-2:])
        return (expanded[:1] if len(expanded) == 4 and not is_copy else None), expanded[-3:]
    if bool((position_ids.diff(dim=-1) <= 0).any()):
        raise ValueError(
            f"position_ids of shape {tuple(position_ids.shape)} fall, and in this form HSA cannot tell whether documents begin "
            f"there: {_WAY_OUT}."
        )
    return None, None


def _is_lowest(places: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
    """Return where all axes of positions, (A, B, L), are at the row's lowest place, (B, L) bool."""
    highest = torch.iinfo(torch.int64).max
    lowest = places.long().masked_fill(~is_real, highest).amin(dim=(0, 2))
    return (places == lowest[:, None]).all(dim=0) & is_real


def _begins(places: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
    """Return where a document after the first begins, (B, L) bool."""
    return _is_lowest(places, is_real) & (is_real.cumsum(dim=1) > 1)


def _before(places: torch.Tensor, is_real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions of the real token before each, (A, B, L), and whether there is one, (B, L) bool."""
    index = torch.arange(is_real.shape[1], device=is_real.device).expand_as(is_real)
    last = torch.where(is_real, index, -1).cummax(dim=1).values
    last = torch.nn.functional.pad(last[:, :-1], (1, 0), value=-1)
    return places.gather(2, last.clamp(min=0).expand_as(places)), (last >= 0) & is_real


def _follows(places: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
    """Return which tokens go on from the one before, (B, L) bool."""
    before, has_one = _before(places, is_real)
    steps = places - before
    return ((steps == 1) if len(places) == 1 else (steps > 0)).all(dim=0) & has_one


def _falls(places: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
    """Return where text positions do not go up, or all axes of them from text to text, (B, L) bool."""
    before, has_one = _before(places, is_real)
    is_text = (places == places[:1]).all(dim=0) & (before == before[:1]).all(dim=0)
    return (places <= before).all(dim=0) & is_text & has_one


def _refuse_falls(places: torch.Tensor, begins: torch.Tensor, is_real: torch.Tensor) -> None:
    unclear = (_falls(places, is_real) & ~begins).nonzero()
    if len(unclear):
        row, token = unclear[0].tolist()
        raise ValueError(
            f"position_ids do not go up at row {row}, token {token}, and do not begin anew either, so that nothing says whether "
            f"a document begins there: {_WAY_OUT}."
        )
