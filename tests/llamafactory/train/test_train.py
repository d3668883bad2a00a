"""Real training runs of one to four steps on tiny models: losses, what is saved, and going on from it."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
import yaml
from forked import finish, start
from safetensors.torch import load_file
from transformers import TrainerCallback

from hsa_factory import FeedbackConfig, HSAConfig, cli
from hsa_factory.llamafactory import integrate
from hsa_factory.llamafactory.launch import run
from hsa_factory.training_file import read_training_file


pytestmark = pytest.mark.slow

M = "<|feedback|>"
HSA, FEEDBACK = HSAConfig(noise_window=5), FeedbackConfig()
HSA_BLOCK, FEEDBACK_BLOCK = {"noise_window": 5}, {"token": M}
LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj"}


def conversations(lf, number=3):
    """Return trajectories of different lengths with all types; the first holds the marker."""
    samples = []
    for k in range(number):
        kinds = ["GLOBAL", "NOISE", "NOISE", "LANDMARK", "NOISE", "NOISE"][: 6 - 2 * (k % 2)]
        messages = lf.dialogue(kinds, words=5 + 3 * k, first_mark=6 * (k % 6))
        if k == 0:
            messages[2]["content"] += M
        samples.append(messages)
    return samples


@pytest.fixture
def text(lf, tmp_path):
    """Arguments for a run on text."""
    return lf.args(lf.write_data(tmp_path, data=conversations(lf)), "data", template="qwen3_nothink")


@pytest.fixture
def pictures(lf, tmp_path):
    """Arguments for a run with pictures."""
    data = lf.write_data(tmp_path, data=lf.with_pictures(conversations(lf), tmp_path / "images"))
    return lf.args(data, "data", lf.model_dir("qwen2_5_vl"), template="qwen2_vl")


def saved(args):
    """Return the output directory and the checkpoints in it."""
    out = Path(args["output_dir"])
    return [out, *sorted(out.glob("checkpoint-*"))]


@pytest.mark.parametrize("tuning", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["text", "pictures"])
def test_training_saves_the_rules_beside_every_checkpoint(lf, request, kind, tuning):
    args = {**request.getfixturevalue(kind), **tuning, "save_strategy": "steps", "save_steps": 1}
    losses = lf.train(args, HSA, FEEDBACK)
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)
    places = saved(args)
    assert len(places) == 3
    for place in places:
        assert HSAConfig.from_pretrained(place) == HSA
        assert (place / ("adapter_config.json" if tuning else "config.json")).is_file()
        card = (place / "README.md").read_text("utf-8")
        assert card.count("## Hierarchical Semantic Attention") == 1 and "- `noise_window`: 5\n" in card
    assert "is a fine-tuned version" in (places[0] / "README.md").read_text("utf-8")  # written anew at the end

    report = json.loads((places[0] / "hsa_report.json").read_text("utf-8"))
    assert report["hsa"] == json.loads(json.dumps(HSA.to_dict()))
    assert report["feedback"] == FEEDBACK.to_dict()
    account = report["datasets"]["data"]
    assert (account["samples"], account["with_marker"], account["kept"]) == (3, 1, 3)
    assert (account["messages"], account["typed_messages"]) == (16, 16)
    assert all(account["tokens"].values()) and sum(account["tokens"].values()) == account["total_tokens"]
    assert 0 < account["trained_tokens"] < account["total_tokens"]


@pytest.mark.parametrize("kind", ["text", "pictures"])
def test_the_first_loss_is_that_of_the_hsa_model(lf, request, kind):
    """Of HSA's attention and of Feedback's labels, both: the trainer's loss is that of the collated batch."""
    args = {**request.getfixturevalue(kind), "max_samples": 1, "max_steps": 1}
    prepared = lf.prepare(args, HSA, FEEDBACK)
    _, model = lf.load(args, HSA, FEEDBACK)
    losses = {}
    for name, hsa, feedback in (("both", HSA, FEEDBACK), ("hsa", HSA, None), ("feedback", None, FEEDBACK)):
        with torch.no_grad():
            row = dict(prepared.rows()[0])
            if feedback is None:
                row.pop("loss_mask")
            batch = lf.collator(prepared, hsa, feedback, model)([row])
            if hsa is None:
                batch["semantic_ids"] = torch.zeros_like(batch["input_ids"])  # all GLOBAL: plain attention
            losses[name] = model(**batch).loss.item()
    assert len({round(loss, 4) for loss in losses.values()}) == 3
    assert lf.train(args, HSA, FEEDBACK) == pytest.approx([losses["both"]], abs=1e-4)


