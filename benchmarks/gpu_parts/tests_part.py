"""Whether it is right: the self-test of `hsa-factory doctor`, then the project's tests that need CUDA; a row a group."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import torch
from results import ROOT

from hsa_factory.attention.api import available_backends
from hsa_factory.doctor.scrub import scrub
from hsa_factory.doctor.self_test import FAILED, NOT_RUN, PASSED, run_self_test

from .rows import Budget, Rows


KEYS = ("group",)
COLUMNS = ("passed", "failed", "skipped", "seconds", "first_failure")
GROUPS = {
    "triton equals the reference": ("tests/attention/backends/test_backends.py", "-k", "triton"),
    "the flex kernel": ("tests/attention/backends/test_flex.py", "-k", "TestKernel"),
    "flex equals the reference": ("tests/attention/backends/test_backends.py", "-k", "flex"),
    "models": ("tests/models/test_promises.py",),
}
_NEEDED = ("pytest", "hypothesis")


@dataclass(frozen=True)
class Sizes:
    """What is run.

    Attributes:
        dtypes: Of the self-test.
        groups: Arguments of pytest by name; what it does on a CPU is not run here.
        root: Where they start.
    """

    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32)
    groups: dict[str, tuple[str, ...]] = field(default_factory=lambda: GROUPS)
    root: Path = ROOT

    @classmethod
    def smoke(cls) -> "Sizes":
        """Return what a CPU does in a second."""
        return cls((torch.float32,), {})


def run(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """Run the self-test and all groups; what time stops is a row, too."""
    rows.measure(lambda: _self_test(device, sizes.dtypes, rows.budget), group="self-test")
    for name, arguments in sizes.groups.items():
        rows.measure(lambda arguments=arguments: _run(arguments, sizes.root, rows.budget), group=name)


def _self_test(device: torch.device, dtypes: tuple[torch.dtype, ...], budget: Budget) -> dict:
    backends = [name for name in reversed(available_backends()) if name != "auto"]
    start = time.monotonic()
    outcomes = run_self_test(device, backends, dtypes, lambda _: None, limit_s=budget.left())
    counts = Counter(outcome.status for outcome in outcomes)
    first = next((outcome for outcome in outcomes if outcome.status == FAILED), None)
    return {
        "passed": counts[PASSED],
        "failed": counts[FAILED],
        "skipped": counts[NOT_RUN],
        "seconds": round(time.monotonic() - start, 1),
        "first_failure": "" if first is None else f"{first.backend}, {first.dtype}, {first.case}: {first.what}",
    }


def _run(arguments: tuple[str, ...], root: Path, budget: Budget) -> dict:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"{' and '.join(missing)} not installed: pip install pytest hypothesis")
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        options = ("-q", "-p", "no:cacheprovider", "--maxfail", "5", f"--junitxml={report}")
        former = os.environ.get("PYTHONPATH")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *filter(None, [former])])}
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments, *options],
            cwd=root,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=max(budget.left(), 1.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own session: with the compiler's workers
            process.wait()
            raise TimeoutError("stopped: the time of this part is over") from None
        if not report.is_file():
            raise RuntimeError(f"pytest ended with exit code {code} and no report")
        return _read(report)


def _read(report: Path) -> dict:
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    first = ""
    for case in suite.iter("testcase"):
        found = case.find("failure")
        found = case.find("error") if found is None else found
        if found is not None:
            first = f"{case.get('name')}: {scrub(found.get('message') or '')}"
            break
    return {
        "passed": counts["tests"] - failed - counts["skipped"],
        "failed": failed,
        "skipped": counts["skipped"],
        "seconds": round(float(suite.get("time", 0)), 1),
        "first_failure": first,
    }
