"""``python -m experiments``: the whole experiment by one command, as far as it is not done yet."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hsa_factory.user_errors import UserError

from .settings import FORMS


DESCRIPTION = """\
Does HSA pay, and does feedback? Trains tiny models on CookingWorld through hsa-factory and LLaMA-Factory, lets them play
games that they have not seen, and writes tables and plots.

Each part is a folder under OUT/stages. What is finished is not done again, with the same settings; a run that was killed
goes on where it was. Parts that failed are tried again; why they failed stands in their log.txt.
"""

LONG = """\
there is no long form yet. Counted in words and marks, an episode of CookingWorld with 5 rooms, no doors and up to 3 ingredients
has 650 in the mean, with 11 rooms and doors 1,250 (a tenth of them over 2,100): counted on 40 games of players who win. It would
need a vocabulary of single words, rows of 4,096 tokens and many more of them; how many, nobody has measured. --quick and the
full form run on two cores.\
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment.

    Args:
        arguments: Of the command line; None: those of the process.

    Returns:
        0 if all is done, 1 if a part has failed, 2 if it could not begin.
    """
    given = _parser().parse_args(arguments)
    if given.long:
        print(f"experiments: {LONG}", file=sys.stderr)
        return 2
    from .display import progress_of
    from .plan import Plan
    from .runner import Runner

    plan = Plan(FORMS["quick" if given.quick else "full"])
    if given.list:
        for stage in plan.stages:
            print(f"{'done   ' if stage.is_done(given.out) else '       '} {stage.name}")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the processes of stages end, too
    from .report import write_report

    if given.report:
        print(*write_report(plan, given.out), sep="\n")
        return 0
    try:
        with progress_of(plan) as watch:
            outcome = Runner(plan, given.out, given.jobs, watch).run()
    except UserError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("experiments: stopped; the same command goes on.", file=sys.stderr)
        return 130
    print(*write_report(plan, given.out), sep="\n")
    for name in outcome.failed:
        log = plan.named(name).folder(given.out) / "log.txt"
        print(f"experiments: {name} has failed, see {log}", file=sys.stderr)
    return 1 if outcome.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="one seed, three systems, fewer games: about ten minutes")
    form.add_argument(
        "--long", action="store_true", help="longer episodes, every word a token: says what it would need"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("evidence"), help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=_positive, default=2, help="parts at once, a core each (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="show the parts and which are done, and do nothing")
    parser.add_argument("--report", action="store_true", help="write the tables of what is finished, and run nothing")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("a whole number ≥ 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
