"""Numbers of `HSAConfig` under a name: `hsa: {preset: agent}`."""

from collections.abc import Mapping
from typing import Any

from .suggestions import did_you_mean


PRESETS: Mapping[str, Mapping[str, float]] = {
    "agent": {"noise_decay": 0.02, "noise_window": 64},
}
"""By name. ``agent``: short observations, one or two of which are in sight; docs/evidence.md has what it won."""

KEY = "preset"
CONTEXT_PARALLEL_KEY = "context_parallel"
BLOCK_KEYS = (KEY, CONTEXT_PARALLEL_KEY)
"""Keys of a training file's block `hsa` that are no rules."""


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the numbers of the preset that they name in its place.

    Options that stand beside it win. `noise_turns` among them takes the place of the preset's decay and window of NOISE.

    Raises:
        ValueError: If there is no preset of that name, or `context_parallel` is among the options.
    """
    if CONTEXT_PARALLEL_KEY in values:
        raise ValueError(
            f"{CONTEXT_PARALLEL_KEY} is no rule, but says how a run is computed: it stands in the block `hsa` of a training file, "
            "or call enable_hsa(model, config, context_parallel=group)."
        )
    rest = {name: value for name, value in values.items() if name != KEY}
    if KEY not in values:
        return rest
    name = values[KEY]
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"preset = {name!r} is not allowed: {', '.join(PRESETS)}.{did_you_mean(name, [*PRESETS])}")
    has_turns = rest.get("noise_turns") not in (None, "none")
    numbers = {key: value for key, value in PRESETS[name].items() if not (has_turns and key.startswith("noise_"))}
    return {**numbers, **rest}
