"""Which labels are trained: everything after the feedback marker, decided on the whole sample."""

from collections.abc import Sequence

from .config import FeedbackConfig


IGNORE_INDEX = -100
"""The label that the loss leaves out, as everywhere in transformers."""


def find_marker(input_ids: Sequence[int], marker_id: int, occurrence: str = "first") -> int | None:
    """Return the index of the marker that counts, or None if there is none.

    Args:
        input_ids: Token ids of one sample.
        marker_id: Id of the marker.
        occurrence: ``first`` or ``last``, as in `FeedbackConfig`.
    """
    ids = list(input_ids)
    if marker_id not in ids:
        return None
    return ids.index(marker_id) if occurrence == "first" else len(ids) - 1 - ids[::-1].index(marker_id)


def mask_labels(labels: Sequence[int], input_ids: Sequence[int], marker_id: int, config: FeedbackConfig) -> list[int]:
    """Mask the marker and all before it, for a sample whose sides were not recorded when it was encoded.

    Args:
        labels: Labels of one sample that is neither truncated nor packed.
        input_ids: Token ids, as many as labels.
        marker_id: Id of the marker.
        config: Which marker counts, and what happens without one.

    Returns:
        The labels, `IGNORE_INDEX` up to and including the marker. Without a marker they are unchanged, or all
        masked if `config.missing` is ``drop`` (a batch cannot drop a sample).

    Raises:
        ValueError: If there is no marker and `config.missing` is ``error``, or the lengths differ.
    """
    if len(labels) != len(input_ids):
        raise ValueError(f"{len(labels)} labels do not fit {len(input_ids)} input_ids.")

    marker = find_marker(input_ids, marker_id, config.occurrence)
    if marker is None:
        if config.missing == "error":
            raise ValueError(f"A sample has no {config.token} (feedback.missing is 'error').")
        return list(labels) if config.missing == "train" else [IGNORE_INDEX] * len(labels)

    return [IGNORE_INDEX] * (marker + 1) + list(labels[marker + 1 :])


def apply_loss_mask(labels: Sequence[int], loss_mask: Sequence[int]) -> list[int]:
    """Mask the labels where the recorded side says so.

    Args:
        labels: Labels of one sample or packed row.
        loss_mask: 1 where a token may be trained, 0 where it stood before the marker that counts.

    Raises:
        ValueError: If the lengths differ.
    """
    if len(labels) != len(loss_mask):
        raise ValueError(f"{len(labels)} labels do not fit a loss_mask of {len(loss_mask)}.")

    return [label if keep else IGNORE_INDEX for label, keep in zip(labels, loss_mask)]
