"""Which of TRL's trainers hand types to their model, and why the others are refused."""

SUPPORTED = ("SFTTrainer", "DPOTrainer", "RewardTrainer")
_GENERATING = (
    "GRPOTrainer",
    "RLOOTrainer",
    "PPOTrainer",
    "OnlineDPOTrainer",
    "NashMDTrainer",
    "XPOTrainer",
    "GKDTrainer",
    "GOLDTrainer",
    "DistillationTrainer",
)


def refuse_trl_trainer(name: str, is_made_by_us: bool) -> None:
    """Refuse a trainer of TRL by its name.

    Args:
        name: Of the class, as TRL spells it.
        is_made_by_us: Whether it comes of `hsa_trainer`, which hands on what TRL's own class does not.

    Raises:
        ValueError: With the reason, and what to do.
    """
    if name in _GENERATING:
        raise ValueError(
            f"{name} cannot train a model with HSA: it has the model write its samples and computes their losses from ids "
            "alone, with no place for the types of prompt and answer, so that it would train another attention than HSA's. "
            "Sample with model.generate(..., semantic_ids=...) and train pairs with DPOTrainer, or call "
            "disable_hsa(model) first."
        )
    if name not in SUPPORTED:
        raise ValueError(
            f"{name} cannot train a model with HSA: it chooses which inputs its model gets, and types are not among them. "
            f"Supported are transformers' Trainer and TRL's {', '.join(SUPPORTED)}."
        )
    if name == "DPOTrainer" and not is_made_by_us:
        raise ValueError(
            "DPOTrainer hands no types to its model by itself: make it of hsa_factory.training.hsa_trainer(DPOTrainer)."
        )
