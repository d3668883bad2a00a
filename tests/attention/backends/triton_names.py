"""The cases of `triton_interpreted.py`, for which that need not be imported."""

SHORT = (
    "padding left and right, NaN there",
    "hidden pairs",
    "packed, three heads a key",
    "turns, windows, a sliding window",
    "the last queries, gaps between keys",
)
LONG = (
    "documents that interleave, padding",
    "all GLOBAL, half precision",
    "all NOISE, other memory",
    "eight heads a key, a scale",
    "in a compiled model",
    "other sizes of heads",
)
