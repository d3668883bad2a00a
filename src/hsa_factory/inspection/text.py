"""A sample in the terminal: tokens coloured by type, untrained ones dim, the marker marked."""

from collections.abc import Callable, Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from ..feedback import IGNORE_INDEX
from ..semantics import SemanticType
from .sample import InspectedSample


COLOURS = {SemanticType.GLOBAL: "cyan", SemanticType.LANDMARK: "green", SemanticType.NOISE: "yellow"}
MARKER_STYLE = "bold white on red"
_REPEATS_SHOWN = 4  # a longer run of one token (image placeholders) is folded


def print_legend(console: Console, marker: str | None) -> None:
    """Print what the colours mean."""
    legend = Text("legend: ")
    for semantic_type, colour in COLOURS.items():
        legend.append(semantic_type.name, colour).append(" trained, ").append("not trained", f"{colour} dim")
        legend.append("   ")
    if marker is not None:
        legend.append(f" {marker} ", MARKER_STYLE)
    console.print(legend)


def print_sample(
    console: Console, sample: InspectedSample, decode: Callable[[Sequence[int]], str], marker_id: int | None
) -> None:
    """Print one sample.

    Args:
        console: Where to.
        sample: The sample.
        decode: Turns ids into text; runs of one style are decoded together, so that characters stay whole.
        marker_id: Id of the feedback marker; None: nothing is marked.
    """
    total = max(len(sample.input_ids), 1)
    counts = ", ".join(f"{name} {count:,}" for name, count in sample.type_counts().items())
    header = f"sample {sample.index}, {sample.dataset}: {len(sample.input_ids):,} tokens ({counts}), "
    console.print(f"{header}{sample.trained:,} trained ({sample.trained / total:.1%})", style="bold", soft_wrap=True)

    text = Text()
    styles = [
        MARKER_STYLE if token == marker_id else _style(semantic_id, label)
        for token, semantic_id, label in zip(sample.input_ids, sample.semantic_ids, sample.labels)
    ]
    for style, run in groupby(zip(styles, sample.input_ids), key=lambda item: item[0]):
        text.append(_fold([token for _, token in run], decode), style)
    console.print(text, soft_wrap=True)


def _style(semantic_id: int, label: int) -> str:
    colour = COLOURS[SemanticType(semantic_id)]
    return f"{colour} dim" if label == IGNORE_INDEX else colour


def _fold(token_ids: list[int], decode: Callable[[Sequence[int]], str]) -> str:
    pieces: list[str] = []
    plain: list[int] = []
    for token, run in groupby(token_ids):
        number = len(list(run))
        if number <= _REPEATS_SHOWN:
            plain += [token] * number
            continue
        pieces += [decode(plain), f"{decode([token])}×{number}"]
        plain = []
    return "".join([*pieces, decode(plain)])
