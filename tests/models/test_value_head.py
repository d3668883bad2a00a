"""A value head around a model, as TRL puts it there: HSA is looked for below it, whatever else is wrapped around either."""

import pytest
import torch
from helpers import build, enabled, tokens, types
from peft import LoraConfig, get_peft_model
from torch import nn

from hsa_factory import HSAConfig, disable_hsa, enable_hsa
from hsa_factory.models.enable import get_state


CONFIG = HSAConfig(noise_window=3)


class ValueHead(nn.Module):
    """What TRL's `AutoModelForCausalLMWithValueHead` is to HSA; TRL's place for it changes with its versions."""

    def __init__(self, pretrained_model):
        super().__init__()
        self.pretrained_model, self.config = pretrained_model, pretrained_model.config
        self.v_head = nn.Linear(64, 1)

    def forward(self, **inputs):
        output = self.pretrained_model(**inputs, output_hidden_states=True)
        return output.logits, self.v_head(output.hidden_states[-1]).squeeze(-1)


@pytest.mark.parametrize("has_adapter", [False, True])
def test_hsa_is_switched_on_and_off_below_it(tmp_path, has_adapter):
    inputs = {"input_ids": tokens(), "semantic_ids": types()}
    with torch.no_grad():
        expected = enabled("llama", CONFIG)(**inputs).logits
        plain = build("llama")(input_ids=inputs["input_ids"]).logits
        inner = build("llama")
        inner = get_peft_model(inner, LoraConfig(target_modules=["q_proj"])) if has_adapter else inner
        model = enable_hsa(ValueHead(inner), CONFIG).eval()
        assert get_state(model).config == CONFIG
        assert torch.allclose(model(**inputs)[0], expected, atol=1e-6)
        with torch.enable_grad(), pytest.raises(ValueError, match="semantic_ids"):
            model.train()(input_ids=inputs["input_ids"])

        model.pretrained_model.save_pretrained(tmp_path)
        assert HSAConfig.from_pretrained(tmp_path) == CONFIG
        disable_hsa(model.eval())
        assert get_state(model) is None
        assert torch.allclose(model(input_ids=inputs["input_ids"])[0], plain, atol=1e-6)
