"""`hsa_trainer`: a trainer class that hands types to its model and weighs its loss, of transformers' or TRL's."""

import inspect
from functools import cache
from typing import Any

from .callback import HSATrainerCallback
from .collator import HSADataCollator
from .trl_dpo import DPOMixin
from .trl_names import refuse_trl_trainer
from .trl_reward import RewardMixin
from .trl_sft import SFTMixin
from .weighted_loss import WeightedLossMixin


_Trainer: Any = object  # the trainer's own class stands behind the mixin
_MIXINS: dict[str, type] = {"SFTTrainer": SFTMixin, "DPOTrainer": DPOMixin, "RewardTrainer": RewardMixin}


class HSATrainerMixin(WeightedLossMixin):
    """Adds `HSATrainerCallback`, and makes it know the trainer.

    Attributes:
        hsa_signature: That of the trainer's own `__init__`.
    """

    hsa_signature: inspect.Signature

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = _by_name(self.hsa_signature, (self, *args), kwargs) if args else dict(kwargs)
        callbacks = list(given.pop("callbacks", None) or ())
        if not any(one is HSATrainerCallback or isinstance(one, HSATrainerCallback) for one in callbacks):
            callbacks.append(HSATrainerCallback())
        super().__init__(**given, callbacks=callbacks)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, HSATrainerCallback):
                callback.trainer = self


class PlainMixin(_Trainer):
    """Gives transformers' Trainer the collator that knows types, where it gets none."""

    def __init__(self, *, data_collator: Any = None, **given: Any) -> None:
        if data_collator is None and given.get("processing_class") is not None:
            data_collator = HSADataCollator(given["processing_class"])
        if data_collator is not None:
            given["data_collator"] = data_collator
        super().__init__(**given)


def _by_name(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a method by their names, without the first, `self`."""
    arguments = dict(signature.bind(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    arguments.pop(next(iter(signature.parameters)))
    return arguments


def _signature(trainer_class: type) -> inspect.Signature:
    """Return the signature of the first `__init__` that names its arguments, and does not hand all of them on."""
    for base in trainer_class.__mro__:
        if "__init__" in vars(base):
            signature = inspect.signature(vars(base)["__init__"])
            if all(one.kind is not one.VAR_POSITIONAL for one in signature.parameters.values()):
                return signature
    raise TypeError(f"{trainer_class.__name__} is no trainer.")


@cache
def hsa_trainer(trainer_class: type) -> type:
    """Return a trainer class with all that HSA needs: `hsa_trainer(trl.DPOTrainer)(model, args=..., train_dataset=...)`.

    It takes the same arguments and does the same, and besides:

    - It adds `HSATrainerCallback`, which keeps columns, checks both kinds of data before the first step, and saves the rules.
    - Rows with `loss_weights` are trained by the weighted mean of their tokens, over all micro-batches and processes.
    - TRL's `SFTTrainer` packs and flattens encoded rows (`packing`, `padding_free`), each document for itself.
    - TRL's `DPOTrainer` and `RewardTrainer` take rows of `pair_rows`. Without a `ref_model` the reference is a copy of the
      model, with HSA; one that is given must have HSA, too.
    - Without a `data_collator` it is `HSADataCollator` or `HSAPreferenceCollator`, with the `processing_class`.

    Args:
        trainer_class: transformers' `Trainer`, a class made of it, or TRL's `SFTTrainer`, `DPOTrainer` or `RewardTrainer`.

    Raises:
        ValueError: If it is another trainer of TRL: with the reason.
    """
    theirs = next((base for base in trainer_class.__mro__ if base.__module__.split(".")[0] == "trl"), None)
    if theirs is not None:
        refuse_trl_trainer(theirs.__name__, is_made_by_us=True)
    mixin = PlainMixin if theirs is None else _MIXINS[theirs.__name__]
    names = {"__module__": trainer_class.__module__, "hsa_signature": _signature(trainer_class)}
    return type(trainer_class.__name__, (HSATrainerMixin, mixin, trainer_class), names)
