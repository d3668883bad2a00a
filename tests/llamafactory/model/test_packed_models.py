"""`neat_packing` with a model whose samples would see each other all the same is refused before anything is loaded."""

from types import SimpleNamespace

import llamafactory.train.sft.workflow as workflow
import llamafactory.train.tuner as tuner
import pytest

from hsa_factory import FeedbackConfig, HSAConfig, tiny
from hsa_factory.llamafactory import integrate
from hsa_factory.llamafactory.model.packing import check_packing


@pytest.fixture
def loads_nothing(monkeypatch):
    """Stop a run where it would load something."""

    class GoesOn(Exception):
        pass

    def stop(*args):
        raise GoesOn

    monkeypatch.setattr(workflow, "load_tokenizer", stop)
    return GoesOn


def write_config(directory, model_type):
    tiny.tiny_config(model_type, 512).save_pretrained(directory)
    return directory


def test_a_model_with_states(lf, tmp_path, loads_nothing):
    model = write_config(tmp_path / "hybrid", "qwen3_5_text")
    args = lf.args(tmp_path, "data", model, neat_packing=True)
    message = (
        r"`neat_packing` cannot be used with .*hybrid \(qwen3_5_text\).*Set `packing: false` and `neat_packing: false`"
    )
    with pytest.raises(ValueError, match=message), integrate(HSAConfig()):
        tuner.run_exp(args)
    for packing, settings in (({"neat_packing": True}, (None, FeedbackConfig())), ({}, (HSAConfig(), None))):
        with pytest.raises(loads_nothing), integrate(*settings):
            tuner.run_exp(lf.args(tmp_path, "data", model, **packing))


def test_other_models(tmp_path):
    data_args = SimpleNamespace(neat_packing=True)
    for model in (write_config(tmp_path, "qwen2_5_vl"), tmp_path / "missing"):
        options = {"cache_dir": None, "model_revision": "main", "hf_hub_token": None, "trust_remote_code": False}
        check_packing(SimpleNamespace(model_name_or_path=str(model), **options), data_args)
