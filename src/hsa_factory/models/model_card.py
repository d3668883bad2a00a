"""What a saved model says of HSA to people, and to programs that do not know HSA: a key in config.json, a model card."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..config import CONFIG_NAME, NOTE_KEY, HSAConfig
from ..whole_files import write_whole


CARD_NAME = "README.md"
NOTE = (
    "This model was trained with Hierarchical Semantic Attention (HSA). With plain attention it is another model: run it "
    f"with hsa-factory, which reads the rules in {CONFIG_NAME}, beside this file."
)

_BEGIN, _END = "<!-- hsa-factory: begin -->", "<!-- hsa-factory: end -->"
_METADATA = "---\ntags:\n- hsa\n---\n\n"
_SECTION = """\
## Hierarchical Semantic Attention (HSA)

This model was trained with HSA: what a token attends to depends on the semantic types of the tokens before it. With plain
attention (transformers, `llamafactory-cli` or vLLM alone) **it is another model**. The rules are in `{file}`, beside the
weights; keep it with them.

{rules}

Run it with hsa-factory:

```bash
hsa-factory chat --{option} THIS_DIRECTORY --template TEMPLATE
```

```python
from hsa_factory import HSAConfig, enable_hsa

enable_hsa(model, HSAConfig.from_pretrained("THIS_DIRECTORY"))
model.generate(input_ids, semantic_ids=semantic_ids)
```
"""


@contextmanager
def noted(config: Any) -> Iterator[None]:
    """Keep the note in a model's configuration for the duration of a `with` block, in which the model is saved.

    Args:
        config: A transformers configuration. Nothing happens to anything else, such as that of an adapter: PEFT warns of
            keys that it does not know.
    """
    if not isinstance(config, PreTrainedConfig):
        yield
        return
    former = vars(config).get(NOTE_KEY)
    setattr(config, NOTE_KEY, NOTE)
    try:
        yield
    finally:
        if former is None:
            delattr(config, NOTE_KEY)
        else:
            setattr(config, NOTE_KEY, former)


def mentions_hsa(directory: str | os.PathLike[str]) -> bool:
    """Return whether a saved model says that it was trained with HSA, although its rules are not there."""
    place = Path(directory)
    if (place / CONFIG_NAME).is_file():
        return False
    try:
        values = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # no local model, or one that whoever loads it complains of
    return isinstance(values, dict) and isinstance(values.get(NOTE_KEY), str)


def write_card_section(directory: str | os.PathLike[str], config: HSAConfig) -> None:
    """Put a section on HSA into a model card, in the place of a former one; the rest stays as it is.

    Args:
        directory: Of the model or adapter; a card is begun if there is none.
        config: The model's rules.

    Raises:
        OSError: If the card cannot be written.
    """
    path = Path(directory) / CARD_NAME
    card = _read(path) if path.is_file() else _METADATA
    before, after = _around_section(card) or (f"{card.rstrip()}\n\n", "\n")
    _write(path, f"{before}{_BEGIN}\n{_section(Path(directory), config)}{_END}{after}")


def remove_card_section(directory: str | os.PathLike[str]) -> None:
    """Take the section out of a model card again; nothing happens if there is none.

    Raises:
        OSError: If the card cannot be written.
    """
    path = Path(directory) / CARD_NAME
    around = _around_section(_read(path)) if path.is_file() else None
    if around is not None:
        _write(path, f"{around[0].rstrip()}\n{around[1]}")


def _around_section(card: str) -> tuple[str, str] | None:
    """Return what stands before and after the section; None if there is none."""
    before, begin, rest = card.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    return (before, after) if begin and end else None


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="surrogateescape")


def _write(path: Path, card: str) -> None:
    write_whole(path, card.encode("utf-8", errors="surrogateescape"))


def _section(directory: Path, config: HSAConfig) -> str:
    is_adapter = (directory / "adapter_config.json").is_file()
    rules = [f"- `{name}`: {_readable(value)}" for name, value in config.attention_options().items()]
    return _SECTION.format(
        file=CONFIG_NAME,
        rules="\n".join(rules),
        option="adapter_name_or_path" if is_adapter else "model_name_or_path",
    )


def _readable(value: Any) -> str:
    if value is None:
        return "none"
    return json.dumps(value)
