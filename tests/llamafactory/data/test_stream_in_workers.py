"""A stream goes to processes that are not forked (macOS, Windows): they find no class that was made while it was prepared."""

import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
from torch.utils.data import DataLoader

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.llamafactory.data import converter, template


HSA = HSAConfig(rules="react", noise_turns=2)
MADE = {
    f"Typed{name}"
    for name in (
        "Template",
        "ReasoningTemplate",
        "Llama2Template",
        "SharegptDatasetConverter",
        "AlpacaDatasetConverter",
    )
}


def prepared(lf, directory, **more):
    samples = [
        {"messages": lf.dialogue(["GLOBAL", None, "NOISE", "LANDMARK"], first_mark=k), "label": k % 2 == 0}
        for k in range(8)
    ]
    columns = {"messages": "messages", **({"kto_tag": "label"} if more.get("stage") == "kto" else {})}
    entry = {"formatting": "sharegpt", "columns": columns, "tags": lf.TAGS}
    data = lf.write_data(directory, data=(entry, samples))
    more = {"streaming": True, "dataloader_num_workers": 1, "buffer_size": 1, **more}
    feedback = None if more.get("stage") == "pt" else FeedbackConfig()
    return lf.prepare(lf.args(data, "data", **more), HSA, feedback)


@pytest.fixture
def as_elsewhere(monkeypatch):
    """Reads as a process does that has made no class by itself."""

    def read(pickled):
        for module in (converter, template):
            for name, value in list(vars(module).items()):
                if isinstance(value, type) and value.__qualname__ in MADE:
                    monkeypatch.delattr(module, name)
        return pickle.loads(pickled)

    return read


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"packing": True, "neat_packing": True, "template": "qwen"},
        {"stage": "kto"},
        {"stage": "pt", "cutoff_len": 16},
    ],
    ids=str,
)
def test_any_stage_can_be_pickled(lf, tmp_path, as_elsewhere, more):
    made = prepared(lf, tmp_path, **more)
    rows, pickled = made.rows(), ForkingPickler.dumps(made.module["train_dataset"])
    assert rows and list(as_elsewhere(pickled)) == rows


@pytest.mark.long
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_rows_of_real_workers(lf, tmp_path, method):
    made = prepared(lf, tmp_path)
    loader = DataLoader(made.module["train_dataset"], batch_size=None, num_workers=1, multiprocessing_context=method)
    assert list(loader) == made.rows()
