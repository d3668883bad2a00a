"""Every engine gives the losses, the gradients and the weights of one process, and saves what one process saves."""

import json

import pytest
from conftest import ENGINES, OF_STAGES, RESUMED
from paired_runs import HSA, history, weights

from hsa_factory import HSAConfig


CLOSE = 2e-5
OF_LORA = [engine for engine in ENGINES if engine not in ("zero0", "zero1", "zero3_offload")]


def check(runs, compared, case, engine, as_case=None):
    """Compare a run with the same on one process; return its directory."""
    alone, together = runs.output(as_case or case), runs.output(case, engine)
    assert (together / "trainer_state.json").is_file(), runs.why_missing(case, engine)
    expected, found = history(alone), history(together)
    compared(engine, case, max(abs(a - b) for a, b in zip(expected, found, strict=True)))
    assert found == pytest.approx(expected, abs=CLOSE)
    if engine != "zero0":  # DeepSpeed logs 0 there
        norms = [history(place, "grad_norm") for place in (alone, together)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    saved, here = weights(alone), weights(together)
    if (engine, case) == ("zero3", "lora"):  # DeepSpeed leaves out what is frozen, as the tables are that have grown
        saved = {name: value for name, value in saved.items() if "lora" in name}
    assert saved.keys() == here.keys() and saved
    for name, value in saved.items():
        assert (here[name].float() - value.float()).abs().max() < 2e-4, name
    return together


@pytest.mark.parametrize("engine", ENGINES)
def test_full_with_a_new_token_and_weights(runs, compared, engine):
    """The feedback token makes the tables larger, and weights are summed over all processes."""
    out = check(runs, compared, "full", engine)
    assert HSAConfig.from_pretrained(out) == HSAConfig(**HSA)
    config = json.loads((out / "config.json").read_text("utf-8"))
    before = json.loads((runs.directory / "qwen3" / "config.json").read_text("utf-8"))
    assert config["vocab_size"] > before["vocab_size"] and "hsa" in config
    report, expected = (
        json.loads((place / "hsa_report.json").read_text("utf-8")) for place in (out, runs.output("full"))
    )
    assert report == expected
    assert (out / "README.md").read_text("utf-8").count("## Hierarchical Semantic Attention") == 1


@pytest.mark.parametrize("engine", OF_LORA)
def test_lora_with_gradient_checkpointing(runs, compared, engine):
    out = check(runs, compared, "lora", engine)
    assert HSAConfig.from_pretrained(out) == HSAConfig(**HSA)


@pytest.mark.parametrize("engine", RESUMED)
def test_a_run_that_is_resumed(runs, compared, engine):
    out = check(runs, compared, "resumed", engine, as_case="full")
    assert [HSAConfig.from_pretrained(out / f"checkpoint-{step}") for step in (2, 4)] == [HSAConfig(**HSA)] * 2


@pytest.mark.parametrize(("engine", "stage"), [(engine, stage) for engine in OF_STAGES for stage in OF_STAGES[engine]])
def test_other_stages(runs, compared, engine, stage):
    check(runs, compared, stage, engine)


def test_the_table_is_printed_once_a_run(runs):
    said = (runs.directory / "together.log").read_text("utf-8")
    assert said.count("Training data with HSA / Feedback") == len(runs.together)
