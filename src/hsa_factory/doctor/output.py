"""The report as text: with rich where it is installed, else in plain columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, TextIO

from .report import Finding, Report


if TYPE_CHECKING:
    from .self_test import Outcome

MARKS = {"passed": "green", "failed": "bold red", "not run": "yellow"}
Rows = list[tuple[str, ...]]
_ALWAYS_SHOWN = ("torch", "transformers", "llamafactory")


@dataclass(frozen=True)
class Section:
    """A title, and rows of cells."""

    title: str
    rows: Rows


def write_report(out: TextIO, report: Report) -> None:
    """Write the report for people."""
    sections = [*_sections(report), _verdict(report)]
    try:
        from rich.console import Console
    except ImportError:
        for section in sections:
            print(f"\n{section.title}", *aligned(section.rows), sep="\n", file=out)
        return

    from rich.table import Table
    from rich.text import Text

    console = Console(file=out, highlight=False)
    console = console if console.is_terminal else Console(file=out, highlight=False, width=160)
    for section in sections:
        table = Table.grid(padding=(0, 2))
        for row in section.rows:
            table.add_row("", *(Text(cell, MARKS.get(cell, "")) for cell in row))
        console.print(Text(f"\n{section.title}", "bold"))
        console.print(table)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines, the columns below each other."""
    columns = max((len(row) for row in rows), default=0)
    widths = [max((len(row[place]) for row in rows if place < len(row) - 1), default=0) for place in range(columns)]
    return ["  " + "  ".join(f"{cell:<{widths[place]}}" for place, cell in enumerate(row)).rstrip() for row in rows]


def _sections(report: Report) -> list[Section]:
    sections = [Section("versions", _package_rows(report))]
    if report.machine is None:
        return sections
    sections.append(Section("machine", _machine_rows(report)))
    sections.append(Section("what backend: auto takes here", _choice_rows(report)))
    refused: Rows = [(refusal.what, refusal.reason, refusal.advice) for refusal in report.refusals]
    sections.append(Section("what does not work here", refused or [("nothing",)]))
    sections.append(Section("self-test: outputs and gradients against the reference", _test_rows(report)))
    if report.timings:
        title = "timing: forward and backward of one layer, against causal attention without HSA"
        sections.append(Section(title, _timing_rows(report)))
    return sections


def _package_rows(report: Report) -> Rows:
    errors = {tried.name: tried.error for tried in report.imports}
    rows: Rows = []
    for package in report.packages:
        if package.installed is None and not package.problems and package.name not in _ALWAYS_SHOWN:
            continue
        fits = "fits" if package.wanted else ""
        fits = "for training with `hsa-factory train` only" if package.installed is None else fits
        state = "; ".join(package.problems) or errors.get(package.name) or fits
        rows.append((package.name, package.installed or "not installed", state))
    return rows


def _machine_rows(report: Report) -> Rows:
    machine = report.machine
    if machine is None:
        return []
    memory = "" if machine.memory_gib is None else f", {machine.memory_gib:g} GiB"
    rows: Rows = [
        ("system", machine.system),
        (
            "processor",
            f"{machine.processor}, {machine.cores} cores{memory}; torch uses {machine.threads} thread{'s' * (machine.threads != 1)}",
        ),
        ("device", machine.device),
    ]
    if machine.gpu is not None:
        gpu = machine.gpu
        others = f"; {gpu.others} more" if gpu.others else ""
        about = f"{gpu.memory_gib:g} GiB, {gpu.free_gib:g} free, compute capability {gpu.capability}, CUDA {gpu.cuda}"
        rows += [("GPU", f"{gpu.name}, {about}{others}"), ("C compiler", machine.compiler or "none")]
    return rows


def _choice_rows(report: Report) -> Rows:
    """One row for lengths that follow each other and have one answer."""
    rows: Rows = []
    lengths = [choice for choice in report.choices if isinstance(choice.case, int)]
    for (backend, reason), alike in groupby(lengths, key=lambda choice: (choice.backend, choice.reason)):
        cases = [f"{choice.case:,}" for choice in alike]
        rows.append((f"{' to '.join(dict.fromkeys((cases[0], cases[-1])))} tokens", backend, reason))
    others = [choice for choice in report.choices if not isinstance(choice.case, int)]
    return [*rows, *((str(choice.case), choice.backend, choice.reason) for choice in others)]


def _test_rows(report: Report) -> Rows:
    """One row a backend and type of numbers, and one for each test that failed."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in report.outcomes:
        groups.setdefault((outcome.backend, outcome.dtype), []).append(outcome)
    rows: Rows = []
    for (backend, dtype), outcomes in groups.items():
        failed = [outcome for outcome in outcomes if outcome.status == "failed"]
        passed = [outcome for outcome in outcomes if outcome.status == "passed"]
        status = "failed" if failed else "passed" if len(passed) == len(outcomes) else "not run"
        worst = max((outcome.error for outcome in outcomes if outcome.error is not None), default=None)
        error = "" if worst is None else f"largest error {worst:.0e}, allowed {outcomes[0].tolerance:.0e}"
        taken = sum(outcome.seconds or 0 for outcome in outcomes)
        about = f"{len(passed)} of {len(outcomes)} cases in {taken:.1f} s; {error}".rstrip("; ")
        rows.append((backend, dtype, status, about))
        rows += [("", "", "", f"{outcome.case}: {outcome.what}") for outcome in failed]
    return rows


def _timing_rows(report: Report) -> Rows:
    rows: Rows = [("tokens", "backend", "ms", "causal, ms", "speed-up", "limit", "of it")]
    for timing in report.timings:
        tokens = f"{timing.tokens:,}"
        if timing.seconds is None or timing.causal_seconds is None or timing.speed_up is None:
            rows.append((tokens, timing.backend, "", "", "", f"{timing.limit:.1f}", f"not timed: {timing.note}"))
            continue
        times = (f"{timing.seconds * 1e3:,.2f}", f"{timing.causal_seconds * 1e3:,.2f}", f"{timing.speed_up:.2f}")
        rows.append((tokens, timing.backend, *times, f"{timing.limit:.1f}", f"{timing.share_of_limit:.0%}"))
    return rows


def _verdict(report: Report) -> Section:
    rows = [*_finding_rows("wrong", report.problems), *_finding_rows("note", report.warnings)]
    return Section("something is wrong" if report.problems else "nothing is wrong", rows)


def _finding_rows(kind: str, findings: Sequence[Finding]) -> Rows:
    rows: Rows = []
    for finding in findings:
        rows.append((kind, finding.what))
        rows += [("", f"→ {finding.advice}")] if finding.advice else []
    return rows
