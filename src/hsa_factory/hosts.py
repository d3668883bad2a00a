"""What is known of LLaMA-Factory without importing it: its versions, and its ways around its own trainer."""

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion


LLAMAFACTORY_RANGE = ">=0.9.5,<0.9.7"
"""Versions whose seams are known, development versions among them."""

LLAMAFACTORY_ADVISED = "0.9.5"
"""The one that we advise: the newest in the range that is released."""

OTHER_TRAINER_VARIABLES = {
    "USE_V1": (
        "LLaMA-Factory's v1 has data preparation and trainers of its own. From 0.9.6 on it encodes a conversation once for each "
        "reply (24 times where there are 24), and breaks special tokens such as the feedback token apart"
    ),
    "USE_MCA": "it trains with a model and a loop of Megatron's (mcore_adapter)",
    "USE_MEGATRON_BRIDGE": "it trains with a model and a loop of Megatron's (megatron-bridge)",
}
"""Environment variables that let LLaMA-Factory train with something else than its own trainer, and why that is refused."""


def is_known_llamafactory(version: str) -> bool:
    """Whether a version of LLaMA-Factory is one whose seams are known."""
    try:
        return SpecifierSet(LLAMAFACTORY_RANGE).contains(version, prereleases=True)
    except InvalidVersion:
        return False
