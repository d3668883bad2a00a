"""The command line: commands, help, exit codes, and errors without a traceback."""

import asyncio
import os
import subprocess
import sys
import threading

import pytest
import torch
import yaml
from transformers import Trainer, TrainingArguments

from hsa_factory import FeedbackConfig, HSAConfig, __version__, cli


pytest.importorskip("llamafactory")


@pytest.fixture
def file(tmp_path):
    """Write a training file; return its path."""

    def write(name="train.yaml", **values):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values), "utf-8")
        return str(path)

    return write


@pytest.fixture
def launched(monkeypatch):
    """Catch what would be handed to LLaMA-Factory: (arguments, file's content or None, seams installed)."""
    import llamafactory.launcher
    import llamafactory.train.tuner as tuner

    calls = []

    def launch():
        path = sys.argv[-1] if sys.argv[-1].endswith((".yaml", ".yml", ".json")) else None
        content = yaml.safe_load(open(path, encoding="utf-8")) if path else None
        calls.append((sys.argv[1:], content, hasattr(tuner.get_train_args, "hsa_original")))

    monkeypatch.setattr(llamafactory.launcher, "launch", launch)
    return calls


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_help(arguments, capsys):
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: hsa-factory COMMAND")
    assert all(f"\n  {command}" in said for command in ("train FILE.yaml", "inspect FILE.yaml", "quickstart"))


@pytest.mark.parametrize("arguments", [["-V"], ["--version"]])
def test_version(arguments, capsys):
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"hsa-factory {__version__}\n"


@pytest.mark.parametrize("command", ["trane", "Train", "--train", "", "train.yaml"])
def test_unknown_commands(command, capsys):
    assert cli.main([command]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"hsa-factory: unknown command {command!r}.")
    assert "usage: hsa-factory COMMAND" in captured.err


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["-h"], 0), ([], 2)])
def test_help_of_train(arguments, code, capsys):
    assert cli.main(["train", *arguments]) == code
    said = capsys.readouterr().out
    assert said.startswith("usage: hsa-factory train FILE.yaml")
    assert "FORCE_TORCHRUN=1 NPROC_PER_NODE=2" in said and "hsa: {noise_window: 50}" in said


