"""`hsa-factory inspect`: what a model gets to see of a training file's data."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from rich.console import Console

from ..training_file import read_training_file
from .text import print_legend, print_sample


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="hsa-factory inspect",
        description="Show samples as the collator hands them to the model, unpadded: tokens, semantic types, labels. "
        "Nothing is trained and no model is loaded.",
    )
    parser.add_argument("file", help="the training file (YAML or JSON)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override the file, as in train")
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="coloured text, or one JSON object a line"
    )
    parser.add_argument(
        "--samples",
        default="0-2",
        metavar="A-B",
        help="numbers of the samples, B included: 5, 0-9 or 10- (%(default)s)",
    )
    parser.add_argument("--split", choices=("train", "eval"), default="train", help="which data (%(default)s)")
    parser.add_argument("--output", metavar="FILE", help="write there instead of the terminal")
    return parser


def parse_range(text: str) -> tuple[int, int | None]:
    """Read ``A-B`` (B included), ``A`` or ``A-``; return the start and the end, exclusive (None: to the end).

    Raises:
        ValueError: If the text is neither.
    """
    first, dash, last = text.partition("-")
    if not first.isdigit() or (last and not last.isdigit()):
        raise ValueError(f"--samples {text!r}: expected A-B, A or A-, with whole numbers.")
    start = int(first)
    stop = int(last) + 1 if last else (None if dash else start + 1)
    if stop is not None and stop <= start:
        raise ValueError(f"--samples {text!r}: the range is empty.")
    return start, stop


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; None: those of the process.

    Returns:
        The exit code: 0, or 2 if the file, a range or the data is not usable.
    """
    options = build_parser().parse_intermixed_args(argv)
    try:
        start, stop = parse_range(options.samples)
        training_file = read_training_file(options.file, options.overrides)

        out = open(options.output, "w", encoding="utf-8") if options.output else sys.stdout
        with redirect_stdout(sys.stderr):  # LLaMA-Factory's log handlers keep the stream they find when imported
            from ..llamafactory.samples import load_samples

            prepared = load_samples(training_file, options.split)
        samples = prepared.samples(start, stop)
        shown = 0
        try:
            console = Console(file=out, highlight=False)
            if options.format == "text":
                print_legend(console, prepared.marker)
            for sample in samples:
                shown += 1
                if options.format == "json":
                    print(json.dumps(sample.to_dict(), ensure_ascii=False), file=out)
                else:
                    print_sample(console, sample, prepared.decode, prepared.marker_id)
        finally:
            if options.output:
                out.close()
        if shown == 0:
            raise ValueError(f"--samples {options.samples}: there is no such sample in the prepared data.")
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        print(f"hsa-factory inspect: {error}", file=sys.stderr)
        return 2

    return 0
