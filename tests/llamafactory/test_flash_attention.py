"""A FlashAttention that is broken in transformers is said before anything is loaded for it."""

from types import SimpleNamespace

import llamafactory.train.sft.workflow as workflow
import llamafactory.train.tuner as tuner
import pytest

from hsa_factory import FeedbackConfig
from hsa_factory.llamafactory import flash_attention, integrate


@pytest.mark.parametrize("kernel", ["fa2", "sdpa"])
@pytest.mark.parametrize("version", ["5.6.0", "5.7.0"])
@pytest.mark.parametrize("is_installed", [True, False])
def test_what_is_refused(monkeypatch, kernel, version, is_installed):
    """It fails at the first batch. Without the package flash-attn LLaMA-Factory takes another kernel."""
    monkeypatch.setattr(flash_attention.transformers, "__version__", version)
    monkeypatch.setattr(flash_attention, "is_flash_attn_2_available", lambda: is_installed)
    model_args = SimpleNamespace(flash_attn=kernel)
    if (kernel, version, is_installed) != ("fa2", "5.6.0", True):
        flash_attention.check_flash_attention(model_args)
        return
    with pytest.raises(ValueError, match="`flash_attn: fa2` cannot run with transformers 5.6.0.*`flash_attn: sdpa`"):
        flash_attention.check_flash_attention(model_args)


def test_it_is_looked_at_with_feedback_alone(lf, tmp_path, monkeypatch):
    monkeypatch.setattr(flash_attention.transformers, "__version__", "5.6.0")
    monkeypatch.setattr(flash_attention, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(workflow, "load_tokenizer", lambda *args: pytest.fail("something was loaded"))
    with pytest.raises(ValueError, match="cannot run with transformers 5.6.0"), integrate(None, FeedbackConfig()):
        tuner.run_exp(lf.args(tmp_path, "data", flash_attn="fa2"))
