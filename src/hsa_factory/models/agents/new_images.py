"""The images that rows have yet to read: their pixels piece by piece, and the positions of the tokens around them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..generation.media import IMAGE_NAMES, MediaPrompt, add_media_types
from ..rope_positions import GRIDS, has_mrope, media_positions
from .row import Row


_KNOWN = IMAGE_NAMES | {"mm_token_type_ids"}


def read_images(row: int, entry: Any, columns: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return what a processor has made of the images of a row's conversation; nothing if there are none.

    Args:
        row: Its number.
        entry: The model that has `get_rope_index`, if it has.
        columns: What the processor gives besides ids: `pixel_values`, `image_grid_thw`, `mm_token_type_ids`.

    Raises:
        ValueError: If there are videos or sound, or the model places images otherwise.
    """
    grid = columns.get("image_grid_thw")
    others = sorted(name for name in columns.keys() - _KNOWN if _says_something(columns[name]))
    if others or (grid is not None and not has_mrope(entry)):
        raise ValueError(
            f"row {row}: AgentBatch reads images of models that place them on three axes (Qwen2-VL, Qwen2.5-VL, Qwen3-VL, …); the "
            f"processor gives {', '.join(others or sorted(columns))}. For videos, sound and other models call model.generate "
            "with an HSACache and the processor's inputs."
        )
    if grid is None:
        return {}
    return {name: torch.as_tensor(columns[name]) for name in sorted(IMAGE_NAMES)}


def _says_something(column: Any) -> bool:
    """Whether a column is more than zeros for the tokens of a text (`token_type_ids`)."""
    return not isinstance(column, list) or any(column)


def without_pixels(images: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what is needed of images that were read: where text goes on after them, not 4 bytes for each of their values."""
    return {name: value for name, value in images.items() if name in GRIDS}


def lacks_pixels(images: Mapping[str, torch.Tensor]) -> bool:
    """Whether there are images that cannot be read again as they are."""
    return bool(images) and images.keys() <= set(GRIDS)


class NewImages:
    """What of a batch's images is new, in the columns of what it reads.

    Args:
        entry: The model that has `get_rope_index`.
        rows: All rows of the batch, in its order.
        ids: (B, n), their tokens not read yet, padded on the left.
    """

    def __init__(self, entry: Any, rows: Sequence[Row], ids: torch.Tensor) -> None:
        self._device = ids.device
        new = [MediaPrompt(entry, _ids(row), row.images).select(row.read) for row in rows if row.images]
        inputs = {name: torch.cat([one[name] for one in new if one]) for name in sorted(IMAGE_NAMES) if any(new)}
        self._prompt = MediaPrompt(entry, ids, inputs)
        self._positions = torch.zeros(3, *ids.shape, dtype=torch.long)
        for number, row in enumerate(rows if self._prompt else ()):
            left = len(row.ids) - row.read
            if left:
                self._positions[:, number, -left:] = _positions(entry, row)[:, row.read :]

    def __bool__(self) -> bool:
        return bool(self._prompt)

    def cut(self, start: int, wanted: int) -> int:
        """Return the column before which a piece ends: at best `wanted`, but in no image."""
        return self._prompt.next_cut(start, wanted)

    def inputs(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        """Return what a forward over some columns is given: pixels and grids, and `position_ids` (3, B, n)."""
        chosen = {"position_ids": self._positions[..., start:stop], **self._prompt.select(start, stop)}
        return {name: value.to(self._device) for name, value in chosen.items()}


def _ids(row: Row) -> torch.Tensor:
    return torch.tensor([row.ids])


def _positions(entry: Any, row: Row) -> torch.Tensor:
    """Return the rotary positions of a row's whole history, (3, L)."""
    ids = _ids(row)
    if not row.images:
        return torch.arange(ids.shape[1]).expand(3, -1)
    inputs: dict[str, Any] = dict(row.images)
    add_media_types(entry, ids, inputs)
    return media_positions(entry, ids, torch.ones_like(ids), inputs)[:, 0]
