"""Files of earlier runs that are cut off: named before anything is loaded, and gone round where a run can go on."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hsa_factory import HSAConfig, cli
from hsa_factory.llamafactory.saved_files import broken_files, check_models, with_whole_checkpoint


@pytest.fixture
def run(tmp_path):
    """An output directory with three whole checkpoints."""
    for step in (2, 4, 10):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    return tmp_path


def write_checkpoint(directory):
    directory.mkdir()
    save_file({"weight": torch.zeros(100)}, directory / "model.safetensors")
    torch.save({"step": torch.zeros(100)}, directory / "optimizer.pt")
    (directory / "config.json").write_text('{"model_type": "llama"}')
    (directory / "trainer_state.json").write_text('{"global_step": 1}')
    index = {"weight_map": {"weight": "model.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "notes.json").write_text("not ours: {")
    HSAConfig().save_pretrained(directory)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def remove_shard(directory):
    (directory / "model.safetensors").unlink()


BREAKS = {
    "weights": lambda directory: cut(directory / "model.safetensors", -20),
    "header": lambda directory: cut(directory / "model.safetensors", 30),
    "empty": lambda directory: cut(directory / "model.safetensors", 0),
    "optimizer": lambda directory: cut(directory / "optimizer.pt", -100),
    "empty optimizer": lambda directory: cut(directory / "optimizer.pt", 0),
    "state": lambda directory: cut(directory / "trainer_state.json", 5),
    "config": lambda directory: cut(directory / "config.json", 5),
    "rules": lambda directory: cut(directory / "hsa_config.json", 20),
    "shard": remove_shard,
    "pointer": lambda directory: (directory / "model.safetensors").write_text("version https://git-lfs.github.com/s"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_file_that_is_broken_is_named(run, name):
    directory = run / "checkpoint-4"
    check_models([str(directory), "a/name-on-a-hub"])
    BREAKS[name](directory)
    (problem,) = broken_files(directory)
    assert problem.startswith(str(directory)) and " is not whole: " in problem
    with pytest.raises(ValueError, match="is not whole: .*Copy or download it anew"):
        check_models([str(directory)])


@pytest.mark.parametrize("asked", [True, "true", None, "by name"])
@pytest.mark.parametrize("name", [*BREAKS, "no state"])
def test_a_run_goes_on_from_the_last_whole_checkpoint(run, name, asked, caplog):
    last = run / "checkpoint-10"
    args = {
        "output_dir": str(run),
        "do_train": True,
        "resume_from_checkpoint": str(last) if asked == "by name" else asked,
    }
    args = {key: value for key, value in args.items() if value is not None}
    assert with_whole_checkpoint(args) == args and not caplog.text
    if name == "no state":
        (last / "trainer_state.json").unlink()
    else:
        BREAKS[name](last)
    assert with_whole_checkpoint(args) == {**args, "resume_from_checkpoint": str(run / "checkpoint-4")}
    assert f"{last}" in caplog.text and f"goes on from {run / 'checkpoint-4'}" in caplog.text
    cut(run / "checkpoint-4" / "optimizer.pt", 100)
    assert with_whole_checkpoint(args)["resume_from_checkpoint"] == str(run / "checkpoint-2")


def test_no_checkpoint_is_whole(run):
    for directory in run.iterdir():
        cut(directory / "model.safetensors", 100)
    with pytest.raises(ValueError, match="checkpoint-10/model.safetensors is not whole.*overwrite_output_dir"):
        with_whole_checkpoint({"output_dir": str(run), "resume_from_checkpoint": True})


@pytest.mark.parametrize(
    "more", [{"overwrite_output_dir": True}, {"resume_from_checkpoint": False}, {"do_train": False}]
)
def test_a_run_that_starts_afresh_does_not_look(run, more):
    cut(run / "checkpoint-10" / "model.safetensors", 100)
    args = {"output_dir": str(run), "do_train": True, **more}
    assert with_whole_checkpoint(args) == args


def test_weights_without_a_state(tmp_path):
    """The trainer begins with them, at its first step."""
    write_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "trainer_state.json").unlink()
    args = {"resume_from_checkpoint": str(tmp_path / "model"), "output_dir": str(tmp_path / "out")}
    assert with_whole_checkpoint(args) == args
    assert with_whole_checkpoint({**args, "resume_from_checkpoint": "nowhere"})["resume_from_checkpoint"] == "nowhere"


@pytest.mark.parametrize("command", ["train", "chat", "export"])
def test_commands_say_which_file(run, tmp_path, command, capsys, monkeypatch):
    monkeypatch.delenv("FORCE_TORCHRUN", raising=False)
    cut(run / "checkpoint-4" / "model.safetensors", 100)
    path = tmp_path / "file.yaml"
    path.write_text(f"model_name_or_path: {run / 'checkpoint-4'}")
    assert cli.main([command, str(path)]) == 2
    said = capsys.readouterr().err
    assert f"{run / 'checkpoint-4' / 'model.safetensors'} is not whole" in said and "Traceback" not in said
