"""What is known of the tokens that come into a cache: their types, and which are padding."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .tagger import RewindableTagger, Settled, Tagger


_FEW = 64  # types, which are looked at one by one


class IncomingTypes:
    """Types of the tokens that come without their own: those of a prompt, then those that a tagger gives.

    Args:
        tagger: Types tokens beyond the prompt; None: there must be none.
    """

    def __init__(self, tagger: Tagger | None) -> None:
        self._use(tagger)
        self.forget()

    def _use(self, tagger: Tagger | None) -> None:
        self.tagger = tagger
        self._rewindable = tagger if isinstance(tagger, RewindableTagger) else None  # to find out takes long

    def forget(self) -> None:
        """Start a sequence anew."""
        self._prompt: torch.Tensor | None = None
        self._tagged_from = 0
        self._unsettled: list[int] = []
        self._has_tagged = False  # whether the tagger was told something since `snapshot`

    def snapshot(self) -> Any:
        """Return what `restore` goes back to."""
        self._has_tagged = False
        return dict(vars(self)), None if self._rewindable is None else self._rewindable.snapshot()

    def restore(self, snapshot: Any) -> bool:
        """Go back to a snapshot. Returns whether that could be done: a tagger of the user's may not know how."""
        used, has_tagged = self.tagger, self._has_tagged
        values, tagged = snapshot
        vars(self).update(values)
        if not has_tagged or self.tagger is not used:
            return True
        if self._rewindable is not None:
            self._rewindable.restore(tagged)
        return self._rewindable is not None

    def expect(self, semantic_ids: torch.Tensor, tagger: Tagger) -> None:
        """Say the types of the first tokens of the sequence, (B, n), and who types those after them."""
        self._use(tagger)
        self._prompt, self._unsettled = semantic_ids.to(torch.long, copy=True), []
        self._tagged_from = semantic_ids.shape[1]

    def of(self, tokens: torch.Tensor, seen: int) -> torch.Tensor:
        """Return the types of the next tokens.

        Args:
            tokens: (B, Q) input_ids or (B, Q, hidden) embeddings.
            seen: Tokens before them.

        Returns:
            (B, Q) int64, on any device.

        Raises:
            ValueError: If a type is known neither from the prompt nor by a tagger.
        """
        rows, number = tokens.shape[:2]
        known, pieces = 0, []
        if self._prompt is not None and self._prompt.shape[1] > seen:
            given = self._prompt[:, seen : seen + number]
            known = given.shape[1]
            pieces.append(given.repeat_interleave(rows // given.shape[0], 0))
        if known < number:
            if self.tagger is None:
                raise ValueError("semantic_ids are missing: a model that goes on from an HSACache needs them.")
            if tokens.dim() != 2:
                raise ValueError("Generated tokens must be input_ids to be typed, got embeddings.")
            self._has_tagged = True
            pieces.append(self.tagger.tag(tokens[:, known:] if known else tokens).long())
        return pieces[0] if len(pieces) == 1 else torch.cat([pieces[0], pieces[1].to(pieces[0])], dim=1)

    def news(self, seen: int) -> tuple[list[Settled], int]:
        """Return what the tagger knows by now.

        Args:
            seen: Tokens whose keys a cache holds.

        Returns:
            Tokens seen whose type has changed, counted from the first of the sequence, and how many tokens of a row
            are no longer unsettled.
        """
        if self.tagger is None:
            return [], 0
        changes = []
        self._has_tagged = True
        for change in self.tagger.settled():
            start, stop = self._tagged_from + change.start, min(self._tagged_from + change.stop, seen)
            if start < stop:
                changes.append(change._replace(start=start, stop=stop))
        unsettled = self.tagger.unsettled() or []
        released = max((new - old for new, old in zip(unsettled, self._unsettled)), default=0)
        self._unsettled = unsettled
        return changes, max(released, 0)

    def held_from(self, last_positions: torch.Tensor, seen: int) -> torch.Tensor | None:
        """Return from which position on keys must stay, because their type may change yet.

        Args:
            last_positions: (B,), of each row's last token.
            seen: Tokens up to it.

        Returns:
            (B,), or None: none must.
        """
        if not self._unsettled:
            return None
        from_last = self._tagged_from - seen + 1
        return last_positions + torch.tensor(self._unsettled, device=last_positions.device) + from_last

    def change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Reorder, repeat or select rows."""
        if self.tagger is not None:
            self._has_tagged = True
            self.tagger.change(change)


class EndedRows:
    """Which rows of a batch have written their last token. What they get until all have is padding, and no distance.

    Attributes:
        ended: (B,) bool, rows whose end token has been read; None: nothing is known of that.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start a sequence anew."""
        self.expect((), 0)

    def expect(self, end_ids: Sequence[int], prompt_length: int) -> None:
        """Say which tokens end a row after its prompt; none: rows are not looked at."""
        self._end_ids, self._prompt_length = list(end_ids), prompt_length
        self.ended: torch.Tensor | None = None

    def find_real(self, tokens: torch.Tensor, is_real: torch.Tensor | None, seen: int) -> torch.Tensor | None:
        """Return which new tokens are neither padding nor after a row's end.

        Args:
            tokens: (B, Q) input_ids.
            is_real: (B, Q) bool, what the mask says; None: all.
            seen: Tokens before them.

        Returns:
            (B, Q) bool; None: all.
        """
        prompt = max(self._prompt_length - seen, 0)
        if not self._end_ids or tokens.dim() != 2 or tokens.shape[1] <= prompt:
            return is_real
        ends = torch.isin(tokens[:, prompt:], torch.tensor(self._end_ids, device=tokens.device)).long()
        after = ends.cumsum(dim=1) - ends > 0
        if self.ended is not None:
            after |= self.ended[:, None]
        self.ended = after[:, -1] | (ends[:, -1] > 0)
        if not bool(after.any()):
            return is_real
        real = torch.nn.functional.pad(~after, (prompt, 0), value=True)
        return real if is_real is None else real & is_real

    def change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Reorder, repeat or select rows."""
        if self.ended is not None:
            self.ended = change(self.ended)


def check_input(rows: int, number: int, semantic_ids: torch.Tensor | None, seen: int, seen_rows: int) -> None:
    """Check the shapes of what comes in.

    Args:
        rows: B.
        number: Q.
        semantic_ids: (B, Q) or, those seen included, (B, seen + Q); None: they are known otherwise.
        seen: Tokens before it.
        seen_rows: Rows of those; any multiple of them may go on from them.

    Raises:
        ValueError: If they do not fit.
    """
    if not rows * number:
        raise ValueError(f"There is nothing to read: the input has (batch, length) = {(rows, number)}.")
    if seen and rows % seen_rows:
        raise ValueError(
            f"This HSACache holds {seen_rows} rows, but the input has {rows}: pass those rows, or a new cache."
        )
    if semantic_ids is not None and semantic_ids.shape not in ((rows, seen + number), (rows, number)):
        cached = f", {seen} of them cached" if seen else ""
        raise ValueError(
            f"semantic_ids has shape {tuple(semantic_ids.shape)}, but the input has (batch, length) = "
            f"{(rows, seen + number)}{cached}."
        )


def check_types(types: torch.Tensor) -> torch.Tensor:
    """Return types, (B, Q), after a look at them.

    Raises:
        ValueError: If there are others than 0, 1 and 2.
    """
    is_wrong = not {0, 1, 2}.issuperset(types.unique().tolist() if types.numel() > _FEW else types.flatten().tolist())
    if is_wrong:
        raise ValueError(f"semantic_ids holds {types[(types < 0) | (types > 2)][0]}; allowed are 0, 1 and 2.")
    return types


def find_real(tokens: torch.Tensor, attention_mask: torch.Tensor | None, seen: int) -> torch.Tensor | None:
    """Return which new tokens are not padding.

    Args:
        tokens: (B, Q) input_ids or (B, Q, hidden) embeddings.
        attention_mask: (B, seen + Q), 0 is padding; None: all real.
        seen: Tokens before them.

    Returns:
        (B, Q) bool; None: all.

    Raises:
        ValueError: If the mask has another shape or numbers the documents of a packed row.
    """
    if attention_mask is None:
        return None
    expected = (tokens.shape[0], seen + tokens.shape[1])
    if tuple(attention_mask.shape) != expected:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but it must cover (batch, length) = {expected}"
            f", {seen} cached tokens included."
        )
    new = attention_mask[:, seen:]
    if bool((new == 1).all()):
        return None
    if bool((new > 1).any()):
        raise ValueError("A packed row (attention_mask above 1) cannot be cached: run its documents on their own.")
    return new != 0
