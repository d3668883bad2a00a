"""All runs of the engines are made at once; the table at the end says how far each was from one process."""

import json

import pytest
from paired_runs import EXAMPLES, SCALING, Runs, make_material


ROWS = pytest.StashKey()
LORA = {"finetuning_type": "lora", "lora_target": "all", "lora_rank": 4}
ENGINES = {
    "ddp": {},
    "fsdp2": {"fsdp": SCALING / "fsdp2.yaml"},
    **{f"zero{stage}": {"deepspeed": str(SCALING / f"zero{stage}.json")} for stage in range(4)},
    "zero3_offload": {},
}
STAGES = {"dpo": "preference", "kto": "kto", "rm": "reward_model", "pt": "pretraining"}
OF_STAGES = {"fsdp2": ("dpo", "kto", "pt"), "zero3": tuple(STAGES)}  # no reward model with FSDP2: docs/scaling.md
RESUMED = ("ddp", "fsdp2", "zero3")


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Every run, made."""
    made = Runs(tmp_path_factory.mktemp("distributed"))
    make_material(made.directory)
    engines = {name: dict(options) for name, options in ENGINES.items()}
    engines["zero3_offload"]["deepspeed"] = str(_without_compiling(made.directory))
    for engine, options in [(None, {}), *engines.items()]:
        made.ask("full", engine, **options)
        if engine not in ("zero0", "zero1", "zero3_offload"):
            made.ask("lora", engine, disable_gradient_checkpointing=False, **LORA, **options)
        for stage, example in STAGES.items():
            if engine is None or stage in OF_STAGES.get(engine, ()):
                file = EXAMPLES / example / "train.yaml"
                own = {"dataset_dir": str(EXAMPLES / example), "num_train_epochs": None, "max_steps": 2, **options}
                made.ask(stage, engine, file, **own)
    for engine in RESUMED:  # last: should one fail, the others have been made
        saved = {"save_strategy": "steps", "save_steps": 2, **engines[engine]}
        made.ask("resumed", engine, max_steps=2, key="first", **saved)
        made.ask("resumed", engine, overwrite_output_dir=False, **saved)
    made.make()
    return made


def _without_compiling(directory):
    """Return the example with an optimizer that is there: DeepSpeed's own for the CPU takes minutes to compile."""
    config = json.loads((SCALING / "zero3_offload.json").read_text("utf-8"))
    path = directory / "zero3_offload.json"
    path.write_text(json.dumps({**config, "zero_force_ds_cpu_optimizer": False}), "utf-8")
    return path


@pytest.fixture
def compared(request):
    """Notes a line of the table: engine, what was trained, the largest difference of a loss."""
    rows = request.config.stash.setdefault(ROWS, [])
    return lambda engine, case, difference: rows.append((engine, case, difference))


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.section("largest difference of a loss to one process")
    for engine, case, difference in rows:
        terminalreporter.write_line(f"{engine:<16} {case:<24} {difference:.1e}")