def test_hsa_alone_and_feedback_alone(lf, text):
    both, hsa, feedback, plain = (
        lf.train({**text, "max_steps": 1, "max_samples": 1}, *settings)[0]
        for settings in ((HSA, FEEDBACK), (HSA, None), (None, FEEDBACK), (None, None))
    )
    assert len({round(loss, 5) for loss in (both, hsa, feedback, plain)}) == 4


def test_trained_on_by_a_file_that_does_not_say(lf, text, tmp_path, monkeypatch):
    """The rules of the model go on with it; switched off on purpose, nothing says any more that there are some."""
    monkeypatch.delenv("FORCE_TORCHRUN", raising=False)
    first, second = Path(text["output_dir"]), tmp_path / "second"
    lf.train({**text, "max_steps": 1}, HSA)
    args = {
        **text,
        "max_steps": 1,
        "model_name_or_path": str(first),
        "output_dir": str(second),
        "save_strategy": "steps",
    }
    expected = lf.train(args | {"output_dir": str(tmp_path / "expected")}, True)
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(args), "utf-8")

    assert cli.main(["train", str(tmp_path / "train.yaml")]) == 0
    assert lf.losses(second) == expected
    places = [second, second / "checkpoint-1"]
    assert [HSAConfig.from_pretrained(place) for place in places] == [HSA, HSA]
    assert all("hsa" in json.loads((place / "config.json").read_text("utf-8")) for place in places)

    assert cli.main(["train", str(tmp_path / "train.yaml"), "hsa=false"]) == 0
    assert lf.losses(second) != expected
    for place in places:
        assert not (place / "hsa_config.json").exists()
        assert "hsa" not in json.loads((place / "config.json").read_text("utf-8"))
        assert "## Hierarchical Semantic" not in (place / "README.md").read_text("utf-8")


def test_feedback_alone_saves_no_rules(lf, text):
    lf.train({**text, "max_steps": 1}, None, FEEDBACK)
    assert not (Path(text["output_dir"]) / "hsa_config.json").exists()
    report = json.loads((Path(text["output_dir"]) / "hsa_report.json").read_text("utf-8"))
    assert report["hsa"] is None and report["feedback"] == FEEDBACK.to_dict()


def test_evaluation_sees_hsa_too(lf, text):
    """The loss of evaluation, before any step, is the first training loss of the same sample."""
    args = {**text, "max_samples": 1, "max_steps": 1, "eval_dataset": "data", "eval_strategy": "steps"}
    args |= {"eval_on_start": True, "eval_steps": 1, "per_device_eval_batch_size": 1}
    losses = lf.train(args, HSA, FEEDBACK)
    state = json.loads((Path(args["output_dir"]) / "trainer_state.json").read_text("utf-8"))
    evaluated = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert evaluated[0] == pytest.approx(losses[0], abs=1e-4)
    assert evaluated[-1] != pytest.approx(losses[0], abs=1e-4)


