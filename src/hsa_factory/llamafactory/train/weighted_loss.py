"""LLaMA-Factory's trainer with a loss that the messages' weights weigh."""

from functools import cache

from ...training.weighted_loss import WeightedLossMixin, weighted_loss


__all__ = ["WeightedLossMixin", "weighted_loss", "weighted_trainer"]


@cache
def weighted_trainer(trainer_class: type) -> type:
    """Return LLaMA-Factory's trainer with the mixin."""
    return type(trainer_class.__name__, (WeightedLossMixin, trainer_class), {"__module__": __name__})
