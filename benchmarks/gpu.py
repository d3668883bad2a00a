"""HSA on a CUDA GPU in under 9 minutes: attention, training steps, decoding, tests; tables, plots and what was aimed at.

    python benchmarks/gpu.py                         # benchmarks/results/gpu/<name of the GPU>/*.csv
    python benchmarks/gpu.py --only attention        # one part; rows that are finished are kept
    python benchmarks/gpu.py --only decode --again   # measure them anew
    python benchmarks/gpu.py --smoke                 # every part in small on the CPU, in some seconds

It needs torch ≥ 2.11 and transformers (5.6 and newer), not LLaMA-Factory; pytest and hypothesis for the part `tests`,
matplotlib for the plots. Each part has a share of the time, and attention over 32k tokens comes first. Each row is written as
soon as it is measured, with the reason where it could not be: out of memory, out of time, failed. So it can be stopped and
called again.

Attention is bf16, batch 1, forward and backward, against causal flash attention without HSA. The limit is causal pairs over
visible pairs; the block limit what a kernel of blocks of 128 can reach. A plan is made once a forward for all layers:
`plan_ms` with all checks of its input, `mask_ms` without.

Exit code: 0, 1 if a row failed, a test failed or a target is missed, 2 if there is no CUDA or the directory cannot be written
to, 130 if it was interrupted.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType


sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # what is measured is this checkout

import torch
import transformers
from gpu_parts import attention_part, decode_part, tests_part, training_part
from gpu_parts.plots import plot_all
from gpu_parts.rows import FAILED, OK, Budget, Rows
from gpu_parts.targets import Target, find_targets
from measuring import machine
from results import RESULTS

from hsa_factory.doctor.output import aligned


SHARES = {"attention": 0.42, "training": 0.25, "decode": 0.15, "tests": 0.18}
KERNELS = 128  # that one process may compile: every head size, number of heads and type of numbers has its own
MODULES: dict[str, ModuleType] = {
    "attention": attention_part,
    "training": training_part,
    "decode": decode_part,
    "tests": tests_part,
}


@dataclass(frozen=True)
class Run:
    """One call of the command.

    Attributes:
        directory: Where the CSVs are.
        device: Where it is measured.
        is_smoke: Whether all is small.
        again: Whether finished rows are measured anew.
    """

    directory: Path
    device: torch.device
    is_smoke: bool
    again: bool

    def rows(self, part: str, seconds: float, say: Callable[[str], None]) -> Rows:
        """Return the rows of a part, with those of a former run."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else machine()
        stamp = {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}
        module = MODULES[part]
        path = self.directory / f"{part}.csv"
        return Rows(path, module.KEYS, module.COLUMNS, stamp, Budget(seconds), self.again, say)

    def measure(self, part: str, seconds: float) -> Rows:
        """Measure a part."""
        rows = self.rows(part, seconds, lambda line: print(f"  {part}: {line}", flush=True))
        module = MODULES[part]
        module.run(rows, self.device, module.Sizes.smoke() if self.is_smoke else module.Sizes())
        return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, plot; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODULES, metavar="PART", help=f"of {', '.join(MODULES)}")
    parser.add_argument("--minutes", type=float, default=8.5, help="for all parts (%(default)s)")
    parser.add_argument("--again", action="store_true", help="measure finished rows anew")
    parser.add_argument("--smoke", action="store_true", help="every part in small, on the CPU")
    parser.add_argument("--output", type=Path, help="directory (benchmarks/results/gpu/<name of the GPU>)")
    options = parser.parse_args(argv)
    if not options.smoke and not torch.cuda.is_available():
        print(f"gpu.py: torch {torch.__version__} finds no CUDA GPU here; --smoke runs on the CPU.", file=sys.stderr)
        return 2

    device = torch.device("cpu" if options.smoke else "cuda")
    if device.type == "cuda":
        torch._dynamo.config.recompile_limit = KERNELS
    run = Run(options.output or _directory(device), device, options.smoke, options.again)
    try:
        run.directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=run.directory).close()
    except OSError as error:
        print(
            f"gpu.py: {run.directory} cannot be written to: {error.strerror}. Name another with --output.",
            file=sys.stderr,
        )
        return 2
    print(f"results: {run.directory}", flush=True)
    left, parts, found = 60 * options.minutes, options.only or list(MODULES), {}
    for place, part in enumerate(parts):
        budget = Budget(left)
        share = SHARES[part] / sum(SHARES[later] for later in parts[place:])
        found[part] = run.measure(part, left * share)  # what a part leaves goes to those after it
        left = budget.left()
    for part in set(MODULES) - set(parts):
        found[part] = run.rows(part, 0, print)
    return _finish(run, found, parts)


def _directory(device: torch.device) -> Path:
    if device.type == "cpu":
        return Path(tempfile.gettempdir()) / "hsa_gpu_smoke"
    name = torch.cuda.get_device_name(device).lower()
    return RESULTS / "gpu" / re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def _finish(run: Run, found: dict[str, Rows], parts: Sequence[str]) -> int:
    """Print tables and targets, plot, and return the exit code."""
    for part in parts:
        columns = [*MODULES[part].KEYS, "status", *MODULES[part].COLUMNS]
        rows = [[row[column] for column in columns] for row in found[part]]
        print(f"\n{part}", *aligned([columns, *rows]), sep="\n")
    for path in plot_all(run.directory, found["attention"], found["training"], found["decode"]):
        print(f"plot: {path}")

    targets = find_targets(found["attention"], found["training"])
    print("\ntargets", *aligned([_target_row(target) for target in targets]), sep="\n")
    failed = [row for part in parts for row in found[part] if row["status"] == FAILED or int(row.get("failed") or 0)]
    left_out = sum(row["status"] not in (OK, FAILED) for part in parts for row in found[part])
    missed = sum(target.is_met is False for target in targets)
    print(f"\n{len(failed)} failed, {left_out} out of time or memory, {missed} targets missed")
    return 1 if failed or missed else 0


def _target_row(target: Target) -> tuple[str, ...]:
    return target.verdict, target.what, target.wanted, target.measured or ""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ngpu.py: interrupted. What was measured is kept: call it again to go on.", file=sys.stderr)
        sys.exit(130)