@pytest.mark.parametrize("tuning", [{}, LORA], ids=["full", "lora"])
def test_resuming_gives_the_losses_of_an_uninterrupted_run(lf, text, tuning):
    args = {**text, **tuning, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = lf.train(args, HSA, FEEDBACK)
    assert len(whole) == 4
    out = Path(args["output_dir"])
    again = {**args, "output_dir": str(out.with_name("again")), "save_strategy": "no"}
    resumed = lf.train({**again, "resume_from_checkpoint": str(out / "checkpoint-2")}, HSA, FEEDBACK)
    assert resumed[:2] == whole[:2]  # from the checkpoint's record
    assert resumed[2:] == pytest.approx(whole[2:], abs=1e-4)

    with pytest.raises(ValueError, match="noise_window: 5 there, 50 here"):
        lf.train({**again, "resume_from_checkpoint": str(out / "checkpoint-2")}, HSAConfig(), FEEDBACK)
    taken = lf.train({**again, "resume_from_checkpoint": str(out / "checkpoint-2")}, True, FEEDBACK)
    assert taken == pytest.approx(whole, abs=1e-4)
    assert HSAConfig.from_pretrained(again["output_dir"]) == HSA


def test_a_checkpoint_of_plain_llamafactory_is_not_resumed(lf, text):
    args = {**text, "max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    lf.train(args)
    with pytest.raises(ValueError, match="checkpoint-1' to resume from was made without HSA"):
        lf.train({**args, "max_steps": 2, "resume_from_checkpoint": True}, HSA, FEEDBACK)


def test_an_adapter_goes_on_with_its_rules(lf, text):
    lf.train({**text, **LORA, "max_steps": 1}, HSA, FEEDBACK)
    out = Path(text["output_dir"])
    more = {**text, **LORA, "max_steps": 1, "adapter_name_or_path": str(out), "output_dir": str(out.with_name("more"))}
    lf.train(more, True, FEEDBACK)
    assert HSAConfig.from_pretrained(more["output_dir"]) == HSA
    with pytest.raises(ValueError, match="another HSA configuration"):
        lf.train(more, HSAConfig(), FEEDBACK)


def test_an_exported_model_keeps_rules_and_marker(lf, text, tmp_path):
    from llamafactory.train.tuner import export_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lf.train({**text, **LORA, "max_steps": 1}, HSA, FEEDBACK)
    args = {"model_name_or_path": text["model_name_or_path"], "adapter_name_or_path": text["output_dir"]}
    args |= {"template": "qwen3_nothink", "finetuning_type": "lora", "export_dir": str(tmp_path / "merged")}
    with integrate(True, FEEDBACK):
        export_model(args)
    assert HSAConfig.from_pretrained(tmp_path / "merged") == HSA
    number = AutoTokenizer.from_pretrained(tmp_path / "merged").convert_tokens_to_ids(M)
    assert number < AutoModelForCausalLM.from_pretrained(tmp_path / "merged").get_input_embeddings().num_embeddings


def test_bf16_on_the_cpu(lf, text):
    full = lf.train({**text, "max_steps": 1}, HSA, FEEDBACK)
    half = lf.train({**text, "max_steps": 1, "bf16": True}, HSA, FEEDBACK)
    assert half == pytest.approx(full, rel=0.02)


def test_accumulating_gradients_gives_the_same(lf, text):
    """Samples of different lengths with different numbers of trained tokens."""
    args = {**text, "max_samples": 2, "max_steps": 3}
    together = lf.train({**args, "per_device_train_batch_size": 2}, HSA, FEEDBACK)
    apart = lf.train({**args, "gradient_accumulation_steps": 2}, HSA, FEEDBACK)
    assert apart == pytest.approx(together, abs=1e-4)


@pytest.mark.parametrize("more", [{"streaming": True}, {"neat_packing": True, "cutoff_len": 128}], ids=str)
def test_streams_and_packed_rows(lf, text, more):
    losses = lf.train({**text, **more}, HSA, FEEDBACK)
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)


def test_tokenized_data(lf, text, tmp_path):
    args = {**text, "max_steps": 1}
    expected = lf.train(args, HSA, FEEDBACK)
    args["tokenized_path"] = str(tmp_path / "tokenized")
    assert lf.train(args, HSA, FEEDBACK) == lf.train(args, HSA, FEEDBACK) == expected


def test_a_new_marker_is_saved_with_the_model(lf, text):
    lf.train({**text, "max_steps": 1}, HSA, FEEDBACK)
    weights = load_file(Path(text["output_dir"]) / "model.safetensors")
    stock = load_file(Path(text["model_name_or_path"]) / "model.safetensors")
    assert weights["model.embed_tokens.weight"].shape[0] > stock["model.embed_tokens.weight"].shape[0]
    again = {**text, "model_name_or_path": text["output_dir"], "max_steps": 1}
    again["output_dir"] = str(Path(text["output_dir"]).with_name("second"))
    lf.train(again, True, FEEDBACK)
    second = load_file(Path(again["output_dir"]) / "model.safetensors")
    assert second["model.embed_tokens.weight"].shape == weights["model.embed_tokens.weight"].shape


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("embodied", {"cutoff_len": 3000}),
        ("embodied_text", {"cutoff_len": 8192, "neat_packing": True}),
    ],
)
def test_real_trajectories(lf, tmp_path, name, more):
    data = lf.SHARED / "data" / "embodied"
    if not data.is_dir():
        pytest.skip("../shared is absent")
    args = lf.args(data, name, lf.model_dir("qwen2_5_vl"), template="qwen2_vl", output_dir=str(tmp_path), max_steps=1)
    args |= {"image_max_pixels": 256 * 256, **more}
    losses = lf.train(args, HSAConfig(), FeedbackConfig())
    assert len(losses) == 1 and 0 < losses[0] < 20


# -- the command line ------------------------------------------------------------------------------------------


def write_file(path, args, **blocks):
    path.write_text(yaml.safe_dump({**args, **blocks}), "utf-8")
    return str(path)


