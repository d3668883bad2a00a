"""A transformers in which FlashAttention is broken: said before a model is loaded for it."""

from typing import Any

import transformers
from transformers.utils import is_flash_attn_2_available


_BROKEN = ("5.6.0",)
_KERNELS = ("fa2", "fa3")


def check_flash_attention(model_args: Any) -> None:
    """Refuse a kernel that cannot run; with HSA it is replaced anyway, so this is for Feedback alone.

    Where the package flash-attn is missing LLaMA-Factory says so and takes another kernel.

    Args:
        model_args: LLaMA-Factory's.

    Raises:
        ValueError: Naming the option and what to do.
    """
    asked = getattr(model_args.flash_attn, "value", model_args.flash_attn)
    if asked in _KERNELS and transformers.__version__ in _BROKEN and is_flash_attn_2_available():
        raise ValueError(
            f"`flash_attn: {asked}` cannot run with transformers {transformers.__version__}: it takes the attention sinks of "
            "a model to be there (s_aux.to), and fails at the first batch of every model without them. Write `flash_attn: "
            "sdpa`; later versions of transformers have it mended, but LLaMA-Factory 0.9.5 allows none of them."
        )
