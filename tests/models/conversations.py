"""Random text and conversations with images for the tests of generation."""

import torch


def tokens(batch=2, length=60, seed=0):
    """Random ids, never 0."""
    return torch.randint(1, 1000, (batch, length), generator=torch.Generator().manual_seed(seed))


def types(batch=2, length=60, seed=1):
    """Random types."""
    return torch.randint(0, 3, (batch, length), generator=torch.Generator().manual_seed(seed))


def conversation(model, turns, rows=1):
    """Turns of 20 tokens of text and an image each, and what a processor makes of them."""
    config, vision = model.config, model.config.vision_config
    torch.manual_seed(turns)
    grids, ids = [], []
    for row in range(rows):
        parts = []
        for turn in range(turns):
            sides = [2 * vision.spatial_merge_size, (turn + 2) * vision.spatial_merge_size]
            number = sides[0] * sides[1] // vision.spatial_merge_size**2
            grids.append([1, *sides])
            image = [config.vision_start_token_id, *[config.image_token_id] * number, config.vision_end_token_id]
            parts += [*tokens(1, 20, 10 * row + turn)[0].tolist(), *image, 5]
        ids.append(parts)
    ids, grids = torch.tensor(ids), torch.tensor(grids)
    channels = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = [
        torch.randn(size, channels, generator=torch.Generator().manual_seed(size)) for size in grids.prod(-1).tolist()
    ]
    return ids, {"pixel_values": torch.cat(pixels), "image_grid_thw": grids}


def with_media_types(model, ids, inputs):
    """What the processor adds to tell images from text."""
    return {**inputs, "mm_token_type_ids": (ids == model.config.image_token_id).long()}