def test_the_command_trains_as_the_context_does(lf, text, tmp_path):
    expected = lf.train(text, HSA, FEEDBACK)
    file = write_file(tmp_path / "train.yaml", text, hsa=HSA_BLOCK, feedback=FEEDBACK_BLOCK)
    assert cli.main(["train", file]) == 0
    assert lf.losses(text["output_dir"]) == expected

    narrower = lf.train(text, HSAConfig(noise_window=1), FEEDBACK)
    assert cli.main(["train", file, "hsa.noise_window=1"]) == 0
    assert lf.losses(text["output_dir"]) == narrower != expected


def test_a_plain_file_trains_as_plain_llamafactory_does(lf, text, tmp_path):
    plain = lf.train(text)
    file = write_file(tmp_path / "train.yaml", text)
    assert cli.main(["train", file]) == 0
    assert lf.losses(text["output_dir"]) == plain
    assert not list(Path(text["output_dir"]).glob("hsa_*"))

    off = write_file(tmp_path / "off.yaml", text, hsa=HSA_BLOCK, feedback=FEEDBACK_BLOCK)
    assert cli.main(["train", off, "hsa=false", "feedback=false"]) == 0
    assert lf.losses(text["output_dir"]) == plain


# -- a killed process, and several -----------------------------------------------------------------------------


class Kill(TrainerCallback):
    """Kills its process in the third step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(args):
    from llamafactory.train.tuner import run_exp

    with integrate(HSA, FEEDBACK):
        run_exp(args, callbacks=[Kill()])


def test_a_killed_run_goes_on_from_its_checkpoint(lf, text):
    args = {**text, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    uninterrupted = {**args, "output_dir": str(Path(args["output_dir"]).with_name("whole"))}
    expected = lf.train(uninterrupted, HSA, FEEDBACK)
    assert finish(start(train_until_killed, args)) == [-signal.SIGKILL]
    out = Path(args["output_dir"])
    assert not (out / "model.safetensors").exists()
    assert HSAConfig.from_pretrained(out / "checkpoint-2") == HSA
    resumed = lf.train({**args, "resume_from_checkpoint": True}, HSA, FEEDBACK)
    assert resumed == pytest.approx(expected, abs=1e-4)
    assert HSAConfig.from_pretrained(out) == HSA


def train_as_a_worker(file):
    """What each of torchrun's processes does."""
    run(read_training_file(file))


def by_torchrun(file, capfd, monkeypatch):
    """Return what is said by the command, which starts torchrun."""
    monkeypatch.setenv("PATH", os.environ["PATH"])  # the command puts torchrun's directory before it
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", file])
    said = capfd.readouterr()
    assert ended.value.code == 0, said.err[-3000:]
    return said.out


def by_workers(file, capfd, monkeypatch):
    """Return what is said by two processes as torchrun starts them."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    group = {**address, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    logs = [Path(file).with_name(f"log-{rank}") for rank in "01"]
    processes = [
        start(train_as_a_worker, file, output=log, environment={**group, "RANK": rank, "LOCAL_RANK": rank})
        for rank, log in zip("01", logs)
    ]
    said = finish(*processes), "".join(log.read_text("utf-8") for log in logs)
    assert said[0] == [0, 0], said[1][-3000:]
    return said[1]


@pytest.mark.parametrize("way", [by_workers, pytest.param(by_torchrun, marks=pytest.mark.long)])
def test_two_processes_give_the_loss_of_one(lf, text, tmp_path, monkeypatch, capfd, way):
    """With weights, too: the sum that the loss is divided by is that of both."""
    samples = conversations(lf)
    samples[0][-1]["weight"], samples[1][-1]["weight"] = 0.25, 3  # of different numbers of tokens
    args = {**text, "max_samples": 2, "max_steps": 2}
    args["dataset_dir"] = str(lf.write_data(tmp_path, data=samples))
    expected = lf.train({**args, "per_device_train_batch_size": 2}, HSA, FEEDBACK)
    args["output_dir"] = str(tmp_path / "two")
    file = write_file(tmp_path / "train.yaml", args, hsa=HSA_BLOCK, feedback=FEEDBACK_BLOCK)
    said = way(file, capfd, monkeypatch)
    assert lf.losses(args["output_dir"]) == pytest.approx(expected, abs=1e-4)
    assert HSAConfig.from_pretrained(args["output_dir"]) == HSA
    assert said.count("Training data with HSA / Feedback") == 1
