"""What a saved model or adapter says of HSA, and how it is found again; PEFT."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)
from typed_models import VISION, build, close, differs, enabled, run, step, tokens, types

from hsa_factory import HSAConfig, disable_hsa, enable_hsa
from hsa_factory.models.enable import get_state


class TestSaving:
    @pytest.mark.parametrize("model_type", ["qwen3", "qwen2_5_vl", "gpt_oss"])
    def test_checkpoint(self, model_type, tmp_path):
        config = HSAConfig(noise_window=3, hide=[(0, 2)], layers=[1])
        model, ids, kinds = enabled(model_type, config), tokens(), types()
        stock, expected = run(build(model_type), ids), run(model, ids, semantic_ids=kinds)
        model.save_pretrained(tmp_path)
        assert HSAConfig.from_pretrained(tmp_path) == config
        for name in ("config.json", "generation_config.json"):
            assert "hsa" not in (tmp_path / name).read_text().lower()

        auto_class = AutoModelForImageTextToText if model_type in VISION else AutoModelForCausalLM
        loaded = auto_class.from_pretrained(tmp_path)
        assert torch.equal(run(loaded, ids), stock)
        assert enable_hsa(loaded) is loaded
        assert get_state(loaded).config == config
        assert torch.equal(run(loaded, ids, semantic_ids=kinds), expected)

    def test_a_configuration_given_stands_above_the_saved_one(self, tmp_path):
        enabled("llama", HSAConfig(noise_window=3)).save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert get_state(enable_hsa(loaded, HSAConfig(noise_window=4))).config == HSAConfig(noise_window=4)
        loaded.save_pretrained(tmp_path)
        assert HSAConfig.from_pretrained(tmp_path) == HSAConfig(noise_window=4)

    def test_defaults_where_nothing_was_saved(self, tmp_path):
        build("llama").save_pretrained(tmp_path)
        assert not (tmp_path / "hsa_config.json").exists()
        assert get_state(enable_hsa(AutoModelForCausalLM.from_pretrained(tmp_path))).config == HSAConfig()

    def test_a_broken_saved_configuration_is_an_error(self, tmp_path):
        build("llama").save_pretrained(tmp_path)
        (tmp_path / "hsa_config.json").write_text('{"noise_windw": 1}')
        with pytest.raises(ValueError, match="unknown key 'noise_windw'"):
            enable_hsa(AutoModelForCausalLM.from_pretrained(tmp_path))

    def test_other_processes_write_nothing_and_after_disabling_neither(self, tmp_path):
        model = enabled("llama")
        model.save_pretrained(tmp_path / "rank1", is_main_process=False)
        disable_hsa(model).save_pretrained(tmp_path / "off")
        assert not list(tmp_path.rglob("hsa_config.json"))

    def test_arguments_are_handed_on(self, tmp_path):
        model = enabled("llama")
        zeros = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
        model.save_pretrained(tmp_path, state_dict=zeros, max_shard_size="100KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
        assert (AutoModelForCausalLM.from_pretrained(tmp_path).lm_head.weight == 0).all()


class TestPeft:
    @staticmethod
    def wrap(model):
        peft = pytest.importorskip("peft")
        torch.manual_seed(0)
        return peft.get_peft_model(
            model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
        ).eval()

    @pytest.mark.parametrize("model_type", ["qwen3", "qwen2_vl"])
    @pytest.mark.parametrize("order", ["enable after wrapping", "enable before wrapping"])
    def test_lora(self, model_type, order, tmp_path):
        ids, kinds, config = tokens(), types(), HSAConfig(noise_window=7)
        stock = run(self.wrap(build(model_type)), ids)
        model = build(model_type)
        if order == "enable before wrapping":
            enable_hsa(model, config)
        model = self.wrap(model)
        assert enable_hsa(model, config) is model
        assert torch.equal(run(model, ids), stock)
        close(run(model, ids, semantic_ids=torch.zeros_like(ids)), stock)
        expected = run(model, ids, semantic_ids=kinds)
        differs(expected, stock)

        _, gradients = step(model, ids, semantic_ids=kinds)
        assert gradients and all("lora_" in name and gradient.abs().max() > 0 for name, gradient in gradients.items())
        with pytest.raises(ValueError, match="remove_unused_columns"):
            model(input_ids=ids)
        model.eval()

        model.save_pretrained(tmp_path / "adapter")
        assert HSAConfig.from_pretrained(tmp_path / "adapter") == config
        assert "hsa" not in (tmp_path / "adapter" / "adapter_config.json").read_text().lower()

        merged = model.merge_and_unload()
        close(run(merged, ids, semantic_ids=kinds), expected, 1e-4)
        merged.save_pretrained(tmp_path / "merged")
        assert HSAConfig.from_pretrained(tmp_path / "merged") == config
        close(run(disable_hsa(merged), ids), stock, 1e-4)
        assert "save_pretrained" not in vars(merged)

    def test_enabled_before_wrapping_works_without_enabling_again(self):
        ids, kinds = tokens(), types()
        before = self.wrap(enabled("qwen3"))
        after = enable_hsa(self.wrap(build("qwen3")), HSAConfig())
        assert torch.equal(run(before, ids, semantic_ids=kinds), run(after, ids, semantic_ids=kinds))

    def test_disabling(self, tmp_path):
        model, ids = self.wrap(build("qwen3")), tokens()
        stock = run(model, ids)
        enable_hsa(model)
        assert torch.equal(run(disable_hsa(model), ids), stock)
        model.save_pretrained(tmp_path)
        assert not (tmp_path / "hsa_config.json").exists()
        assert get_state(model) is None and "save_pretrained" not in {*vars(model), *vars(model.get_base_model())}

    def test_reentrant_checkpointing(self):
        model, ids, kinds = enable_hsa(self.wrap(build("qwen3")), HSAConfig()), tokens(), types()
        _, gradients = step(model, ids, semantic_ids=kinds)
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": True})
        _, others = step(model, ids, semantic_ids=kinds)
        for name, gradient in gradients.items():
            close(others[name], gradient, 1e-5)
