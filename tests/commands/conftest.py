"""What the tests of commands on files share."""

import pytest

from hsa_factory.labeling import records


@pytest.fixture
def small_chunks(monkeypatch):
    """Cut every file into many chunks."""
    monkeypatch.setattr(records, "CHUNK_SAMPLES", 2)
