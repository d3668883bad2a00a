"""The examination: what is looked at, in which order, and how much of it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .imports import try_imports
from .report import Report
from .scrub import scrub
from .versions import Package, check_versions


if TYPE_CHECKING:
    import torch

Display = Callable[[str, int], AbstractContextManager[Callable[[str], None]]]
"""Shows a long part: (title, number of steps) → a context, in which a function is called before each step."""

_IMPORTED = ("torchvision", "torchaudio", "accelerate", "peft", "datasets", "trl")  # besides torch and transformers
_KERNELS = 64  # that may be compiled: the self-test has more kinds of rows than a training run
_INTEGRATION = "hsa_factory.llamafactory"
_CORE = f"{__package__}.machine"  # imports torch and transformers


@dataclass(frozen=True)
class Extent:
    """How much is looked at.

    Attributes:
        imports: Whether packages are imported.
        test_length: Tokens of a row of the self-test; None: as set there.
        timed_lengths: Tokens of the rows that are timed; None: as set there.
        float32: Whether float32 is tested on a GPU, too, for which kernels are compiled anew.
    """

    imports: bool = True
    test_length: int | None = None
    timed_lengths: Sequence[int] | None = None
    float32: bool = True

    @classmethod
    def quick(cls) -> "Extent":
        """Return what takes a few seconds, or a minute where kernels are compiled: no imports, no timing."""
        return cls(imports=False, timed_lengths=(), float32=False)


def examine(device_name: str | None, extent: Extent, display: Display) -> Report:
    """Look at this machine.

    Args:
        device_name: As for `find_device`.
        extent: How much.
        display: Shows the long parts.

    Raises:
        UserError: If there is no such device.
    """
    packages = check_versions()
    if extent.imports:
        (core,) = try_imports([_CORE], limit_s=180.0)  # what ends that process would end this one
        if core.error is not None:
            return Report(packages, try_imports(_modules(packages)), broken=core.error)
    try:
        from .machine import find_device  # here: it imports torch and transformers, which may be what is broken
    except Exception as error:  # transformers raises several kinds when something that it imports does not fit
        return Report(packages, broken=scrub(error))

    device = find_device(device_name)
    report = Report(packages)
    if extent.imports:
        names = _modules(packages)
        with display("importing what is installed", 1) as advance:
            advance(", ".join(names))
            report.imports = try_imports(names)
    _look(report, device, extent, display)
    return report


def _modules(packages: list[Package]) -> list[str]:
    installed = {package.name for package in packages if package.installed is not None}
    return [*(name for name in _IMPORTED if name in installed), *[_INTEGRATION] * ("llamafactory" in installed)]


def _look(report: Report, device: "torch.device", extent: Extent, display: Display) -> None:
    """Look at everything that torch is needed for."""
    import torch

    from ..attention.api import NEEDS_CUDA, available_backends
    from . import self_test, timing
    from .choice import find_choices
    from .machine import find_machine
    from .refused import find_refusals

    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
        torch._dynamo.config.recompile_limit = _KERNELS
    half = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    dtypes = [half] * on_gpu + [torch.float32] * (extent.float32 or not on_gpu)
    report.machine = find_machine(device)
    report.choices = find_choices(device, dtypes[0])
    report.refusals = find_refusals(device, dtypes[0])

    names = [name for name in reversed(available_backends()) if name != "auto" and (on_gpu or name not in NEEDS_CUDA)]
    tested = [name for name in names if on_gpu or name != "reference"]  # on the CPU it is what the others must equal
    with display("testing every backend", self_test.count_tests(tested, dtypes)) as advance:
        length = self_test.LENGTH if extent.test_length is None else extent.test_length
        report.outcomes = self_test.run_self_test(device, tested, dtypes, advance, length)
    lengths = timing.LENGTHS if extent.timed_lengths is None else extent.timed_lengths
    if lengths:
        with display("timing attention", timing.count_timings(names, lengths)) as advance:
            report.timings = timing.run_timing(device, dtypes[0], names, advance, lengths)
