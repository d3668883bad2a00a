"""Environments that are opened once for all tests of the experiments."""

import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parents[2]))  # `experiments` is a directory of the checkout, not of the package


@pytest.fixture(scope="session")
def cooking():
    pytest.importorskip("textworld_express", reason="pip install 'hsa-factory[experiment]'")
    from experiments.environments import open_environments

    return open_environments("cooking")[0]


@pytest.fixture(scope="session")
def cooking_tokenizer(cooking):
    from experiments.environments import games_of
    from experiments.vocabulary import tokenizer_of

    return tokenizer_of(cooking, games_of("cooking", "train", 150))
