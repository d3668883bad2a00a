"""Prompts with images and videos: where each lies, and the pixels of one piece of a prompt."""

from typing import Any, NamedTuple

import torch

from ..rope_positions import takes_media_types


_MEDIA = (
    ("pixel_values", "image_grid_thw", "image_token_id"),
    ("pixel_values_videos", "video_grid_thw", "video_token_id"),
)
IMAGE_NAMES = frozenset(_MEDIA[0][:2])
MEDIA_NAMES = frozenset(name for pixels, grid, _ in _MEDIA for name in (pixels, grid))


class _Span(NamedTuple):
    """The tokens of one image or video, from its first placeholder to its last; a video may have text in between."""

    start: int
    stop: int


class MediaPrompt:
    """The images and videos of a conversation.

    Args:
        entry: The model that has `get_rope_index`.
        input_ids: (B, L), the whole conversation.
        inputs: What the processor makes of it (`pixel_values`, `image_grid_thw`, …).

    Raises:
        ValueError: If images or videos do not fit the tokens.
    """

    def __init__(self, entry: Any, input_ids: torch.Tensor, inputs: dict[str, Any]) -> None:
        self._inputs = dict(inputs)
        self._spans: dict[str, list[_Span]] = {}
        for pixels, grid, token in _MEDIA:
            if inputs.get(grid) is not None and inputs.get(pixels) is not None:
                numbers = inputs[grid].prod(-1) // entry.config.vision_config.spatial_merge_size**2
                self._spans[grid] = _find_spans(input_ids == getattr(entry.config, token), numbers.tolist(), grid)

    def __bool__(self) -> bool:
        return bool(self._spans)

    def last_place(self) -> int:
        """Return the place after the last image's or video's last token, in whichever row that is."""
        return max((span.stop for spans in self._spans.values() for span in spans), default=0)

    def next_cut(self, start: int, wanted: int) -> int:
        """Return where a piece that begins at `start` may end: at best at `wanted`, but in no image or video."""
        inside = [span for spans in self._spans.values() for span in spans if span.stop > start]
        earlier = _move_out(wanted, inside, forwards=False)
        return earlier if earlier > start else _move_out(wanted, inside, forwards=True)

    def select(self, start: int, stop: int | None = None) -> dict[str, torch.Tensor]:
        """Return the pixels and grids of the images and videos that lie in a piece; nothing if there are none.

        Raises:
            ValueError: If one lies in it in part.
        """
        chosen = {}
        for pixels, grid, _ in _MEDIA:
            numbers = []
            for number, span in enumerate(self._spans.get(grid, ())):
                if span.start < start < span.stop:
                    raise ValueError(
                        f"The cache ends inside an image or video ({grid}, number {number}): end a turn after it, or begin a new cache."
                    )
                if span.start >= start and (stop is None or span.start < stop):
                    numbers.append(number)
            if numbers:
                parts = self._inputs[pixels].split(self._inputs[grid].prod(-1).tolist())
                chosen[pixels] = torch.cat([parts[number] for number in numbers])
                chosen[grid] = self._inputs[grid][numbers]
        return chosen


def add_media_types(entry: Any, input_ids: torch.Tensor, inputs: dict[str, Any]) -> None:
    """Tell images (1) and videos (2) from text (0) as the processor does, where the caller did not.

    Without ``mm_token_type_ids`` transformers' `generate` would silently give images the positions of text, which are not
    those that the model was trained with.

    Args:
        entry: The model that has `get_rope_index`.
        input_ids: (B, L).
        inputs: What `generate` is given; `mm_token_type_ids` (B, L) are put in if there are images or videos.

    Raises:
        ValueError: If they are missing and cannot be told from the tokens.
    """
    has_media = any(inputs.get(grid) is not None for _, grid, _ in _MEDIA)
    if not has_media or not takes_media_types(entry) or inputs.get("mm_token_type_ids") is not None:
        return
    if inputs.get("video_grid_thw") is not None and hasattr(entry.config, "video_start_token_id"):
        raise ValueError(
            "generate() with videos needs mm_token_type_ids here, which the processor returns with input_ids: the model "
            "marks images and videos by the same token."
        )
    types = torch.zeros_like(input_ids)
    for kind, (_, _, token) in enumerate(_MEDIA, start=1):
        types[input_ids == getattr(entry.config, token)] = kind
    inputs["mm_token_type_ids"] = types


def _find_spans(is_media: torch.Tensor, numbers: list[int], grid: str) -> list[_Span]:
    """Return where each image lies, in the order of the rows. `numbers`: how many placeholders each has."""
    if int(is_media.sum()) != sum(numbers):
        raise ValueError(
            f"{grid} describes {sum(numbers)} tokens, but input_ids has {int(is_media.sum())}: pass the images and videos "
            "of the whole conversation, those already seen included."
        )
    spans: list[_Span] = []
    for row, line in enumerate(is_media):
        places = line.nonzero().flatten().tolist()
        while places:
            own, places = places[: numbers[len(spans)]], places[numbers[len(spans)] :]
            if len(own) < numbers[len(spans)]:
                raise ValueError(
                    f"{grid}, number {len(spans)}: its tokens do not all lie in row {row} of input_ids. Pass images and videos in the order of the rows."
                )
            spans.append(_Span(own[0], own[-1] + 1))
    return spans


def _move_out(place: int, spans: list[_Span], forwards: bool) -> int:
    """Return the nearest place that lies in no span."""
    while around := next((span for span in spans if span.start < place < span.stop), None):
        place = around.stop if forwards else around.start
    return place