# -- files that are not usable ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hsa": {"noise_widow": 3}}, "unknown key 'noise_widow'. Did you mean 'noise_window'?"),
        ({"feedback": {"occurence": "last"}}, "unknown key 'occurence'. Did you mean 'occurrence'?"),
        ({"hsa": {"zzzzzz": 3}}, "unknown key 'zzzzzz'. Allowed: landmark_decay"),
        ({"hsa": {"noise_decay": -1}}, "HSAConfig.noise_decay = -1 is not allowed: a finite number ≥ 0"),
        ({"feedback": {"empty": "train"}}, "FeedbackConfig.empty = 'train' is not allowed: one of drop, error"),
        ({"hsa": 3}, "hsa: expected true, false or a mapping"),
        ({"feedback": "<|feedback|>"}, "feedback: expected true, false or a mapping"),
    ],
)
def test_blocks_that_are_wrong(file, capsys, launched, values, message):
    assert cli.main(["train", file(model_name_or_path="nowhere", **values)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("hsa-factory: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert not launched


def test_wrong_overrides(file, capsys):
    assert cli.main(["train", file(hsa=True), "hsa.noise_widow=3"]) == 2
    assert "Did you mean 'noise_window'?" in capsys.readouterr().err
    assert cli.main(["train", file(hsa=True), "hsa.noise_window=wide"]) == 2
    assert "HSAConfig.noise_window = 'wide' is not allowed" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "inspect"])
def test_a_missing_file(command, capsys, tmp_path):
    path = str(tmp_path / "nowhere.yaml")
    assert cli.main([command, path]) == 2
    said = capsys.readouterr().err
    assert f"Training file {path!r} does not exist." in said and "Traceback" not in said


@pytest.mark.parametrize(("name", "text"), [("a.yaml", "a: [1,"), ("a.yaml", "- 1\n- 2\n"), ("a.json", "{")])
def test_a_file_that_cannot_be_read(tmp_path, capsys, name, text):
    (tmp_path / name).write_text(text, "utf-8")
    assert cli.main(["train", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / name) in said and "Traceback" not in said


@pytest.mark.parametrize("argument", ["train.txt", "stage=sft", "--stage"])
def test_train_needs_a_file_first(argument, capsys):
    assert cli.main(["train", argument, "train.yaml"]) == 2
    assert f"train needs a YAML or JSON file first, got {argument!r}" in capsys.readouterr().err


# -- errors while a command runs -------------------------------------------------------------------------------


def fail_with(monkeypatch, error, cause=None):
    import llamafactory.launcher as launcher

    def launch():
        raise error from cause

    monkeypatch.setattr(launcher, "launch", launch)


@pytest.mark.parametrize("error", [ValueError("no [red] fox"), OSError("no [red] fox"), ImportError("no [red] fox")])
def test_errors_of_the_user_are_one_message(monkeypatch, capsys, error):
    monkeypatch.delenv("HSA_FACTORY_DEBUG", raising=False)
    fail_with(monkeypatch, error, KeyError("because of this"))
    assert cli.main(["chat", "--flag"]) == 2
    assert capsys.readouterr().err == (
        "hsa-factory: no [red] fox\n  because: 'because of this'\n(HSA_FACTORY_DEBUG=1 shows where.)\n"
    )


@pytest.mark.parametrize("error", [TypeError("a bug"), RuntimeError("a bug"), AttributeError("a bug")])
def test_bugs_keep_their_traceback(monkeypatch, error):
    fail_with(monkeypatch, error)
    with pytest.raises(type(error), match="a bug"):
        cli.main(["export", "--flag"])


class Toy(torch.nn.Module):
    """A model that may fail in its forward pass."""

    def __init__(self, error):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.error = error

    def forward(self, x):
        if self.error is not None:
            raise self.error
        return {"loss": (self.weight * x).sum()}


def run_toy(monkeypatch, work, directory, error=None, **more):
    """Let LLaMA-Factory's training be transformers' own loop around a toy."""
    import llamafactory.train.tuner as tuner

    options = {"do_train": True, "max_steps": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True, **more}

    def run_exp(args, callbacks=None):
        data = [{"x": torch.ones(1)}]
        arguments = TrainingArguments(str(directory), **options)
        work(Trainer(Toy(error), arguments, train_dataset=data, eval_dataset=data, callbacks=callbacks))

    monkeypatch.delenv("FORCE_TORCHRUN", raising=False)
    monkeypatch.delenv("HSA_FACTORY_DEBUG", raising=False)
    monkeypatch.setattr(tuner, "run_exp", run_exp)


@pytest.mark.parametrize(
    "error", [ValueError("too many values to unpack"), OSError("no space left"), ImportError("x")]
)
@pytest.mark.parametrize(
    ("work", "options"),
    [
        (lambda trainer: trainer.train(), {}),
        (lambda trainer: trainer.evaluate(), {"do_train": False, "do_eval": True}),
        (lambda trainer: trainer.predict(trainer.eval_dataset), {"do_train": False, "do_predict": True}),
    ],
    ids=["train", "evaluate", "predict"],
)
def test_an_error_in_a_forward_pass_keeps_its_traceback(file, monkeypatch, tmp_path, error, work, options):
    run_toy(monkeypatch, work, tmp_path / "out", error, **options)
    with pytest.raises(type(error), match=str(error)):
        cli.main(["train", file(model_name_or_path="m", hsa=True)])


def test_an_error_after_training_keeps_its_traceback(file, monkeypatch, tmp_path):
    def work(trainer):
        trainer.train()
        raise OSError("no space left on device")

    run_toy(monkeypatch, work, tmp_path / "out")
    with pytest.raises(OSError, match="no space left"):
        cli.main(["train", file(model_name_or_path="m")])


def test_a_checkpoint_that_is_not_there_is_one_message(file, monkeypatch, tmp_path, capsys):
    """Transformers looks for it in `train`, before the first step."""
    run_toy(monkeypatch, lambda trainer: trainer.train(resume_from_checkpoint=str(tmp_path)), tmp_path / "out")
    assert cli.main(["train", file(model_name_or_path="m")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("hsa-factory: Can't find a valid checkpoint at") and "Traceback" not in said


def test_a_run_that_failed_under_way_leaves_no_trace(file, monkeypatch, tmp_path, capsys):
    """The next command of the process is being set up again."""
    run_toy(monkeypatch, lambda trainer: trainer.train(), tmp_path / "out", ValueError("in a forward"))
    with pytest.raises(ValueError, match="in a forward"):
        cli.main(["train", file(model_name_or_path="m")])
    fail_with(monkeypatch, ValueError("no fox"))
    assert cli.main(["export", "--flag"]) == 2


@pytest.mark.parametrize("flags", [["--flag"], []], ids=["options", "file"])
def test_an_error_in_an_answer_keeps_its_traceback(file, monkeypatch, flags, capsys):
    import llamafactory.launcher as launcher
    from llamafactory.chat import ChatModel

    async def astream_chat(self, *args):
        raise ValueError("too many values to unpack")
        yield

    def launch():
        model = ChatModel.__new__(ChatModel)
        model._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=model._loop.run_forever)
        thread.start()
        try:
            list(model.stream_chat([]))
        finally:
            model._loop.call_soon_threadsafe(model._loop.stop)
            thread.join()

    monkeypatch.delenv("HSA_FACTORY_DEBUG", raising=False)
    monkeypatch.setattr(ChatModel, "astream_chat", astream_chat)
    monkeypatch.setattr(launcher, "launch", launch)
    with pytest.raises(ValueError, match="to unpack"):
        cli.main(["chat", *(flags or [file(model_name_or_path="m")])])
    assert not hasattr(ChatModel.stream_chat, "hsa_original")


def test_every_traceback_can_be_seen(monkeypatch):
    monkeypatch.setenv("HSA_FACTORY_DEBUG", "1")
    fail_with(monkeypatch, ValueError("no fox"))
    with pytest.raises(ValueError, match="no fox"):
        cli.main(["chat", "--flag"])


def test_a_command_that_is_stopped(monkeypatch, capsys):
    fail_with(monkeypatch, KeyboardInterrupt())
    assert cli.main(["export", "--flag"]) == 130
    assert capsys.readouterr().err == "hsa-factory: export was stopped.\n"


def test_a_chat_ends_with_its_input(monkeypatch):
    fail_with(monkeypatch, EOFError())
    assert cli.main(["chat", "--flag"]) == 0
    with pytest.raises(EOFError):
        cli.main(["export", "--flag"])


# -- what is handed on -----------------------------------------------------------------------------------------


def test_train_runs_the_file_with_its_blocks(file, monkeypatch):
    import llamafactory.train.tuner as tuner

    from hsa_factory.llamafactory import integration

    seen = []
    monkeypatch.setattr(tuner, "run_exp", lambda args, callbacks: seen.append((args, integration._active)))
    monkeypatch.delenv("FORCE_TORCHRUN", raising=False)
    path = file(model_name_or_path="m", learning_rate=1e-4, hsa={"noise_window": 9}, feedback=True)
    assert cli.main(["train", path, "learning_rate=0.5", "hsa.noise_decay=0.25"]) == 0
    ((args, active),) = seen
    assert args == {"model_name_or_path": "m", "learning_rate": 0.5}
    assert active.hsa_config == HSAConfig(noise_window=9, noise_decay=0.25)
    assert active.feedback_config == FeedbackConfig()

    assert cli.main(["train", path, "hsa=false", "feedback=false"]) == 0
    assert seen[1][1] is None and integration._active is None


@pytest.fixture
def checkpoint(tmp_path):
    """A directory with the rules it was trained with."""
    HSAConfig(noise_window=7).save_pretrained(tmp_path / "run" / "checkpoint-3")
    return str(tmp_path / "run" / "checkpoint-3")


def run_file(monkeypatch, path, *overrides):
    """Return what a training file installs: the rules asked for and the kinds of its callbacks; None if plain."""
    import llamafactory.train.tuner as tuner

    from hsa_factory.llamafactory import integration

    seen = []

    def run_exp(args, callbacks):
        active = integration._active
        seen.append((active and active.hsa, [type(callback).__name__ for callback in callbacks]))

    monkeypatch.setattr(tuner, "run_exp", run_exp)
    monkeypatch.delenv("FORCE_TORCHRUN", raising=False)
    assert cli.main(["train", path, *overrides]) == 0
    return seen[0]


@pytest.mark.parametrize(
    "place",
    [
        lambda path: {"model_name_or_path": path},
        lambda path: {"model_name_or_path": "m", "adapter_name_or_path": f"other, {path}"},
        lambda path: {"model_name_or_path": "m", "ref_model": path},
        lambda path: {"model_name_or_path": "m", "ref_model_adapters": path},
        lambda path: {"model_name_or_path": "m", "reward_model": path},
        lambda path: {"model_name_or_path": "m", "reward_model_adapters": path},
        lambda path: {"model_name_or_path": "m", "resume_from_checkpoint": path},
        lambda path: {"resume_from_checkpoint": True, "output_dir": os.path.dirname(path)},
        lambda path: {"do_train": True, "output_dir": os.path.dirname(path)},
    ],
    ids=["model", "adapter", "ref", "ref adapter", "reward", "reward adapter", "resume", "true", "by itself"],
)
def test_training_takes_saved_rules_where_the_file_does_not_say(file, monkeypatch, checkpoint, place):
    begins, plain = "BeginningCallback", "PlainRunCallback"
    path = file(**place(checkpoint))
    assert run_file(monkeypatch, path) == ("saved", [begins])
    assert run_file(monkeypatch, path, "feedback=true") == ("saved", [begins])
    assert run_file(monkeypatch, path, "hsa=null") == ("saved", [begins])
    assert run_file(monkeypatch, path, "hsa=true") == (True, [begins])
    assert run_file(monkeypatch, path, "hsa=false") == (None, [begins, plain])
    assert run_file(monkeypatch, path, "hsa=none", "feedback=true") == (False, [begins, plain])


@pytest.mark.parametrize(
    "more", [{"overwrite_output_dir": True}, {"resume_from_checkpoint": False}, {"do_train": False}]
)
def test_a_run_that_starts_afresh_is_plain(file, monkeypatch, checkpoint, more):
    values = {"model_name_or_path": "m", "do_train": True, "output_dir": os.path.dirname(checkpoint), **more}
    assert run_file(monkeypatch, file(**values))[0] is None


def test_rules_that_are_lost_are_warned_of(file, monkeypatch, tmp_path, caplog):
    (tmp_path / "config.json").write_text('{"hsa": "trained with HSA"}')
    assert run_file(monkeypatch, file(model_name_or_path=str(tmp_path)))[0] is None
    assert caplog.text.count("hsa_config.json is missing, and it runs without HSA") == 1


def test_another_stage_of_a_model_with_hsa(file, capsys, checkpoint, monkeypatch):
    monkeypatch.delenv("FORCE_TORCHRUN", raising=False)
    reward = {"reward_model": "x", "reward_model_type": "full"}
    options = {"stage": "ppo", "do_train": True, "dataset": "x", "output_dir": f"{checkpoint}-out", **reward}
    assert cli.main(["train", file(model_name_or_path=checkpoint, **options)]) == 2
    assert "`stage: ppo` does not start in this LLaMA-Factory" in capsys.readouterr().err


def test_an_option_for_ray_is_none(file, checkpoint, capsys):
    assert cli.main(["train", file(model_name_or_path=checkpoint, use_ray=True)]) == 2
    assert "set the environment variable USE_RAY=1" in capsys.readouterr().err


def test_eval_is_gone(file, capsys):
    assert cli.main(["eval", file(model_name_or_path="m")]) == 2
    assert "no `eval` any more" in capsys.readouterr().err


def test_the_board_trains_with_our_command(monkeypatch):
    import llamafactory.launcher as launcher
    import llamafactory.webui.runner as runner

    started = []
    monkeypatch.setattr(runner, "Popen", lambda command, **options: started.append((command, options)))
    monkeypatch.setattr(
        launcher,
        "launch",
        lambda: [runner.Popen(c, text=True) for c in (["llamafactory-cli", "train", "f.yaml"], ["ls"])],
    )
    assert cli.main(["webui"]) == 0
    assert started == [
        ([sys.executable, "-m", "hsa_factory.cli", "train", "f.yaml"], {"text": True}),
        (["ls"], {"text": True}),
    ]


def test_torchrun_gets_the_worker(file, monkeypatch):
    import llamafactory.launcher as launcher

    seen = []
    monkeypatch.setattr(launcher, "launch", lambda: seen.append((launcher.__file__, sys.argv)))
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    former, argv = launcher.__file__, sys.argv
    path = file(hsa=True)
    assert cli.main(["train", path, "max_steps=3"]) == 0
    ((worker, arguments),) = seen
    assert worker.endswith("worker.py") and "hsa_factory" in worker
    assert arguments[1:] == ["train", path, "max_steps=3"]
    assert launcher.__file__ == former and sys.argv is argv


def test_a_launched_process_that_fails(file, monkeypatch, capsys):
    import llamafactory.launcher as launcher

    def launch():
        raise subprocess.CalledProcessError(7, "torchrun")

    monkeypatch.setattr(launcher, "launch", launch)
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    assert cli.main(["train", file(hsa=True)]) == 1
    assert "failed in a launched process (exit code 7)" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["USE_V1", "USE_MCA"])
def test_other_trainers_are_refused(file, monkeypatch, capsys, variable):
    monkeypatch.setenv(variable, "1")
    try:
        code = cli.main(["train", file(hsa=True)])
    except ValueError as error:
        assert f"{variable} is set" in str(error)
    else:
        assert code != 0 and f"{variable} is set" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["api", "chat", "export", "webchat"])
def test_other_commands_are_passed_on_without_the_blocks(file, launched, command):
    path = file(model_name_or_path="m", template="qwen3", hsa={"noise_window": 9}, feedback=True)
    argv = list(sys.argv)
    assert cli.main([command, path, "infer_dtype=float32"]) == 0
    ((arguments, content, installed),) = launched
    assert arguments[0] == command
    assert content == {"model_name_or_path": "m", "template": "qwen3", "infer_dtype": "float32"}
    assert installed
    assert sys.argv == argv


@pytest.mark.parametrize("blocks, installed", [({}, True), ({"hsa": True}, True), ({"hsa": False}, False)])
def test_without_a_block_the_checkpoint_decides(file, launched, blocks, installed):
    """So the integration must be there to look at it; `hsa: false` is plain LLaMA-Factory."""
    assert cli.main(["export", file(model_name_or_path="m", **blocks)]) == 0
    assert launched[0][1:] == ({"model_name_or_path": "m"}, installed)


@pytest.mark.parametrize("command", ["version", "env", "chat", "webui"])
def test_commands_without_a_file(launched, command):
    assert cli.main([command, "--flag"]) == 0
    assert launched == [([command, "--flag"], None, command in ("chat", "webui"))]


def test_llamafactory_answers(capsys):
    assert cli.main(["version"]) == 0
    assert "0.9.5" in capsys.readouterr().out


@pytest.mark.parametrize("rank", ["-1", "0", "1"])
def test_of_launched_processes_the_first_says_what_is_wrong_before_the_others(rank, tmp_path, monkeypatch, capsys):
    """The launcher stops the others meanwhile; what only one of them finds wrong is said all the same."""
    waited = []
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    file = tmp_path / "train.yaml"
    file.write_text("hsa: {noise_windw: 3}\n")
    assert cli.main(["train", str(file)]) == 2
    assert capsys.readouterr().err.count("Did you mean 'noise_window'?") == 1
    assert waited == ([] if rank != "1" else [cli.SECONDS_OF_THE_FIRST])
