"""Stages are done once, whatever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from experiments.runner import Runner
from experiments.stages import Stage, run_stage


ROOT = Path(__file__).parents[2]


def counting(name="a", needs=(), fails=False, **settings):
    calls = []

    def work(folder, given):
        calls.append(sorted(given))
        (folder / "made.txt").write_text("made")
        if fails:
            raise RuntimeError("no luck")
        return {"calls": len(calls)}

    return Stage(name, work, settings, tuple(needs)), calls


def test_a_stage_is_done_once(tmp_path):
    stage, calls = counting(steps=3)
    assert run_stage(stage, tmp_path) == run_stage(stage, tmp_path) == {"calls": 1} and len(calls) == 1
    record = stage.record(tmp_path)
    assert (
        record["settings"] == {"steps": 3}
        and record["git"]
        and record["versions"]["torch"]
        and record["failures"] == 0
    )


def test_other_settings_lie_elsewhere_also_of_what_is_needed(tmp_path):
    first, _ = counting("a", steps=3)
    other, _ = counting("a", steps=4)
    keys = {counting("b", needs=[need])[0].key for need in (first, other)}
    assert first.folder(tmp_path) != other.folder(tmp_path) and len(keys) == 2
    assert counting("a", steps=3)[0].key == first.key


def test_what_a_stage_needs_must_be_there(tmp_path):
    need, _ = counting("need")
    stage, calls = counting("b", needs=[need])
    with pytest.raises(ValueError, match="b needs need"):
        run_stage(stage, tmp_path)
    run_stage(need, tmp_path)
    run_stage(stage, tmp_path)
    assert calls == [["need"]]


def test_a_failure_is_recorded_counted_and_tried_again(tmp_path):
    stage, _ = counting(fails=True)
    for number in (1, 2):
        with pytest.raises(RuntimeError):
            run_stage(stage, tmp_path)
        assert stage.failure(tmp_path) == {"key": stage.key, "error": "RuntimeError: no luck", "failures": number}
    again, _ = counting()
    assert again.key == stage.key and run_stage(again, tmp_path)
    assert again.record(tmp_path)["failures"] == 2 and again.failure(tmp_path) is None


HALF = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from experiments.stages import Stage, run_stage

def work(folder, needs):
    assert sorted(path.name for path in folder.iterdir()) == [], "what a killed run left is still there"
    (folder / "half").write_text("x")
    print("at work", flush=True)
    time.sleep(float(sys.argv[2]))
    return {"ok": True}

run_stage(Stage("a", work), Path(sys.argv[1]))
"""


