"""`hsa-factory pairs`: preference pairs from the feedback in trajectories."""

import argparse
from collections.abc import Sequence

from rich.console import Console

from ..config import ROLES
from ..pairs.counts import PairCounts, print_pair_counts
from ..pairs.options import FAILED, OCCURRENCES, PairOptions
from ..pairs.sample_pairs import pairs_entry
from ..pairs.task import PairTask
from .sample_files import EPILOG, Entry, add_data_options, add_input, add_run_options, run_on_files, said_to_the_user


_EPILOG = f"""\
A marker judges the reply before it. Where it stands in the message that answers a reply, that reply is the mistake and the next
one the correction; where it stands within a reply, what is before it is the mistake and what is after it the correction.
What becomes no pair is counted, by the reason. Train on the pairs with `stage: dpo`.

{EPILOG}"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    defaults = PairOptions()
    parser = argparse.ArgumentParser(
        prog="hsa-factory pairs",
        description="Make a preference pair of each feedback in trajectories: the conversation before a mistake as the "
        "prompt, the correction as the chosen reply, the mistake as the rejected one.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_input(parser)
    add_data_options(parser)
    parser.add_argument("--token", default=defaults.token, metavar="T", help=f"the marker ({defaults.token})")
    parser.add_argument(
        "--occurrence",
        default=defaults.occurrence,
        choices=OCCURRENCES,
        help="which feedback of a trajectory becomes a pair (every)",
    )
    parser.add_argument(
        "--scope",
        choices=[role for role in ROLES if role != "system"],
        help="the marker counts in this role only (any)",
    )
    parser.add_argument(
        "--failed",
        default=defaults.failed,
        choices=FAILED,
        help="where a marker follows the correction, too: take the first reply after it that none follows (follow), make no "
        "pair (drop), or take it as it is (keep)",
    )
    add_run_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; None: those of the process.

    Returns:
        The exit code 0.

    Raises:
        UserError: If an argument or the data is not usable, or there is no pair (exit code 2), a sample cannot be read or a
            process was killed (1), or the user stopped it (130).
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.input is None or options.out is None:
        parser.error("IN and --out are needed")
    with said_to_the_user():
        wanted = PairOptions(options.token, options.occurrence, options.scope, options.failed)

        def prepare(entry: Entry) -> tuple[PairTask, Entry]:
            return PairTask(entry, wanted), pairs_entry(entry)

        def report(console: Console, counts: PairCounts) -> None:
            print_pair_counts(console, counts, wanted.token)

        run_on_files(options, "making pairs", prepare, report)
    return 0
