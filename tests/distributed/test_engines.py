"""Every engine gives the losses, the gradients and the weights of one process, and saves what one process saves."""

import json

import pytest
import torch
import yaml
from conftest import ENGINES, OF_STAGES, RESUMED
from paired_runs import HSA, history, weights
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from hsa_factory import HSAConfig, cli, enable_hsa


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


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero3"])
def test_an_adapter_is_merged_in_one_process(runs, tmp_path, engine):
    """ZeRO-3 saves no tables, so that the row of the new token is made anew: it must be the one that was trained with."""
    adapter, base = runs.output("lora", engine), str(runs.directory / "qwen3")
    args = {"model_name_or_path": base, "adapter_name_or_path": str(adapter), "template": "qwen3_nothink"}
    args |= {"export_dir": str(tmp_path / "merged"), "infer_dtype": "float32", "feedback": {"token": "<|feedback|>"}}
    (tmp_path / "export.yaml").write_text(yaml.safe_dump(args), "utf-8")
    assert cli.main(["export", str(tmp_path / "export.yaml")]) == 0

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    new = AutoTokenizer.from_pretrained(tmp_path / "merged").convert_tokens_to_ids("<|feedback|>")
    trained_with = weights(runs.output("lora"))  # one process saves the tables beside its adapter
    stock = AutoModelForCausalLM.from_pretrained(base)
    assert stock.get_input_embeddings().num_embeddings <= new < merged.config.vocab_size
    stock.resize_token_embeddings(merged.config.vocab_size, mean_resizing=False)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        table = trained_with[f"base_model.model.{name}"]
        assert torch.equal(merged.get_parameter(name), table)
        stock.get_parameter(name).data.copy_(table)

    ids = torch.randint(new, (1, 60), generator=torch.Generator().manual_seed(0))
    ids[0, 40] = new
    inputs = {"input_ids": ids, "semantic_ids": (torch.arange(60) % 3)[None]}
    unmerged = enable_hsa(PeftModel.from_pretrained(stock, adapter), HSAConfig.from_pretrained(adapter)).eval()
    with torch.no_grad():
        expected, found = unmerged(**inputs).logits, enable_hsa(merged).eval()(**inputs).logits
    assert HSAConfig.from_pretrained(tmp_path / "merged") == HSAConfig(**HSA)
    assert (found - expected).abs().max() < 1e-4


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