def test_a_killed_stage_is_done_anew(tmp_path):
    command = [sys.executable, "-c", HALF, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    process = subprocess.Popen([*command, "60"], stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"at work\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    stage = Stage("a", lambda folder, needs: {})
    assert not stage.is_done(tmp_path) and (stage.folder(tmp_path) / "half").exists()
    subprocess.run([*command, "0"], env=environment, check=True, capture_output=True)
    assert json.loads((stage.folder(tmp_path) / "stage.json").read_text())["result"] == {"ok": True}


class FakePlan:
    """Stages whose work a small program does, in the place of the worker."""

    def __init__(self, stages):
        self.stages = stages
        self.settings = type("S", (), {"name": "fake", "to_dict": staticmethod(dict)})

    def named(self, name):
        return next(stage for stage in self.stages if stage.name == name)


@pytest.fixture
def quick_worker(monkeypatch):
    """Do stages in this process, so that only the runner's own order is looked at."""
    order = []

    class Ended:
        returncode = -9

        def poll(self):
            return 0

    def start(runner, stage, settings):
        order.append(stage.name)
        try:
            run_stage(stage, runner.out)
        except RuntimeError:
            pass
        runner._running[stage.name] = (stage, Ended())

    monkeypatch.setattr(Runner, "_start", start)
    monkeypatch.setattr("experiments.runner.POLL", 0)
    return order


def test_the_runner_keeps_the_order_skips_what_cannot_be_and_goes_on(tmp_path, quick_worker):
    a, _ = counting("a")
    b, _ = counting("b", needs=[a], fails=True)
    c, _ = counting("c", needs=[b])
    d, _ = counting("d", needs=[a])
    outcome = Runner(FakePlan([a, b, c, d]), tmp_path).run()
    assert quick_worker == ["a", "b", "d"]
    assert (outcome.done, outcome.failed, outcome.skipped) == (["a", "d"], ["b"], ["c"])
    healed, _ = counting("b", needs=[a])
    outcome = Runner(FakePlan([a, healed, Stage("c", lambda f, n: {}, {}, (healed,)), d]), tmp_path).run()
    assert (outcome.found, outcome.done, outcome.failed) == (["a", "d"], ["b", "c"], [])


def test_two_runs_do_not_meet(tmp_path, quick_worker):
    from filelock import FileLock

    from hsa_factory.user_errors import UserError

    with FileLock(tmp_path / ".run.lock"), pytest.raises(UserError, match="another run is at work"):
        Runner(FakePlan([counting()[0]]), tmp_path).run()
    started = time.monotonic()
    assert Runner(FakePlan([counting()[0]]), tmp_path).run().done == ["a"] and time.monotonic() - started < 5


def test_a_part_whose_process_was_killed_is_counted(tmp_path, monkeypatch):
    class Killed:
        returncode = -9

        def poll(self):
            return -9

    monkeypatch.setattr("experiments.runner.subprocess", SimpleNamespace(Popen=lambda *a, **b: Killed(), STDOUT=None))
    monkeypatch.setattr("experiments.runner.POLL", 0)
    stage, _ = counting(fails=True)
    with pytest.raises(RuntimeError):
        run_stage(stage, tmp_path)
    for number in (2, 3):
        assert Runner(FakePlan([stage]), tmp_path).run().failed == ["a"]
        assert "-9" in stage.failure(tmp_path)["error"] and stage.failure(tmp_path)["failures"] == number
    healed, _ = counting()
    assert run_stage(healed, tmp_path) and healed.record(tmp_path)["failures"] == 3
    assert not (stage.folder(tmp_path) / "failed.json").exists()


RUN = """
import subprocess, sys, time
program = "import os, sys, time\\nfrom experiments.parent import end_with\\nend_with(os.getppid(), every=0.05)\\nprint(os.getpid(), flush=True)\\ntime.sleep(60)"
subprocess.run([sys.executable, "-c", program])
"""


def test_a_worker_ends_with_a_run_that_is_killed():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, env=environment)
    worker = int(run.stdout.readline())
    run.send_signal(signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and "Z" not in _state(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert time.monotonic() < deadline, "it is still at work"


def _state(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_the_runner_tells_a_worker_whose_it_is(tmp_path, monkeypatch):
    commands = []

    class Ended:
        returncode = 0

        def poll(self):
            return 0

    def start(command, **options):
        commands.append(command)
        return Ended()

    monkeypatch.setattr("experiments.runner.subprocess", SimpleNamespace(Popen=start, STDOUT=None))
    monkeypatch.setattr("experiments.runner.POLL", 0)
    monkeypatch.chdir(tmp_path)
    Runner(FakePlan([counting()[0]]), Path("out")).run()
    assert commands[0][-1] == str(os.getpid())
    assert str(tmp_path / "out") in commands[0], (
        "a worker works in another folder: a relative name is another place there"
    )


@pytest.mark.parametrize("content", ["", '{"name": "a", "resu', "[]", '{"name": "a"}'])
def test_a_finished_file_that_is_not_whole_counts_as_none(tmp_path, content):
    stage, calls = counting()
    run_stage(stage, tmp_path)
    assert not stage.is_broken(tmp_path)
    file = stage.folder(tmp_path) / "stage.json"
    file.write_text(content)
    assert stage.is_broken(tmp_path) and not stage.is_done(tmp_path) and stage.result(tmp_path) is None
    assert run_stage(stage, tmp_path) == {"calls": 2} and stage.is_done(tmp_path)


def test_a_failure_that_cannot_be_read_does_not_stop_the_next_try(tmp_path):
    stage, _ = counting()
    stage.folder(tmp_path).mkdir(parents=True)
    (stage.folder(tmp_path) / "failed.json").write_text('{"fail')
    assert stage.failure(tmp_path) is None and run_stage(stage, tmp_path) == {"calls": 1}
