"""`hsa-factory inspect`: what a model gets to see of a training file's data."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import track

from ..amounts import amount
from ..inspection.check import check_accounts, check_rules
from ..inspection.inspected_sample import InspectedSample
from ..inspection.output import open_output
from ..inspection.page import PAGE_LIMIT, PageWriter
from ..inspection.terminal import print_legend, print_sample
from ..training_file import TrainingFile, read_training_file
from ..user_errors import UserError, explain
from ..visible_text import escape_hidden, show_hidden, show_hidden_line


if TYPE_CHECKING:
    from ..llamafactory.inspect.prepared_data import PreparedData


_SAMPLES = {"text": "0-2", "json": "0-2", "html": "0-19"}
_MOST = 10**9  # no data set has so many samples
DESCRIPTION = """\
Show samples as the collator hands them to the model, unpadded: tokens, semantic types, what is trained and why the rest
is not. Nothing is trained and no model is loaded.
"""
EXAMPLES = """\
examples:
  hsa-factory inspect train.yaml                                         three samples in the terminal
  hsa-factory inspect train.yaml --format html --output page.html        a page to look around in
  hsa-factory inspect train.yaml --samples 5 cutoff_len=2048             options are overridden as in train
  hsa-factory inspect train.yaml --samples 0- --format json --output all.jsonl
  hsa-factory inspect train.yaml --compare other.yaml                    what another file, or other rules, would change
  hsa-factory inspect train.yaml --compare hsa.noise_turns=1
  hsa-factory inspect train.yaml --cost hsa.noise_turns=1                what rules would save, before training
  hsa-factory inspect train.yaml --check --max-dropped 0.05              a test for a pipeline: exit code 1 and a list
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="hsa-factory inspect",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help="the training file (YAML or JSON)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override the file, as in train")
    parser.add_argument(
        "--format",
        choices=("text", "json", "html"),
        default="text",
        help="coloured text, one JSON object a line, or one self-contained page (%(default)s)",
    )
    parser.add_argument(
        "--samples",
        metavar="A-B",
        help="numbers of the samples, B included: 5, 0-9 or 10- (0-2; 0-19 for html)",
    )
    parser.add_argument(
        "--in-file",
        action="store_true",
        help="let --samples count the samples of the first data set as they stand in its file, from 0, those included that are "
        "left out",
    )
    parser.add_argument("--split", choices=("train", "eval"), default="train", help="which data (%(default)s)")
    parser.add_argument("--output", metavar="FILE", help="write there instead of the terminal")
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with 1 and a list if samples have nothing to train, truncation took a feedback marker, or a rule of "
        "hsa.rules never matched; samples are shown only with --output",
    )
    parser.add_argument(
        "--compare",
        action="append",
        metavar="OTHER",
        help="instead of samples show which tokens change their type, who sees them, or whether they are trained, by "
        "message: against another training file, a file or preset of rules, or the same file with key=value; given twice, "
        "the one against the other",
    )
    parser.add_argument(
        "--cost",
        action="store_true",
        help="instead of samples show what the rules cost on all of them, by length: pairs of tokens that see each other, "
        "keys and bytes of the cache, time of attention",
    )
    parser.add_argument(
        "--max-dropped",
        type=_share,
        metavar="SHARE",
        help="with --check: the largest share of samples, 0 to 1, that a data set may lose",
    )
    parser.add_argument(
        "--max-blind",
        type=_share,
        metavar="SHARE",
        help="with --check: the largest share of replies, 0 to 1, that may see nothing of the message before them, or of "
        "its media or its feedback token",
    )
    return parser


