"""The card of a trained model, which LLaMA-Factory lets transformers write anew at the end of a run."""

from functools import partial
from types import ModuleType
from typing import Any

from ...models.model_card import write_card_section
from ..seams import Seam
from ..state import Integration


def write_card_seam(module: ModuleType, state: Integration) -> Seam:
    """Return the replacement of `create_modelcard_and_push` in the module of a stage."""
    return Seam(module, "create_modelcard_and_push", partial(_write_card, state))


def _write_card(state: Integration, original: Any, trainer: Any, *args: Any) -> None:
    """Let transformers write the card anew, and put the section on HSA back that it had since the model was saved."""
    create = trainer.create_model_card

    def create_with_section(*values: Any, **options: Any) -> None:
        create(*values, **options)
        write_section()

    def write_section() -> None:
        if state.hsa_config is not None and trainer.args.do_train and trainer.is_world_process_zero():
            write_card_section(trainer.args.output_dir, state.hsa_config)

    trainer.create_model_card = create_with_section  # what is pushed to a hub goes through the trainer's own method
    try:
        original(trainer, *args)
        write_section()
    finally:
        del trainer.create_model_card
