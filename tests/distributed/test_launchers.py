"""Commands as a user gives them: `accelerate launch`, two nodes, and Ray, whose worker may die."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from paired_runs import PROCESSES, SCALING, Runs, environment, history, make_material

from hsa_factory import HSAConfig


CLOSE = 2e-5
DRIVER = Path(__file__).with_name("ray_driver.py")
RAY = {"USE_RAY": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # keeps to 127.0.0.1
SECONDS = 600


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    made = Runs(tmp_path_factory.mktemp("launchers"))
    make_material(made.directory)
    return made


@pytest.fixture(scope="module")
def expected(material):
    """The losses of one process."""
    file = material.ask("full")
    _finish(_start([sys.executable, "-m", "hsa_factory.cli", "train", str(file)], material.directory / "one.log"))
    return history(material.output("full"))


def _start(command, log, **variables):
    with open(log, "w", encoding="utf-8") as file:
        return subprocess.Popen(
            command, env=environment(**variables), stdout=file, stderr=file, start_new_session=True
        )


def _finish(*processes):
    try:
        return [process.wait(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_accelerate_launches_and_nobody_else(material, expected, compared):
    """FORCE_TORCHRUN is there too: a process that was launched must not launch others."""
    file = material.ask("full", "accelerate", use_cpu=True)
    config = {**yaml.safe_load((SCALING / "fsdp2.yaml").read_text("utf-8")), "use_cpu": True, "mixed_precision": "no"}
    path, log = material.directory / "launch.yaml", material.directory / "accelerate.log"
    path.write_text(yaml.safe_dump(config), "utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path)]
    command += ["--main_process_port", str(_free_port()), "-m", "hsa_factory.cli", "train", str(file)]
    assert _finish(_start(command, log, FORCE_TORCHRUN="1")) == [0], log.read_text("utf-8")[-3000:]
    found = history(material.output("full", "accelerate"))
    compared("accelerate", "full (DDP on a CPU)", max(abs(a - b) for a, b in zip(expected, found, strict=True)))
    assert found == pytest.approx(expected, abs=CLOSE)
    assert log.read_text("utf-8").count("Training data with HSA / Feedback") == 1


def test_two_nodes(material, expected, compared):
    file = material.ask("full", "nodes", use_cpu=True)
    variables = {"FORCE_TORCHRUN": "1", "NNODES": "2", "NPROC_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1"}
    variables["MASTER_PORT"] = str(_free_port())
    command = [sys.executable, "-m", "hsa_factory.cli", "train", str(file)]
    logs = [material.directory / f"node{rank}.log" for rank in range(PROCESSES)]
    nodes = [_start(command, log, **variables, NODE_RANK=str(rank)) for rank, log in enumerate(logs)]
    assert _finish(*nodes) == [0, 0], logs[0].read_text("utf-8")[-3000:]
    found = history(material.output("full", "nodes"))
    compared("two nodes", "full", max(abs(a - b) for a, b in zip(expected, found, strict=True)))
    assert found == pytest.approx(expected, abs=CLOSE)


def test_ray_with_a_worker_that_dies_and_a_run_that_goes_on(material, expected, compared):
    """The run ends with a message when a worker dies, and the resumed one has the numbers of a run that nothing happened to."""
    saved = {"ray_num_workers": PROCESSES, "save_strategy": "steps", "save_steps": 1}
    hook = {"worker_process_setup_hook": "plain_cpu.install"}
    saved |= {"ddp_backend": "gloo", "ray_init_kwargs": {"runtime_env": hook, "num_cpus": PROCESSES}}
    log, out = material.directory / "ray.log", material.output("full", "ray")
    file = material.ask("full", "ray", key="long", max_steps=2000, **saved)
    run = _start([sys.executable, str(DRIVER), str(file)], log, **RAY)
    try:
        worker = _training_worker(run, log, out / "checkpoint-2" / "trainer_state.json")
        os.kill(worker, signal.SIGKILL)
        assert run.wait(timeout=SECONDS) == 1
    finally:
        _finish(run)
    said = log.read_text("utf-8")
    assert "a process of this run on Ray died" in said and "resume_from_checkpoint: true" in said

    checkpoint = str(out / "checkpoint-2")
    file = material.ask("full", "ray", resume_from_checkpoint=checkpoint, overwrite_output_dir=False, **saved)
    assert _finish(_start([sys.executable, str(DRIVER), str(file)], log, **RAY)) == [0], log.read_text("utf-8")[-3000:]
    found = history(out)
    compared("ray", "full, resumed", max(abs(a - b) for a, b in zip(expected, found, strict=True)))
    assert found == pytest.approx(expected, abs=CLOSE)
    assert HSAConfig.from_pretrained(out).noise_window == 20


def _training_worker(run, log, checkpoint):
    """Wait for a checkpoint; return the id of the process that trains beside the first."""
    end = time.monotonic() + SECONDS
    while not checkpoint.is_file():
        assert run.poll() is None and time.monotonic() < end, log.read_text("utf-8")[-3000:]
        time.sleep(0.1)
    workers = sorted({int(number) for number in re.findall(r"TypedWorker pid=(\d+)", log.read_text("utf-8"))})
    return workers[-1]
