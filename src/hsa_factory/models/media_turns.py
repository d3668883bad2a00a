"""Going on with a conversation that has images: M-RoPE's positions of the new ones, and only they are encoded."""

import inspect
from typing import Any

import torch
from torch import nn


_MEDIA = (
    ("pixel_values", "image_grid_thw", "image_token_id"),
    ("pixel_values_videos", "video_grid_thw", "video_token_id"),
)


def keep_new_media(
    entry: nn.Module, input_ids: torch.Tensor, seen: int, inputs: dict[str, Any]
) -> torch.Tensor | None:
    """Take the images and videos that a cache has seen out of the inputs, and place the new tokens.

    transformers gives all tokens after a cache the positions of text. Here they get those that one forward over the whole
    conversation would give them.

    Args:
        entry: The model that has `get_rope_index`.
        input_ids: (B, L), the whole conversation.
        seen: How many of its tokens are cached.
        inputs: What the processor makes of the whole conversation (`pixel_values`, `image_grid_thw`, …). What is seen is
            taken out, and `position_ids` (4, B, L) are put in; unchanged if there is no media.

    Returns:
        The rope deltas, (B, 1); None if there is no media.

    Raises:
        ValueError: If images or videos do not fit the tokens.
    """
    if all(inputs.get(grid) is None for _, grid, _ in _MEDIA):
        return None
    if max(inputs.get("num_beams") or 1, inputs.get("num_return_sequences") or 1) > 1:
        raise ValueError("A conversation with images cannot go on from a cache with beams or several sequences.")

    new = {}
    for _, grid, token in _MEDIA:
        if inputs.get(grid) is not None:
            numbers = inputs[grid].prod(-1) // entry.config.vision_config.spatial_merge_size**2
            new[grid] = _find_new(input_ids == getattr(entry.config, token), seen, numbers.tolist(), grid)

    mask = inputs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    known = inspect.signature(entry.get_rope_index).parameters
    given = {name: value for name, value in inputs.items() if name in known}
    places, deltas = entry.get_rope_index(input_ids, **given | {"attention_mask": mask})
    text = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    inputs["position_ids"] = torch.cat([text[None], places.to(text)], dim=0)

    for pixels, grid, _ in _MEDIA:
        if new.get(grid):
            parts = inputs[pixels].split(inputs[grid].prod(-1).tolist())
            inputs[pixels] = torch.cat([parts[index] for index in new[grid]])
            inputs[grid] = inputs[grid][new[grid]]
        else:
            inputs[pixels] = inputs[grid] = None
    return deltas


def _find_new(is_media: torch.Tensor, seen: int, numbers: list[int], grid: str) -> list[int]:
    """Return which images, in the order of the rows, come after the first `seen` tokens of their row."""
    if int(is_media.sum()) != sum(numbers):
        raise ValueError(
            f"{grid} describes {sum(numbers)} tokens, but input_ids has {int(is_media.sum())}: pass the images and videos "
            "of the whole conversation, those already seen included."
        )
    new, index = [], 0
    for row in is_media:
        total, cached, place = int(row.sum()), int(row[:seen].sum()), 0
        while place < total:
            if place >= cached:
                new.append(index)
            elif place + numbers[index] > cached:
                raise ValueError(f"The cache ends inside an image or video ({grid}, number {index}).")
            place += numbers[index]
            index += 1
    return new
