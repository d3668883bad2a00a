"""What a saved model or adapter says of HSA, and how it is found again; PEFT."""

import copy
import json

import pytest
import torch
from helpers import VISION, build, close, differs, enabled, run, step, tokens, types
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

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
        values = json.loads((tmp_path / "config.json").read_text("utf-8"))
        assert "hsa_config.json" in values.pop("hsa")  # a note for readers; nothing that changes a stock model
        assert "hsa" not in (json.dumps(values) + (tmp_path / "generation_config.json").read_text()).lower()

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
        base = model.get_base_model()
        assert get_state(model) is None
        assert "save_pretrained" not in {*vars(model), *vars(base), *vars(base.peft_config["default"])}
        assert not base._state_dict_pre_hooks

    def test_reentrant_checkpointing(self):
        model, ids, kinds = enable_hsa(self.wrap(build("qwen3")), HSAConfig()), tokens(), types()
        _, gradients = step(model, ids, semantic_ids=kinds)
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": True})
        _, others = step(model, ids, semantic_ids=kinds)
        for name, gradient in gradients.items():
            close(others[name], gradient, 1e-5)


class TestWrappedAfterwards:
    """PEFT wraps a model that has HSA: what is saved from then on says so, before the first step and without one."""

    CONFIG = HSAConfig(noise_window=7)

    def wrapped(self):
        return TestPeft.wrap(enabled("qwen3", self.CONFIG))

    def check(self, directory):
        assert HSAConfig.from_pretrained(directory) == self.CONFIG

    def test_at_once(self, tmp_path):
        model = self.wrapped()
        model.save_pretrained(tmp_path)
        self.check(tmp_path)
        assert "hsa" not in (tmp_path / "adapter_config.json").read_text().lower()

    def test_with_a_state_dict(self, tmp_path):
        model = self.wrapped()
        model.save_pretrained(tmp_path, state_dict=model.state_dict())
        self.check(tmp_path)

    def test_with_a_state_dict_from_elsewhere_after_a_forward(self, tmp_path):
        model, ids = self.wrapped(), tokens()
        weights = dict(model.named_parameters())  # as DeepSpeed gathers them, without asking the model
        run(model, ids, semantic_ids=types())
        model.save_pretrained(tmp_path, state_dict=weights)
        self.check(tmp_path)

    def test_adapters_added_later_have_their_own(self, tmp_path):
        peft = pytest.importorskip("peft")
        model = self.wrapped()
        model.add_adapter("other", peft.LoraConfig(target_modules=["q_proj"]))
        model.save_pretrained(tmp_path)
        self.check(tmp_path)
        self.check(tmp_path / "other")

    @pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
    def test_prompts_where_hsa_is_enabled_after_wrapping(self, kind, tmp_path):
        """Their configuration is on the wrapper only."""
        peft = pytest.importorskip("peft")
        config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4)
        model = enable_hsa(peft.get_peft_model(build("qwen3"), config), self.CONFIG)
        model.save_pretrained(tmp_path / "on")
        self.check(tmp_path / "on")
        disable_hsa(model).save_pretrained(tmp_path / "off")
        assert not (tmp_path / "off" / "hsa_config.json").exists()

    def test_enabled_on_the_text_model_first(self, tmp_path):
        model = build("qwen3")
        enable_hsa(model.model, HSAConfig())
        model = TestPeft.wrap(enable_hsa(model, self.CONFIG))
        model.save_pretrained(tmp_path / "adapter")
        self.check(tmp_path / "adapter")
        model.get_base_model().model.save_pretrained(tmp_path / "text")
        self.check(tmp_path / "text")
        disable_hsa(model)
        base = model.get_base_model()
        for module in (base, base.model):
            assert "save_pretrained" not in vars(module) and not module._forward_pre_hooks
            assert not module._forward_hooks and not module._state_dict_pre_hooks

    def test_merged(self, tmp_path):
        model = self.wrapped().merge_and_unload()
        model.save_pretrained(tmp_path)
        self.check(tmp_path)

    def test_an_adapter_loaded_onto_a_model_with_hsa(self, tmp_path):
        peft = pytest.importorskip("peft")
        self.wrapped().save_pretrained(tmp_path / "first")
        model = peft.PeftModel.from_pretrained(enabled("qwen3", self.CONFIG), tmp_path / "first")
        model.save_pretrained(tmp_path / "second")
        self.check(tmp_path / "second")

    def test_the_adapters_of_transformers_itself(self, tmp_path):
        peft = pytest.importorskip("peft")
        model = enabled("qwen3", self.CONFIG)
        try:
            model.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
        except ValueError as error:  # transformers 5.6 asks for a later PEFT than the one it is tested with here
            pytest.skip(str(error))
        model.save_pretrained(tmp_path)
        self.check(tmp_path)

    def test_compiled_and_copied(self, tmp_path):
        torch.compile(enabled("qwen3", self.CONFIG)).save_pretrained(tmp_path / "compiled")
        self.check(tmp_path / "compiled")
        model = copy.deepcopy(self.wrapped())
        model.save_pretrained(tmp_path / "copy")
        self.check(tmp_path / "copy")
        disable_hsa(model).save_pretrained(tmp_path / "off")
        assert not (tmp_path / "off" / "hsa_config.json").exists()

    def test_disabled_before_it_is_saved(self, tmp_path):
        model = self.wrapped()
        model.state_dict()
        disable_hsa(model).save_pretrained(tmp_path)
        assert not (tmp_path / "hsa_config.json").exists()

    def test_enabled_again_with_other_rules(self, tmp_path):
        model = self.wrapped()
        model.save_pretrained(tmp_path)
        enable_hsa(model, HSAConfig(noise_window=8)).save_pretrained(tmp_path)
        assert HSAConfig.from_pretrained(tmp_path).noise_window == 8

    @pytest.mark.parametrize("is_main_process", [True, False])
    def test_only_the_main_process_writes(self, tmp_path, is_main_process):
        self.wrapped().save_pretrained(tmp_path, is_main_process=is_main_process)
        assert bool(list(tmp_path.rglob("hsa_config.json"))) is is_main_process


