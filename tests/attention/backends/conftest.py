"""On CUDA: the tests see more kinds of shapes in one process than any training run, each a kernel of its own."""

import pytest
import torch


@pytest.fixture(autouse=torch.cuda.is_available(), scope="session")
def many_kernels():
    with torch._dynamo.config.patch(recompile_limit=128, accumulated_recompile_limit=1024):
        yield
