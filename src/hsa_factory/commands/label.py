"""`hsa-factory label`: write types into data."""

import argparse
from collections.abc import Sequence

from rich.console import Console

from ..labeling.detect import tagged_entry
from ..labeling.formats import DatasetFormat
from ..labeling.label_task import LabelTask
from ..labeling.rule_set import RuleSet, preset_names
from ..labeling.summary import Summary, print_summary
from .sample_files import EPILOG, Entry, add_data_options, add_input, add_run_options, run_on_files, said_to_the_user


_EPILOG = f"""\
Presets: {", ".join(preset_names())}. `hsa-factory label --rules PRESET --print-rules` prints one, to be changed.

{EPILOG}"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="hsa-factory label",
        description="Give the messages of a data set semantic types by rules, and write the data with them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_input(parser)
    parser.add_argument("--rules", required=True, metavar="R", help="a preset's name, or a YAML file of rules")
    add_data_options(parser)
    parser.add_argument("--tokenizer", metavar="PATH", help="count tokens with this tokenizer.json, not characters")
    add_run_options(parser)
    parser.add_argument("--print-rules", action="store_true", help="print the rules as YAML, and do nothing else")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; None: those of the process.

    Returns:
        The exit code 0.

    Raises:
        UserError: If an argument or the data is not usable (exit code 2), a sample cannot be labelled or a process was
            killed (1), or the user stopped it (130).
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    with said_to_the_user():
        rules = RuleSet.parse(options.rules)
        if options.print_rules:
            print(_as_yaml(rules), end="")
            return 0
        if options.input is None or options.out is None:
            parser.error("IN and --out are needed")
        _run(options, rules)
    return 0


def _run(options: argparse.Namespace, rules: RuleSet) -> None:
    if options.tokenizer is not None:
        from ..labeling.token_counter import load_tokenizer

        load_tokenizer(options.tokenizer)  # before any work is done

    def prepare(entry: Entry) -> tuple[LabelTask, Entry]:
        tagged = tagged_entry(entry)
        return LabelTask(DatasetFormat.from_entry(tagged), rules, options.tokenizer), tagged

    def report(console: Console, summary: Summary) -> None:
        print_summary(console, summary, rules, "tokens of text" if options.tokenizer else "characters")

    run_on_files(options, "labelling", prepare, report)


def _as_yaml(rules: RuleSet) -> str:
    import yaml

    texts = (yaml.safe_dump([rule], sort_keys=False, allow_unicode=True, width=110) for rule in rules.to_list())
    return "\n".join(texts)
