"""`hsa-factory inspect --compare`: what other rules, or another training file, change in the same samples."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import yaml

from ..inspection.compare import SampleChange, Side, compare
from ..inspection.compare_output import ChangeSummary, write_json, write_page, write_text
from ..inspection.inspected_sample import InspectedSample, Part
from ..training_file import TrainingFile, read_training_file
from ..user_errors import UserError


if TYPE_CHECKING:
    from ..llamafactory.inspect.prepared_data import PreparedData


def read_sides(
    file: str, overrides: Sequence[str], others: Sequence[str]
) -> tuple[tuple[str, str], list[TrainingFile]]:
    """Read the two training files to compare.

    Args:
        file: The training file.
        overrides: For both.
        others: One: what the file is compared with. Two: the file with the first, and with the second.

    Returns:
        A name for each, and the files.

    Raises:
        UserError: If there are more than two, or one is neither a training file, rules, nor an override.
    """
    if len(others) > 2:
        raise UserError("--compare: give one thing to compare the file with, or two to compare with each other.")
    named = [(file, read_training_file(file, overrides))] if len(others) == 1 else []
    named += [(other, _read_other(file, overrides, other)) for other in others]
    (first, one), (second, two) = named
    return (first, second), [one, two]


def _read_other(file: str, overrides: Sequence[str], other: str) -> TrainingFile:
    path = Path(other)
    if not path.is_file():
        is_override = "=" in other
        return read_training_file(file, [*overrides, other if is_override else f"hsa.rules={other}"])
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--compare {other!r}: not valid YAML in UTF-8: {error}") from None
    if isinstance(values, dict) and set(values) != {"rules"}:
        return read_training_file(other, overrides)
    return read_training_file(file, [*overrides, f"hsa.rules={other}"])


def write_comparison(
    out: TextIO, sides: Sequence["PreparedData"], names: Sequence[str], span: tuple[int, int | None], form: str
) -> tuple[int, list[str]]:
    """Write what changes.

    Args:
        out: Where to.
        sides: The data, prepared in two ways.
        names: Of the two.
        span: Rows of the first, from where up to, not including, where (None: the end).
        form: ``text``, ``json`` or ``html``.

    Returns:
        How many samples were looked at, and lines about all of them.
    """
    summary, count = ChangeSummary(), 0

    def counted() -> Iterator[SampleChange]:
        nonlocal count
        for change in find_changes(sides[0], sides[1], span[0], span[1]):
            count += 1
            yield change

    if form == "json":
        write_json(out, counted(), summary)
    else:
        (write_text if form == "text" else write_page)(out, counted(), names, summary)
    return count, summary.lines()


def find_changes(
    first: "PreparedData", second: "PreparedData", start: int, stop: int | None
) -> Iterator[SampleChange]:
    """Compare the samples of some rows of the first side with those of the second, wherever they stand there."""
    rows = second.find_rows()
    shown: tuple[tuple[int, str], InspectedSample] | None = None
    for sample in first.samples(start, stop):
        for number, part in enumerate(sample.parts or [_whole(sample)]):
            row = rows.get((part.dataset, part.index) if sample.parts else ("", sample.index))
            if row is None:
                yield _missing(part)
                continue
            if shown is None or shown[0] != (row, sample.side):
                shown = (row, sample.side), second.sample(row, sample.side)
            other = shown[1]
            place = next((k for k, one in enumerate(other.parts) if _key(one) == _key(part)), None)
            own = Side.of(sample, number if sample.parts else None, first.hsa_config)
            yield compare(part, own, Side.of(other, place, second.hsa_config))


def _key(part: Part) -> tuple[str, int]:
    return part.dataset, part.index


def _whole(sample: InspectedSample) -> Part:
    """Return a row of tokenized data as if it were one sample."""
    return Part(sample.dataset, sample.index, 0, len(sample.input_ids), 0, False, sample.side)


def _missing(part: Part) -> SampleChange:
    return SampleChange(
        part.dataset,
        part.index,
        part.stop - part.start,
        Counter(),
        [],
        "it is dropped, or absent, on the other side",
        part.side,
    )
