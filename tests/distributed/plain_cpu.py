"""accelerate calls the processor of several processes "cpu:0", where torch can load nothing: a run could not be resumed."""

import torch
from accelerate.state import PartialState


def install():
    """Let accelerate call it "cpu" in this process."""
    original = PartialState.set_device

    def set_device(self):
        original(self)
        if self.device.type == "cpu":
            self.device = torch.device("cpu")

    PartialState.set_device = set_device
