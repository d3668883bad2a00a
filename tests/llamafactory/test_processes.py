"""Processes that a launcher has started train; they start no others."""

import llamafactory.launcher as launcher
import pytest

import hsa_factory.llamafactory.launch as launch
import hsa_factory.llamafactory.processes as processes


RANKS = ["LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK"]


@pytest.fixture
def done(tmp_path, monkeypatch):
    """What `train` did: "launch" or "run"."""
    for variable in (*RANKS, "FORCE_TORCHRUN", "USE_RAY"):
        monkeypatch.delenv(variable, raising=False)
    path, calls = tmp_path / "train.yaml", []
    path.write_text("hsa: true\n", "utf-8")
    monkeypatch.setattr(launcher, "launch", lambda: calls.append("launch"))
    monkeypatch.setattr(launch, "run", lambda training_file: calls.append("run"))

    def train():
        launch.train(str(path), [])
        return calls[-1]

    return train


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("devices, forced", [(8, "0"), (0, "1"), (2, "1")])
def test_a_launched_process_launches_none(done, monkeypatch, rank, devices, forced):
    monkeypatch.setattr(processes, "get_device_count", lambda: devices)
    monkeypatch.setenv("FORCE_TORCHRUN", forced)
    assert done() == "launch"
    monkeypatch.setenv(rank, "0")
    assert done() == "run"


def test_one_device_or_ray_needs_no_launcher(done, monkeypatch):
    monkeypatch.setattr(processes, "get_device_count", lambda: 1)
    assert done() == "run"
    monkeypatch.setattr(processes, "get_device_count", lambda: 2)
    assert done() == "launch"
    monkeypatch.setenv("USE_RAY", "1")
    assert done() == "run"
