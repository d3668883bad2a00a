"""What all tests share: one thread each, a tiny tokenizer, and hypothesis without a database or time limits."""

import hypothesis
import pytest
import torch

from hsa_factory import tiny


torch.set_num_threads(1)  # the parallel workers of pytest-xdist share the cores

hypothesis.settings.register_profile("hsa", deadline=None, database=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("hsa")

TOKENIZER_TEXTS = [
    "The robot opens the fridge and takes the red apple out of it. It navigates to the dining table. ",
    "<think>The table is the place to go.</think><DecisionMaking>navigate to table</DecisionMaking> ",
    "机器人打开冰箱，拿出一个苹果。",
] * 4


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level tokenizer with Qwen's special tokens; texts that it knows become several characters a token."""
    return tiny.build_tokenizer(TOKENIZER_TEXTS)
