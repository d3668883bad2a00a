"""Engines beneath processes that share rows: losses, gradients and weights are those of one process."""

import json

import pytest


paired_runs = pytest.importorskip("paired_runs", reason="the engines are not there")

SHARED = {**paired_runs.HSA, "context_parallel": 2}
LORA = {"finetuning_type": "lora", "lora_target": "all", "lora_rank": 4, "disable_gradient_checkpointing": False}
CASES = {"shared": {}, "shared-lora": LORA}
ENGINES = {
    "ddp": {},
    "fsdp2": {"fsdp": paired_runs.SCALING / "fsdp2.yaml"},
    "zero2": {"deepspeed": str(paired_runs.SCALING / "zero2.json")},
    "zero3": {"deepspeed": str(paired_runs.SCALING / "zero3.json")},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every run, made; two processes are one group, which trains the batches of one process."""
    made = paired_runs.Runs(tmp_path_factory.mktemp("shared"))
    paired_runs.make_material(made.directory)
    for case, options in CASES.items():
        made.ask(case, per_device_train_batch_size=4, **options)
        for engine, of_engine in ENGINES.items():
            made.ask(case, engine, hsa=SHARED, per_device_train_batch_size=4, **options, **of_engine)
    made.make()
    return made


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES)
def test_as_one_process(runs, case, engine):
    alone, together = runs.output(case), runs.output(case, engine)
    assert (together / "trainer_state.json").is_file(), runs.why_missing(case, engine)
    for value, tolerance in (("loss", 2e-5), ("grad_norm", 1e-4)):
        expected = paired_runs.history(alone, value)
        assert paired_runs.history(together, value) == pytest.approx(expected, rel=tolerance)
    saved, here = paired_runs.weights(alone), paired_runs.weights(together)
    assert here and here.keys() <= saved.keys()  # with ZeRO-3, PEFT does not see that the tables have grown
    for name, value in here.items():
        assert (saved[name].float() - value.float()).abs().max() < 1e-4, name
    _, second = json.loads((together / "hsa_report.json").read_text("utf-8"))["context_parallel"]["by_rank"]
    assert 0 < second["rows_received"] < second["rows_all_gather"]
