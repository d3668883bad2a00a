"""The columns of a row of `encode_conversation`, and what pads each."""

from ..feedback import IGNORE_INDEX
from ..semantics import SemanticType


SEMANTIC_COLUMN = "semantic_ids"
TURN_COLUMN = "turn_ids"  # only where rules have turns
LOSS_WEIGHTS_COLUMN = "loss_weights"  # only where some weight is neither 0 nor 1

TOKEN_COLUMNS = {
    "input_ids": 0,  # the tokenizer's padding token stands there
    "attention_mask": 0,
    SEMANTIC_COLUMN: int(SemanticType.NOISE),
    TURN_COLUMN: 0,
    "labels": IGNORE_INDEX,
    LOSS_WEIGHTS_COLUMN: 0.0,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
}
"""Columns with one value a token: what stands at padding."""

MEDIA_COLUMNS = (
    "pixel_values",
    "image_grid_thw",
    "image_sizes",
    "pixel_attention_mask",
    "pixel_values_videos",
    "video_grid_thw",
    "second_per_grid_ts",
)
"""What processors give of images and videos: those of a batch stand behind each other."""

DOCUMENT_COLUMNS = ("seq_lengths", "document_ids", "position_ids")
"""What says where the documents of a packed row begin; the first that a row has counts."""
