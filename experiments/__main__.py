"""``python -m experiments``: the whole experiment by one command, as far as it is not done yet."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hsa_factory.user_errors import UserError

from .command_line import ending, folder, number_up_to
from .environments import ENVIRONMENTS, check_environment
from .forms import settings_of


DESCRIPTION = """\
Does HSA pay, and does feedback? Trains tiny models on CookingWorld (or BabyAI) through hsa-factory and LLaMA-Factory, lets
them play games that they have not seen, and writes tables and plots into OUT/results.

Each part is a folder under OUT/stages. What is finished is not done again, with the same settings; a run that was killed
goes on where it was. Parts that failed are tried again; why they failed stands in their log.txt. Without --quick or --long
it is the full form: all systems, three seeds, learning from own play. Pictures: python -m experiments.pictures --help.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment.

    Args:
        arguments: Of the command line; None: those of the process.

    Returns:
        0 if all is done, 1 if a part has failed, 2 if it could not begin or go on, 130 if it was stopped.
    """
    given = _parser().parse_args(arguments)
    return ending("experiments", lambda: _run(given))


def _run(given: argparse.Namespace) -> int:
    settings = settings_of(given.form, given.environment)
    out = given.out or Path("evidence" if settings.name in ("full", "quick") else f"evidence-{settings.name}")
    from .plan import Plan

    plan = Plan(settings)
    if given.list:
        for stage in plan.stages:
            state = "done" if stage.is_done(out) else "FAILED" if stage.failure(out) else ""
            print(f"{state:7} {stage.name}")
        return 0
    from .notices import notices
    from .report import write_report

    for notice in notices(plan, out):
        print(f"experiments: {notice}", file=sys.stderr)
    if given.report:
        if not any(stage.is_done(out) for stage in plan.stages):
            raise UserError(f"nothing of this form is finished in {out}: run it first, or name another --out.")
        _show(write_report(plan, out), out)
        return 0
    from .display import progress_of
    from .runner import Runner

    check_environment(settings.environment)
    with progress_of(plan, out) as watch:
        outcome = Runner(plan, out, given.jobs or _jobs(given.form), watch).run()
    _show(write_report(plan, out), out)
    for name in outcome.failed:
        log = plan.named(name).folder(out) / "log.txt"
        print(f"experiments: {name} has failed, see {log}", file=sys.stderr)
    if outcome.skipped:
        print(f"experiments: {len(outcome.skipped)} parts need these, and were left out.", file=sys.stderr)
    return 1 if outcome.failed else 0


def _show(files: Sequence[Path], out: Path) -> None:
    """Print the table of games won, and where all others stand."""
    from .page import success_markdown

    results, names = out / "results", sorted(path.name for path in files)
    won = success_markdown(results) if "success.csv" in names else "No system has played the test fold yet."
    print(f"\n{won}\n\n{results}: {', '.join(names)}")


def _jobs(form: str) -> int:
    """Return how many parts at once: the three trainings of the quick form share two cores to the end."""
    return 3 if form == "quick" else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--quick",
        dest="form",
        action="store_const",
        const="quick",
        default="full",
        help="one seed, three systems, fewer games: about ten minutes on two cores",
    )
    form.add_argument(
        "--long",
        dest="form",
        action="store_const",
        const="long",
        help="11 rooms with doors, every word a token, about 1,600 tokens an episode: days on two cores",
    )
    parser.add_argument(
        "--environment",
        type=lambda name: name.replace("_", "").lower(),
        choices=sorted(ENVIRONMENTS),
        default="cooking",
        help="what is played (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=folder, help="folder of the results (default: evidence, or evidence-FORM for other forms)"
    )
    parser.add_argument("--jobs", type=number_up_to(), help="parts at once, a thread each (default: 2; --quick: 3)")
    parser.add_argument("--list", action="store_true", help="show the parts and which are done, and do nothing")
    parser.add_argument("--report", action="store_true", help="write the tables of what is finished, and run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
