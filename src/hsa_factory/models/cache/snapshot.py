"""How a cache stood before something that may fail."""

from collections.abc import Sequence
from typing import Any

from .incoming import IncomingTypes
from .layer import HSACacheLayer


class Snapshot:
    """What is needed to go back: parts replace what they hold and never write to it, so that it is enough to keep it.

    Args:
        parts: Objects whose attributes come back.
        incoming: Types to come, and their tagger.
        layers: Layers whose buffers are about to be copied; else they are only added to, which `abort` takes back.
    """

    def __init__(
        self,
        parts: Sequence[Any],
        incoming: IncomingTypes,
        layers: Sequence[HSACacheLayer] = (),
    ) -> None:
        self._parts = [(part, dict(vars(part))) for part in parts]
        self._incoming, self._types = incoming, incoming.snapshot()
        self._layers = [(layer, layer.held()) for layer in layers]

    def restore(self) -> bool:
        """Let everything stand as it did. Returns whether the tagger could go back, too."""
        for part, values in self._parts:
            vars(part).update(values)
        for layer, keys in self._layers:
            layer.hold(*keys)
        return self._incoming.restore(self._types)
