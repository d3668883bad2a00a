"""Which versions are installed, and whether they fit together, by what the packages themselves say they need.

Nothing is imported: a pair of packages that does not fit often fails at its import.
"""

import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from ..hosts import LLAMAFACTORY_ADVISED, LLAMAFACTORY_RANGE, is_known_llamafactory


OWN = "hsa-factory"
SHOWN = (
    "torch",
    "transformers",
    "llamafactory",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "torchvision",
    "torchaudio",
    "triton",
    "deepspeed",
)
"""Packages that are shown, and whose needs of each other are compared."""

_SAME_RELEASE = {"torchaudio": "torch"}  # built for one release of torch, which its metadata do not say


@dataclass
class Package:
    """One package.

    Attributes:
        name: As on an index.
        installed: Its version; None: not installed.
        wanted: What hsa-factory, or an installed package, asks for, together; empty: nothing.
        problems: What does not fit, in words.
        advice: What to do about it; None: nothing is wrong.
    """

    name: str
    installed: str | None
    wanted: str = ""
    problems: list[str] = field(default_factory=list)
    advice: str | None = None


@dataclass(frozen=True)
class _Need:
    owner: str
    requirement: Requirement


def check_versions() -> list[Package]:
    """Return hsa-factory, Python and the packages of `SHOWN`, with what does not fit."""
    distributions = {name: found for name in (OWN, *SHOWN) if (found := _distribution(name)) is not None}
    needs: dict[str, list[_Need]] = {name: [] for name in SHOWN}
    for owner, distribution in distributions.items():
        for requirement in _requirements(distribution, with_llamafactory="llamafactory" in distributions):
            name = canonicalize_name(requirement.name)
            if name in needs:
                needs[name].append(_Need(f"{owner} {distribution.version}", requirement))
    packages = [_own(distributions.get(OWN)), _python(distributions.values())]
    packages += [_checked(name, distributions.get(name), needs[name]) for name in SHOWN]
    _check_releases({package.name: package for package in packages})
    return packages


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    return found if found.version else None  # what an interrupted removal leaves behind


def _requirements(distribution: metadata.Distribution, with_llamafactory: bool) -> Iterator[Requirement]:
    """Yield what a package needs here; of hsa-factory's extras only the one for LLaMA-Factory, where that is installed."""
    extras = ["", "llamafactory"] if with_llamafactory and distribution.name == OWN else [""]
    for text in distribution.requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement


def _own(distribution: metadata.Distribution | None) -> Package:
    if distribution is not None:
        return Package(OWN, distribution.version)
    from .._version import __version__

    return Package(OWN, f"{__version__} (not installed as a package: what it needs is not compared)")


def _python(distributions: Iterable[metadata.Distribution]) -> Package:
    version = platform.python_version()
    package = Package("python", version)
    for distribution in distributions:
        wanted = distribution.metadata["Requires-Python"]
        if wanted and not SpecifierSet(wanted).contains(version, prereleases=True):
            package.problems.append(f"{distribution.name} {distribution.version} needs Python {wanted}")
            package.advice = "an environment with another Python"
    return package


def _checked(name: str, distribution: metadata.Distribution | None, needs: list[_Need]) -> Package:
    wanted = SpecifierSet()
    for need in needs:
        wanted &= need.requirement.specifier
    if name == "llamafactory" and distribution is not None and not is_known_llamafactory(distribution.version):
        problem = f"llamafactory {distribution.version} is not known to hsa-factory (known: {LLAMAFACTORY_RANGE})"
        advice = _pip(name, f"=={LLAMAFACTORY_ADVISED}")
        return Package(name, distribution.version, LLAMAFACTORY_RANGE, [problem], advice)

    version = None if distribution is None else distribution.version
    package = Package(name, version, str(wanted))
    for need in needs:
        if version is None:
            package.problems.append(f"{need.owner} needs {name}{need.requirement.specifier}, which is not installed")
        elif not need.requirement.specifier.contains(version, prereleases=True):
            package.problems.append(f"{need.owner} needs {name}{need.requirement.specifier}, not {version}")
    if package.problems:
        package.advice = _pip(name, str(wanted))
    return package


def _check_releases(packages: dict[str, Package]) -> None:
    for name, other in _SAME_RELEASE.items():
        package, host = packages[name], packages[other]
        if package.installed is None or host.installed is None:
            continue
        release = _release(host.installed)
        if release is not None and _release(package.installed) != release:
            major, minor = release
            package.problems.append(f"{name} {package.installed} is built for another {other} than {host.installed}")
            package.advice = f"{_pip(name, f'=={major}.{minor}.*')}, or another {other}, or remove {name}"


def _release(version: str) -> tuple[int, int] | None:
    try:
        return Version(version).major, Version(version).minor
    except InvalidVersion:
        return None


def _pip(name: str, wanted: str) -> str:
    return f"pip install '{name}{wanted}'"
