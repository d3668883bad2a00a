"""One row of tokens over several ranks: each runs the text model on its slice, and keys in sight are exchanged."""

from .checks import check_model
from .group import ContextGroup
from .inputs import cut_to_slice
from .loss import install_loss, remove_loss


__all__ = ["ContextGroup", "check_model", "cut_to_slice", "install_loss", "remove_loss"]
