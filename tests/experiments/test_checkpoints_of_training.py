"""Which checkpoints there are, which one a killed training goes on from, and what is known of its parts."""

import json
import time

import pytest
from experiments import imitation
from experiments.checkpoints import (
    TO_GO_ON,
    checkpoints,
    curve_steps,
    keep_for_curve,
    last_checkpoint,
    logging_steps,
    save_steps,
)
from experiments.imitation import train_phase
from experiments.parts import Parts
from experiments.settings import Phase


def write_checkpoint(output, step, done=None):
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in (*TO_GO_ON, "model.safetensors"):
        (folder / name).write_text("x")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step if done is None else done}))
    return folder


@pytest.mark.parametrize(("steps", "saves"), [(900, 3), (800, 3), (400, 1), (4000, 3), (523, 1), (997, 1), (1000, 7)])
def test_checkpoints_stand_close_and_those_of_the_curve_are_among_them(steps, saves):
    phase = Phase(steps, 1e-3)
    between = save_steps(phase, saves)
    assert between <= 150
    assert {*range(between, steps + 1, between), steps} >= set(curve_steps(phase, saves))
    assert between % logging_steps(phase, saves) == 0, "a loss would be the mean of other steps after going on"


def test_the_curve_is_that_of_before():
    assert curve_steps(Phase(800, 3e-3), 3) == [266, 532, 798, 800]
    assert curve_steps(Phase(900, 5e-3), 3) == [300, 600, 900] and curve_steps(Phase(2, 1e-3), 1) == [2]


def test_a_training_goes_on_from_the_last_whole_checkpoint_before_its_end(tmp_path):
    phase = Phase(40, 1e-3)
    assert last_checkpoint(tmp_path, phase) is None
    whole = write_checkpoint(tmp_path, 20)
    (write_checkpoint(tmp_path, 30) / "trainer_state.json").write_text('{"global_st')
    (write_checkpoint(tmp_path, 35) / "optimizer.pt").unlink()
    write_checkpoint(tmp_path, 40)
    assert last_checkpoint(tmp_path, phase) == whole


def test_when_a_phase_is_done_its_curve_is_left_and_no_optimizer(tmp_path):
    for step in (100, 133, 266, 300):
        write_checkpoint(tmp_path, step)
    keep_for_curve(tmp_path, [266, 300])
    assert list(checkpoints(tmp_path)) == [266, 300]
    for path in checkpoints(tmp_path).values():
        assert sorted(file.name for file in path.iterdir()) == ["model.safetensors", "trainer_state.json"]


def test_a_checkpoint_that_leads_no_further_is_not_tried_again(tmp_path, monkeypatch):
    phase, given = Phase(40, 1e-3), []

    def fails(arguments):
        given.append(arguments[2:])
        return 1

    monkeypatch.setattr(imitation, "hsa_factory", fails)
    first, second = write_checkpoint(tmp_path, 10), write_checkpoint(tmp_path, 20)
    for left in ([10], [], []):
        with pytest.raises(ValueError, match="ended with an error"):
            train_phase(tmp_path / "train_0.yaml", phase, tmp_path)
        assert list(checkpoints(tmp_path)) == left
    assert given == [[f"resume_from_checkpoint={second}"], [f"resume_from_checkpoint={first}"], []]


def test_a_training_that_was_stopped_keeps_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(imitation, "hsa_factory", lambda arguments: 130)
    kept = write_checkpoint(tmp_path, 20)
    with pytest.raises(KeyboardInterrupt):
        train_phase(tmp_path / "train_0.yaml", Phase(40, 1e-3), tmp_path)
    assert last_checkpoint(tmp_path, Phase(40, 1e-3)) == kept


def test_what_a_killed_process_has_spent_is_known_from_its_last_note(tmp_path):
    file = tmp_path / "parts.json"
    with Parts(file, every=0.01):
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
        deadline = time.monotonic() + 30
        while json.loads(file.read_text())[0]["cpu_seconds"] < 0.2 and time.monotonic() < deadline:
            time.sleep(0.01)
        noted = json.loads(file.read_text())  # as if it were killed here
    file.write_text(json.dumps(noted))
    with Parts(file) as parts:
        assert [part["device"] for part in parts.all] == ["CPU", "CPU"] and parts.all[0] == noted[0]
        assert parts.cpu_seconds >= noted[0]["cpu_seconds"] >= 0.2
    assert all(part["git"] and part["versions"]["torch"] for part in json.loads(file.read_text()))
