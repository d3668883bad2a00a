"""A sample in the terminal: tokens coloured by type, untrained ones dim, the marker marked, one line of counts a turn."""

from collections.abc import Callable, Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from ..amounts import amount
from ..feedback import IGNORE_INDEX
from ..semantics import SemanticType
from ..visible_text import show_hidden, show_hidden_line
from .inspected_sample import InspectedSample, Turn, count_trained


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
        legend.append(f" {show_hidden_line(marker)} ", MARKER_STYLE)
    console.print(legend, soft_wrap=True)


def print_sample(
    console: Console, sample: InspectedSample, decode: Callable[[Sequence[int]], str], marker_id: int | None
) -> None:
    """Print one sample, turn by turn.

    Args:
        console: Where to.
        sample: The sample.
        decode: Turns ids into text; runs of one style are decoded together, so that characters stay whole.
        marker_id: Id of the feedback marker; None: nothing is marked.
    """
    total = max(len(sample.input_ids), 1)
    header = f"sample {sample.name}, {sample.dataset}: {amount(len(sample.input_ids), 'token')} ({_listed(sample.counts())}), "
    _print_line(console, f"{header}{sample.trained:,} trained ({sample.trained / total:.1%})", "bold")

    place = 0
    for turn in sample.turns:
        if turn.start > place:  # padding between packed samples
            _print_tokens(console, sample, place, turn.start, decode, marker_id)
        _print_line(console, _turn_line(sample, turn), "bold blue")
        if turn.stop > turn.start:
            _print_tokens(console, sample, turn.start, turn.stop, decode, marker_id)
        place = turn.stop
    if place < len(sample.input_ids):
        if sample.turns:
            _print_line(console, f"── padding: {amount(len(sample.input_ids) - place, 'token')}", "bold blue")
        _print_tokens(console, sample, place, len(sample.input_ids), decode, marker_id)


def _print_line(console: Console, line: str, style: str) -> None:
    console.print(Text(show_hidden_line(line), style), soft_wrap=True)


def _turn_line(sample: InspectedSample, turn: Turn) -> str:
    number = "" if turn.message is None else f" {turn.message}"
    of = (
        f" of {sample.parts[turn.part].dataset} sample {sample.parts[turn.part].index}"
        if len(sample.parts) > 1
        else ""
    )
    trained = count_trained(sample.labels[turn.start : turn.stop])
    line = f"── message{number}{of}, {turn.role}: {amount(turn.stop - turn.start, 'token')} "
    line += f"({_listed(sample.counts(turn.start, turn.stop))}), {trained:,} trained"
    if weights := sample.weights(turn.start, turn.stop):
        line += f" (weight {', '.join(f'{weight:g}' for weight in weights)})"
    reasons = {reason for reason in sample.reasons[turn.start : turn.stop] if reason is not None}
    if reasons and not trained:
        line += f": {', '.join(sorted(reasons))}"
    return line + (f", {len(turn.cut_ids):,} cut away by cutoff_len" if turn.cut_ids else "")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _print_tokens(
    console: Console,
    sample: InspectedSample,
    start: int,
    stop: int,
    decode: Callable[[Sequence[int]], str],
    marker_id: int | None,
) -> None:
    ids = sample.input_ids[start:stop]
    styles = [
        MARKER_STYLE if token == marker_id else _style(semantic_id, label)
        for token, semantic_id, label in zip(ids, sample.semantic_ids[start:stop], sample.labels[start:stop])
    ]
    text = Text()
    for style, run in groupby(zip(styles, ids), key=lambda item: item[0]):
        text.append(show_hidden(_fold([token for _, token in run], decode)), style)
    if text.plain.endswith("\n"):
        text.right_crop(1)
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