def parse_range(text: str) -> tuple[int, int | None]:
    """Read ``A-B`` (B included), ``A`` or ``A-``; return the start and the end, exclusive (None: to the end).

    Raises:
        UserError: If the text is neither, or a number is larger than any data set.
    """
    first, dash, last = text.partition("-")
    if not (first.isascii() and first.isdigit()) or (last and not (last.isascii() and last.isdigit())):
        raise UserError(f"--samples {text!r}: expected A-B, A or A-, with whole numbers.")
    if max(len(first), len(last)) > 18 or int(first) > _MOST:
        raise UserError(f"--samples {text!r}: no data set has so many samples.")
    start = int(first)
    stop = int(last) + 1 if last else (None if dash else start + 1)
    if stop is not None and stop <= start:
        raise UserError(f"--samples {text!r}: the range is empty.")
    return start, stop


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; None: those of the process.

    Returns:
        The exit code: 0, or 1 if `--check` found something.

    Raises:
        UserError: If the file, a range or the data is not usable.
    """
    options = build_parser().parse_intermixed_args(argv)
    try:
        return _run(options)
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return 0
    except RuntimeError as error:  # how `datasets` tells of a row that cannot be prepared in one of several processes
        raise UserError(explain(error)) from error


def _run(options: argparse.Namespace) -> int:
    default = "0-" if options.cost else _SAMPLES[options.format]
    wanted = default if options.samples is None else options.samples
    start, stop = parse_range(wanted)
    if options.cost and (options.check or options.format == "html"):
        raise UserError("--cost is text or --format json, and goes without --check.")
    if options.format == "html" and not options.output and not options.check:
        raise UserError("--format html needs --output PAGE.")
    if options.compare and (options.check or options.cost):
        raise UserError("--compare goes without --check and --cost.")
    for limit in ("max_dropped", "max_blind"):
        if getattr(options, limit) is not None and not options.check:
            raise UserError(f"--{limit.replace('_', '-')} is for --check.")
    if options.in_file and options.compare:
        raise UserError("--compare counts samples as they stand in their file, without --in-file.")
    if options.compare:
        return _compare(options, start, stop)
    training_file = read_training_file(options.file, options.overrides)

    if options.check and not options.output:
        return _check(_load(options, training_file), options)
    with open_output(options.output) as out:
        prepared = _load(options, training_file)
        if options.in_file:
            samples = _samples_of_file(prepared, start, stop)
        else:
            samples = _samples(prepared, start, stop, show_progress=options.output is not None)
        if options.cost:
            from .inspect_cost import write_cost

            shown = write_cost(out, prepared, samples, as_json=options.format == "json")
        elif options.format == "text":
            shown = _write_text(out, prepared, samples)
        elif options.format == "json":
            shown = _write_json(out, samples)
        else:
            shown = _write_page(out, prepared, samples, Path(options.file).name, training_file)
        if not shown and not prepared.is_empty and not options.in_file:
            raise UserError(f"--samples {wanted}: there is no such sample in the prepared data.")
    return _check(prepared, options) if options.check else 0


def _compare(options: argparse.Namespace, start: int, stop: int | None) -> int:
    from .inspect_compare import read_sides, write_comparison

    names, files = read_sides(options.file, options.overrides, options.compare)
    with open_output(options.output) as out:
        sides = [_load(options, training_file) for training_file in files]
        shown, lines = write_comparison(out, sides, names, (start, stop), options.format)
        if not shown:
            raise UserError(f"--samples {start}-{'' if stop is None else stop - 1}: there is no such sample.")
    if options.format != "text":
        print(*map(show_hidden_line, lines), sep="\n", file=sys.stderr)
    return 0


def _load(options: argparse.Namespace, training_file: TrainingFile) -> "PreparedData":
    with redirect_stdout(sys.stderr):  # LLaMA-Factory's log handlers keep the stream they find when imported
        from ..llamafactory.inspect.prepared_data import load_samples

        return load_samples(training_file, options.split, allow_empty=options.check)


def _samples(prepared: "PreparedData", start: int, stop: int | None, show_progress: bool) -> Iterable[InspectedSample]:
    samples = prepared.samples(start, stop)
    if not show_progress:
        return samples
    number = _number_of_rows(prepared)
    return _tracked(samples, "samples", None if number is None else max(min(number, stop or number) - start, 0))


def _samples_of_file(prepared: "PreparedData", start: int, stop: int | None) -> Iterable[InspectedSample]:
    """Return the samples with these numbers in the file, and note how many of them are left out.

    Raises:
        UserError: If the file has no such sample, or it is not known which samples the data are.
    """
    if not prepared.has_numbers:
        raise UserError(
            "--in-file: data of a tokenized_path do not say which samples of a file they are; leave it out."
        )
    name, account = next(iter(prepared.accounts.items()))
    if start >= account.samples:
        raise UserError(
            f"--samples {start}…: there is no such sample, {name} has {amount(account.samples, 'sample')}, numbers from 0. "
            f"{prepared.note}".strip()
        )
    stop = min(stop or account.samples, account.samples)
    found = prepared.find_rows()
    rows = [found[name, number] for number in range(start, stop) if (name, number) in found]
    lost = stop - start - len(rows)
    if lost:
        place = f"sample {start}" if stop - start == 1 else f"samples {start} to {stop - 1}"
        note = f"Of {place} of {name}, {lost:,} {'is' if lost == 1 else 'are'} left out."
        prepared.note = f"{prepared.note} {note}".strip()
        print(f"hsa-factory inspect: {note}", file=sys.stderr)
    return (sample for row in dict.fromkeys(rows) for sample in prepared.samples(row, row + 1))


def _number_of_rows(prepared: "PreparedData") -> int | None:
    """Return how many rows there are; None for a stream."""
    return len(prepared.rows) if hasattr(prepared.rows, "__len__") else None


def _tracked(values: Iterable[Any], what: str, total: int | None) -> Iterable[Any]:
    return track(values, what, total=total, console=Console(stderr=True), transient=True)


def _write_text(out: TextIO, prepared: "PreparedData", samples: Iterable[InspectedSample]) -> int:
    console = Console(file=out, highlight=False)
    print_legend(console, prepared.marker)
    shown = 0
    for sample in samples:
        print_sample(console, sample, prepared.decode, prepared.marker_id)
        shown += 1
    return shown


def _write_json(out: TextIO, samples: Iterable[InspectedSample]) -> int:
    shown = 0
    for sample in samples:
        print(escape_hidden(json.dumps(sample.to_dict(), ensure_ascii=False)), file=out)
        shown += 1
    return shown


def _write_page(
    out: TextIO,
    prepared: "PreparedData",
    samples: Iterable[InspectedSample],
    title: str,
    training_file: TrainingFile,
) -> int:
    notes = [prepared.note] if prepared.note else []
    has_rules = bool(training_file.hsa) or _takes_saved_rules(training_file)
    config = prepared.hsa_config if has_rules or training_file.is_plain else None
    if has_rules and not training_file.hsa:
        notes.append("The training file has no hsa block: the rules are those saved with the checkpoint.")
    elif training_file.is_plain:
        notes.append("The training file has no hsa block: shown is what `hsa: true` would make of it.")
    elif config is None:
        notes.append("The training file has no hsa block: every token sees all before it.")
    page = PageWriter(title, config, prepared.marker_id, prepared.decode, notes)
    shown = 0
    for sample in samples:
        page.add(sample)
        shown += 1
        if page.size > PAGE_LIMIT:
            page.notes.append(f"The page is full: it ends with sample {sample.index}. Narrow --samples to see others.")
            print(f"hsa-factory inspect: {page.notes[-1]}", file=sys.stderr)
            break
    overview = _tracked(prepared.overview(), "overview", _number_of_rows(prepared))
    page.write(out, overview, _accounts(prepared))
    return shown


def _takes_saved_rules(training_file: TrainingFile) -> bool:
    """Return whether training would take over the rules of a checkpoint."""
    from ..llamafactory.model.checkpoint import has_saved_rules, starting_points

    return not training_file.hsa_off and has_saved_rules(starting_points(training_file.args))


def _accounts(prepared: "PreparedData") -> dict[str, dict[str, Any]]:
    return {name: account.to_dict() for name, account in prepared.accounts.items()}


def _check(prepared: "PreparedData", options: argparse.Namespace) -> int:
    if options.max_blind is not None and prepared.hsa_config is None:
        raise UserError("--max-blind: the training file has no hsa block, so every reply sees all before it.")
    accounts = _accounts(prepared)
    rules: Counter = Counter()
    for account in accounts.values():
        rules.update(account["rules"])
    findings, idle = check_accounts(accounts, options.max_dropped, options.max_blind), check_rules(rules)
    preset = _preset_of_rules(prepared)
    if preset is None:
        findings += idle
    for finding in findings:
        print(show_hidden(finding))
    if idle and preset is not None:
        print(
            f"note: {len(idle)} of the {amount(len(rules), 'rule')} of the preset {preset!r} never matched: they are for data of many kinds"
        )
    if prepared.note:
        print(prepared.note)
    if not findings:
        samples = sum(account["samples"] for account in accounts.values())
        print(f"checked {amount(samples, 'sample')}: nothing to complain of")
    return 1 if findings else 0


def _preset_of_rules(prepared: "PreparedData") -> str | None:
    """Return the preset that the data took their rules from; None: they have none, or rules of their own."""
    rules = None if prepared.hsa_config is None else prepared.hsa_config.rules
    return rules if isinstance(rules, str) else None


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text}: a share is between 0 and 1")
    return share
