"""Whether a model can keep the samples of a packed row apart: found out before anything is loaded."""

from typing import Any

from llamafactory.model.loader import load_config

from ...models.text_model import has_stateful_layers
from ...user_errors import UserError


def check_packing(model_args: Any, data_args: Any) -> None:
    """Refuse `neat_packing` for a model whose samples would see each other all the same.

    Args:
        model_args: LLaMA-Factory's; a model whose configuration cannot be read is left to its loading.
        data_args: LLaMA-Factory's.

    Raises:
        UserError: Naming the model and what to set.
    """
    if not data_args.neat_packing:
        return
    try:
        config = load_config(model_args)
    except (OSError, ValueError):
        return
    if has_stateful_layers(config):
        raise UserError(
            f"`neat_packing` cannot be used with {model_args.model_name_or_path} ({config.model_type}): it has layers of linear "
            "attention, convolutions or state spaces, whose state runs on from one sample of a packed row into the next, with "
            "HSA and without. Set `packing: false` and `neat_packing: false`."
        )
