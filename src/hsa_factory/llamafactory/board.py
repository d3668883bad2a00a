"""LLaMA Board (`webui`): the training runs that it starts as processes of their own know HSA, too."""

import sys
from typing import Any

from .seams import Seam


def board_seams() -> list[Seam]:
    """Return what is replaced in LLaMA Board, which needs gradio."""
    import llamafactory.webui.runner as runner

    return [Seam(runner, "Popen", _start)]


def _start(original: Any, command: list[str], **options: Any) -> Any:
    """Start our command in the place of LLaMA-Factory's, with the same file."""
    if command[:2] == ["llamafactory-cli", "train"]:
        command = [sys.executable, "-m", "hsa_factory.cli", *command[1:]]
    return original(command, **options)
