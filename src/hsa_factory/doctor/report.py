"""What the doctor found: what is wrong, what to do, and the object for a bug report."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .imports import Import
from .versions import Package


if TYPE_CHECKING:
    from .choice import Choice
    from .machine import Machine
    from .refused import Refusal
    from .self_test import Outcome
    from .timing import Timing

FORMAT_VERSION = 1
_REPLACEMENTS = ("blockwise", "dense", "reference")
_LONG = 16384  # tokens: slower than without HSA there is worth a word


@dataclass
class Finding:
    """Something that is wrong, or worth a word.

    Attributes:
        what: What it is.
        advice: What to do; empty: nothing need be done.
    """

    what: str
    advice: str = ""


@dataclass
class Report:
    """All that was found. What could not be looked at is empty.

    Attributes:
        packages: Versions.
        imports: What can be imported.
        machine: None: torch or transformers do not import.
        broken: Why they do not; None: they do.
        choices: What ``auto`` takes.
        refusals: What does not work here.
        outcomes: Of the self-test.
        timings: Of attention.
    """

    packages: list[Package]
    imports: list[Import] = field(default_factory=list)
    machine: "Machine | None" = None
    broken: str | None = None
    choices: "Sequence[Choice]" = ()
    refusals: "Sequence[Refusal]" = ()
    outcomes: "Sequence[Outcome]" = ()
    timings: "Sequence[Timing]" = ()

    @property
    def problems(self) -> list[Finding]:
        """What is wrong: the exit code is 1 if there is anything."""
        found = [Finding(text, package.advice or "") for package in self.packages for text in package.problems]
        if self.broken is not None:
            found.append(
                Finding(f"hsa-factory cannot run here: {self.broken}", "make the packages above fit together")
            )
        found += [
            Finding(f"{tried.name} cannot be imported: {tried.error}", "install it anew, in a version that fits")
            for tried in self.imports
            if tried.error is not None
        ]
        return found + self._broken_backends()

    @property
    def warnings(self) -> list[Finding]:
        """What is worth a word."""
        found = [Finding(f"{one.what}: {one.reason}", one.advice) for one in self.refusals if one.advice]
        skipped = sum(outcome.status == "not run" for outcome in self.outcomes)
        if skipped:
            found.append(Finding(f"{skipped} of {len(self.outcomes)} tests were not run: no time was left"))
        chosen = {choice.case: choice.backend for choice in self.choices}
        for timing in self.timings:
            if timing.backend == chosen.get(timing.tokens) and timing.tokens >= _LONG and (timing.speed_up or 1) < 1:
                slower = f"{timing.backend} is {1 / (timing.speed_up or 1):.1f} times slower than no HSA at {timing.tokens:,} tokens"
                found.append(Finding(slower, "try another backend: hsa: {backend: …}"))
        return found

    @property
    def exit_code(self) -> int:
        """1 if something is wrong, else 0."""
        return 1 if self.problems else 0

    def to_dict(self) -> dict[str, Any]:
        """Return the object for a bug report, for JSON."""
        timings = [asdict(timing) | {"share_of_limit": timing.share_of_limit} for timing in self.timings]
        return {
            "format_version": FORMAT_VERSION,
            "status": "wrong" if self.problems else "ok",
            "problems": [asdict(problem) for problem in self.problems],
            "warnings": [asdict(warning) for warning in self.warnings],
            "machine": None if self.machine is None else asdict(self.machine),
            "packages": [asdict(package) for package in self.packages],
            "imports": [asdict(tried) for tried in self.imports],
            "auto": [asdict(choice) for choice in self.choices],
            "refused": [asdict(refusal) for refusal in self.refusals],
            "self_test": [asdict(outcome) for outcome in self.outcomes],
            "timing": timings,
        }

    def _broken_backends(self) -> list[Finding]:
        failed: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            if outcome.status == "failed":
                failed.setdefault(outcome.backend, []).append(outcome)
        tested = [*dict.fromkeys(outcome.backend for outcome in self.outcomes)]
        sound = [name for name in _REPLACEMENTS if name not in failed and (name in tested or name == "reference")]
        device = "" if self.machine is None else f" on {self.machine.device}"
        advice = f"train and generate with `hsa: {{backend: {sound[0]}}}`" if sound else "use another device"
        return [
            Finding(
                f"the {backend} backend fails {len(outcomes)} of its tests{device}, first {outcomes[0].dtype}, "
                f"{outcomes[0].case}: {outcomes[0].what}",
                f"{advice}, and please report it with `hsa-factory doctor --json`",
            )
            for backend, outcomes in failed.items()
        ]
