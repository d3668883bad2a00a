"""What is known of LLaMA-Factory without importing it. Ranges of libraries stand in pyproject.toml alone."""

LLAMAFACTORY_VERSIONS = ("0.9.5",)
"""Versions whose seams are known; the last one is what we advise."""

OTHER_TRAINER_VARIABLES = ("USE_V1", "USE_MCA", "USE_MEGATRON_BRIDGE")
"""Environment variables that let LLaMA-Factory train with something else than its own trainer: refused."""

RAY_VARIABLE = "USE_RAY"
"""Environment variable that lets LLaMA-Factory start Ray's workers: refused."""
