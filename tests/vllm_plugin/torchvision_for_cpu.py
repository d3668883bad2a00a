"""Python runs it at its start where it lies in site-packages, with its .pth file: torchvision then imports beside torch for CPUs.

What a package index has of torchvision is built for CUDA. Its compiled operators do not load there, and two of them are
asked for when it is imported; nothing that prepares pictures for a model calls them. PyTorch's own index has a build for
CPUs, which needs none of this.
"""

import sys
from importlib.abc import MetaPathFinder


class _MissingOperators(MetaPathFinder):
    """Declares them just before the first look at torchvision; they still do nothing."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for operator in ("nms", "qnms"):
                torch.library.define(
                    f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
        return None


sys.meta_path.insert(0, _MissingOperators())
