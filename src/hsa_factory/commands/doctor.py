"""`hsa-factory doctor`: whether this machine can run HSA, by trying it."""

import argparse
import json
import sys
from collections.abc import Sequence

from ..doctor.display import progress
from ..doctor.examine import Extent, examine
from ..doctor.output import write_report


DESCRIPTION = """\
Look at this machine: versions and whether they fit together, which backend of the attention is taken here and why, a
self-test of every backend against the reference, and a small timing against attention without HSA. About a minute; two
on a GPU whose machine is slow to compile kernels.
"""
EPILOG = """\
examples:
  hsa-factory doctor                       the GPU where there is one, else the CPU
  hsa-factory doctor --device cuda:1
  hsa-factory doctor --quick               versions and self-test only
  hsa-factory doctor --json > doctor.json  for a bug report: no paths, no names of users

exit codes: 0 nothing is wrong, 1 something is, 2 there is no such device or option
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="hsa-factory doctor",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:1 (the GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument(
        "--quick", action="store_true", help="import no packages and time nothing; no float32 on a GPU"
    )
    return parser


def main(argv: Sequence[str] | None = None, extent: Extent | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; None: those of the process.
        extent: How much is looked at; None: as the arguments say.

    Returns:
        The exit code: 0, or 1 if something is wrong.

    Raises:
        UserError: If there is no such device.
    """
    options = build_parser().parse_args(argv)
    if extent is None:
        extent = Extent.quick() if options.quick else Extent()
    report = examine(options.device, extent, progress)
    if options.json:
        print(json.dumps(report.to_dict(), ensure_ascii=False, allow_nan=False))
    else:
        write_report(sys.stdout, report)
    return report.exit_code
