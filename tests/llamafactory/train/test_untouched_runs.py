"""Runs that ask for neither feedback nor types: with the integration each stage trains what plain LLaMA-Factory trains."""

import pytest

from hsa_factory import HSAConfig
from hsa_factory.llamafactory.train.stages import STAGES


LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj"}
ALPACA = {"columns": {"prompt": "instruction", "response": "output"}}
SHAREGPT = {"from": "human", "value": "Bring the cup"}
CHOSEN, REJECTED = ({"from": "gpt", "value": value} for value in ("Here it is", "No"))
PAIRS = {
    "ranking": True,
    "formatting": "sharegpt",
    "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
}
LABELLED = {"formatting": "sharegpt", "columns": {"messages": "conversations", "kto_tag": "label"}}
DATA = {
    "pt": ({"columns": {"prompt": "text"}}, [{"text": f"The robot opens fridge {k}. "} for k in range(20)]),
    "sft": (ALPACA, [{"instruction": f"Open fridge {k}", "output": "It is open"} for k in range(3)]),
    "dpo": (PAIRS, [{"conversations": [SHAREGPT], "chosen": CHOSEN, "rejected": REJECTED}] * 3),
    "kto": (
        LABELLED,
        [{"conversations": [SHAREGPT, reply], "label": reply is CHOSEN} for reply in (CHOSEN, REJECTED)],
    ),
}
DATA["rm"] = DATA["dpo"]


@pytest.fixture(scope="module")
def data_dir(lf, tmp_path_factory):
    return lf.write_data(tmp_path_factory.mktemp("untouched"), **DATA)


@pytest.mark.parametrize("cutoff_len", [1, pytest.param(16, marks=pytest.mark.long)])
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_is_that_of_plain_llamafactory(lf, data_dir, tmp_path, stage, cutoff_len):
    """Even where a cut leaves nothing to train, and the loss is no number."""
    args = lf.args(data_dir, stage, stage=stage, cutoff_len=cutoff_len, max_steps=2, output_dir=str(tmp_path), **LORA)
    plain = lf.train(args)
    assert lf.train(args, HSAConfig()) == pytest.approx(plain, abs=1e-6, nan_ok=True) and len(plain) == 2