class TestSomebodyElsesWay:
    """A `save_pretrained` that somebody put on the model itself is called, and comes back."""

    @staticmethod
    def put_on(model, calls):
        former = model.save_pretrained

        def save_pretrained(directory, **kwargs):
            calls.append(directory)
            return former(directory, **kwargs)

        model.save_pretrained = save_pretrained
        return save_pretrained

    def test_put_there_before(self, tmp_path):
        model, calls = build("llama"), []
        theirs = self.put_on(model, calls)
        enable_hsa(model).save_pretrained(tmp_path / "on")
        assert calls == [tmp_path / "on"] and (tmp_path / "on" / "hsa_config.json").exists()
        assert disable_hsa(model).save_pretrained is theirs
        model.save_pretrained(tmp_path / "off")
        assert not (tmp_path / "off" / "hsa_config.json").exists()

    def test_put_there_afterwards(self, tmp_path):
        model, calls = enabled("llama"), []
        theirs = self.put_on(model, calls)
        model.save_pretrained(tmp_path / "on")
        assert (tmp_path / "on" / "hsa_config.json").exists()
        enable_hsa(model, HSAConfig(noise_window=9)).save_pretrained(tmp_path / "again")
        assert HSAConfig.from_pretrained(tmp_path / "again").noise_window == 9 and len(calls) == 2
        assert disable_hsa(model).save_pretrained is not None
        model.save_pretrained(tmp_path / "off")
        assert len(calls) == 3 and not (tmp_path / "off" / "hsa_config.json").exists()
        assert model.save_pretrained is theirs

    def test_generate(self):
        model, calls = enabled("llama"), []
        former = model.generate
        model.generate = lambda *args, **kwargs: calls.append(1) or former(*args, **kwargs)
        ids = tokens(1, 9)
        model.generate(ids, semantic_ids=types(1, 9), max_new_tokens=2)
        stock = build("llama").generate(ids, max_new_tokens=4, do_sample=False)
        assert torch.equal(disable_hsa(model).generate(ids, max_new_tokens=4, do_sample=False), stock)
        assert len(calls) == 2
