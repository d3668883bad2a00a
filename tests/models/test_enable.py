"""Switching HSA on and off, and what a forward with it may be given."""

import copy

import pytest
import torch
from helpers import MODELS, build, close, differs, enabled, run, step, tokens, types
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
)

from hsa_factory import HSAConfig, apply_hsa_patch, disable_hsa, enable_hsa, tiny
from hsa_factory.attention.api import available_backends
from hsa_factory.config import BACKENDS
from hsa_factory.models.enable import get_state
from hsa_factory.models.forward_pass import innermost


class TestSwitching:
    def test_enabling_twice_replaces_the_configuration(self):
        model, ids, kinds = build("llama"), tokens(), types()
        for window in (1, 5):
            enable_hsa(model, HSAConfig(noise_window=window))
        once = enabled("llama", HSAConfig(noise_window=5))
        for module, other in zip(model.modules(), once.modules(), strict=True):
            assert len(module._forward_pre_hooks) == len(other._forward_pre_hooks)
            assert len(module._forward_hooks) == len(other._forward_hooks)
        assert torch.equal(run(model, ids, semantic_ids=kinds), run(once, ids, semantic_ids=kinds))
        assert get_state(model).config == HSAConfig(noise_window=5)

    def test_on_again_after_off(self):
        model, ids, kinds = enabled("llama"), tokens(), types()
        expected = run(model, ids, semantic_ids=kinds)
        enable_hsa(disable_hsa(model), HSAConfig())
        assert torch.equal(run(model, ids, semantic_ids=kinds), expected)

    def test_the_former_name(self):
        model = build("llama")
        assert apply_hsa_patch(model) is model
        assert get_state(model).config == HSAConfig()

    @pytest.mark.parametrize("model_type", ["llama", "qwen3_vl"])
    def test_a_copy_is_independent(self, model_type):
        model, ids, kinds = build(model_type), tokens(), types()
        stock = run(model, ids)
        enable_hsa(model, HSAConfig(noise_window=5))
        expected = run(model, ids, semantic_ids=kinds)
        twin = copy.deepcopy(model)
        assert torch.equal(run(twin, ids, semantic_ids=kinds), expected)

        enable_hsa(twin, HSAConfig(noise_window=1))
        differs(run(twin, ids, semantic_ids=kinds), expected)
        assert torch.equal(run(model, ids, semantic_ids=kinds), expected)
        assert get_state(model).config.noise_window == 5

        disable_hsa(model)
        assert torch.equal(run(model, ids), stock)
        with pytest.raises(ValueError, match="semantic_ids"):
            twin.train()(input_ids=ids)
        disable_hsa(twin.eval())
        assert torch.equal(run(twin, ids), stock)

    def test_a_copy_saves_itself(self, tmp_path):
        model = enabled("llama")
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin.lm_head.weight.zero_()
        twin.save_pretrained(tmp_path)
        assert (AutoModelForCausalLM.from_pretrained(tmp_path).lm_head.weight == 0).all()

    def test_a_model_built_from_the_configuration_of_an_enabled_one(self):
        first, ids, kinds = enabled("llama"), tokens(), types()
        second = type(first)(copy.deepcopy(first.config)).eval()
        second.load_state_dict(first.state_dict())
        with pytest.raises(ValueError, match=r'"hsa" without HSA: call enable_hsa\(model\)'):
            run(second, ids)
        enable_hsa(second, HSAConfig())
        assert torch.equal(run(second, ids, semantic_ids=kinds), run(first, ids, semantic_ids=kinds))
        assert torch.equal(run(second, ids), run(first, ids))
        assert torch.equal(run(disable_hsa(second), ids), run(build("llama"), ids))

    @pytest.mark.parametrize("model", [None, "llama", nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))])
    def test_what_is_no_transformers_model(self, model):
        with pytest.raises(TypeError, match=f"needs a transformers model, got {type(model).__name__}"):
            enable_hsa(model, HSAConfig())

    @pytest.mark.parametrize("config", [{"noise_window": 3}, True, "auto"])
    def test_what_is_no_configuration(self, config):
        model = build("llama")
        with pytest.raises(TypeError, match=f"needs an HSAConfig, got {type(config).__name__}"):
            enable_hsa(model, config)
        assert get_state(model) is None

    @pytest.mark.parametrize("backend", sorted(set(BACKENDS) - set(available_backends())))
    def test_a_backend_that_is_not_there(self, backend):
        model = build("llama")
        with pytest.raises(ValueError, match=f"{backend!r} needs CUDA. Available here: auto"):
            enable_hsa(model, HSAConfig(backend=backend))
        assert get_state(model) is None and model.config._attn_implementation == "sdpa"

    def test_data_parallel_wrapper(self):
        model = build("llama")
        wrapped = nn.DataParallel(model)
        assert enable_hsa(wrapped, HSAConfig()) is wrapped
        assert get_state(model) is get_state(wrapped) is not None
        disable_hsa(wrapped)
        assert get_state(model) is None

    @pytest.mark.long
    def test_compiled(self, tmp_path):
        """Through the tracer, without a compiler: that is what hooks and plan have to survive."""
        ids, kinds = tokens(), types()
        expected = step(enabled("llama"), ids, semantic_ids=kinds)[0]
        model = build("llama")
        compiled = torch.compile(model, backend="eager")
        assert enable_hsa(compiled, HSAConfig(noise_window=7)) is compiled
        enable_hsa(compiled, HSAConfig())
        close(run(compiled, ids, semantic_ids=kinds), run(enabled("llama"), ids, semantic_ids=kinds))
        assert step(compiled, ids, semantic_ids=kinds)[0] == pytest.approx(expected, abs=1e-5)
        compiled.save_pretrained(tmp_path)
        assert HSAConfig.from_pretrained(tmp_path) == HSAConfig()
        torch._dynamo.reset()


class TestInputs:
    @pytest.mark.parametrize("model_type", MODELS)
    def test_training_without_semantic_ids(self, model_type):
        model, ids = enabled(model_type), tokens()
        with pytest.raises(ValueError) as error:
            model.train()(input_ids=ids)
        message = str(error.value)
        assert type(model).__name__ in message and "semantic_ids" in message and "remove_unused_columns" in message
        run(model, ids)  # without gradients it is inference, and so it is in evaluation mode with them
        assert model.eval()(input_ids=ids).logits.requires_grad

    IDS = tokens()

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"semantic_ids": types(2, 69)}, r"semantic_ids has shape \(2, 69\).* = \(2, 70\)"),
            ({"semantic_ids": types(1)}, r"semantic_ids has shape \(1, 70\)"),
            ({"semantic_ids": types()[0]}, r"semantic_ids has shape \(70,\)"),
            ({"semantic_ids": types().tolist()}, "semantic_ids must be a tensor, got list"),
            ({"semantic_ids": types().to("meta")}, "semantic_ids are on meta, the input is on cpu"),
            ({"semantic_ids": types().float()}, "semantic_ids must hold whole numbers, got torch.float32"),
            ({"semantic_ids": types() + 1}, "semantic_ids holds 3; allowed are 0"),
            ({"semantic_ids": types() - 100}, "semantic_ids holds -"),
            ({"semantic_ids": types(), "input_ids": None}, "LlamaForCausalLM: pass input_ids or inputs_embeds along"),
            ({"semantic_ids": types(), "attention_mask": torch.ones(2, 1, 70, 70)}, "4-D attention_mask cannot be"),
            ({"semantic_ids": types(), "attention_mask": torch.ones(2, 60)}, "attention_mask has shape"),
            ({"semantic_ids": types(), "attention_mask": {"full_attention": None}}, "needs the 2-D attention_mask"),
            ({"semantic_ids": types(), "document_ids": torch.ones(2, 70)}, "document_ids must hold whole numbers"),
        ],
    )
    def test_what_does_not_fit(self, inputs, message):
        model = enabled("llama")
        with pytest.raises(ValueError, match=message):
            run(model, **{"input_ids": self.IDS} | inputs)
        assert torch.equal(run(model, self.IDS), run(build("llama"), self.IDS))
        assert innermost() is None

    def test_with_a_cache_the_length_is_named(self):
        model, cache = enabled("llama"), DynamicCache()
        run(model, tokens(), past_key_values=cache, use_cache=True, semantic_ids=types())
        with pytest.raises(ValueError, match=r"semantic_ids has shape \(2, 1\).* = \(2, 71\) \(70 of them cached\)"):
            run(model, tokens(length=1), past_key_values=cache, use_cache=True, semantic_ids=types(length=1))

    @pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen3_vl"])
    def test_an_exception_inside_leaves_nothing_behind(self, model_type):
        model, ids, kinds = build(model_type), tokens(), types()
        stock = run(model, ids)
        enable_hsa(model, HSAConfig())
        expected = run(model, ids, semantic_ids=kinds)
        layer = get_layers(model)[0]
        for inputs in ({}, {"semantic_ids": kinds}):
            handle = layer.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
            with pytest.raises(RuntimeError, match="out of memory"):
                run(model, ids, **inputs)
            handle.remove()
            assert innermost() is None
            assert torch.equal(run(model, ids), stock)
            assert torch.equal(run(model, ids, semantic_ids=kinds), expected)

    def test_after_an_interrupt(self):
        """Torch calls no hook then; the next forward tidies up."""
        model, ids, kinds = build("llama"), tokens(), types()
        stock = run(model, ids)
        enable_hsa(model, HSAConfig())
        handle = get_layers(model)[0].register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run(model, ids, semantic_ids=kinds)
        handle.remove()
        assert torch.equal(run(model, ids), stock)
        assert innermost() is None

    def test_two_models_side_by_side(self):
        ids, kinds = tokens(), types()
        first, second, stock = enabled("llama"), enabled("qwen2", HSAConfig(noise_window=2)), build("llama")
        expected = [run(first, ids, semantic_ids=kinds), run(second, ids, semantic_ids=kinds), run(stock, ids)]
        nested = []
        handle = first.model.layers[0].register_forward_hook(
            lambda *_: nested.append((run(second, ids, semantic_ids=kinds), run(stock, ids))) and None
        )
        output = run(first, ids, semantic_ids=kinds)
        handle.remove()
        assert torch.equal(output, expected[0])
        assert torch.equal(nested[0][0], expected[1]) and torch.equal(nested[0][1], expected[2])


def get_layers(model):
    return [module for module in model.modules() if type(module).__name__.endswith("DecoderLayer")]


class TestGenerating:
    @pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2", "gpt_oss", "qwen3_5_text", "qwen2_vl"])
    def test_without_semantic_ids_it_is_stock_greedy(self, model_type):
        model, ids, mask = build(model_type), tokens(length=30), torch.ones(2, 30, dtype=torch.long)
        mask[0, :8] = 0
        inputs = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
        stock = model.generate(ids, **inputs)
        assert stock.shape == (2, 38)
        assert torch.equal(enable_hsa(model).generate(ids, **inputs), stock)
        assert torch.equal(disable_hsa(model).generate(ids, **inputs), stock)

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_a_static_cache(self, implementation):
        """Its masks are made outside the forward."""
        model, ids, mask = build("llama"), tokens(length=12), torch.ones(2, 12, dtype=torch.long)
        model.set_attn_implementation(implementation)
        mask[0, :5] = 0
        inputs = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
        inputs |= {"cache_implementation": "static", "disable_compile": True}
        stock = model.generate(ids, **inputs)
        assert torch.equal(enable_hsa(model).generate(ids, **inputs), stock)


# -- models that cannot have HSA -------------------------------------------------------------------------------


def test_a_hybrid_takes_padding_and_refuses_packed_documents(tiny_tokenizer):
    """Its linear layers would mix them: that used to be a warning."""
    model = enable_hsa(tiny.build_model("qwen3_5_text", tokenizer=tiny_tokenizer).eval(), HSAConfig())
    ids = torch.randint(5, 50, (1, 8))
    types = torch.zeros_like(ids)
    model(input_ids=ids, semantic_ids=types, attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]]))
    with pytest.raises(ValueError, match="neat_packing"):
        model(input_ids=ids, semantic_ids=types, attention_mask=torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0]]))


@pytest.mark.parametrize("model_type", ["llama", "qwen2_5_vl"])
def test_models_that_share_a_configuration(model_type):
    """HSA on one is none of the other's business; the copy is one object wherever the model and its wrapper hold it."""
    peft = pytest.importorskip("peft")
    first = tiny.build_model(model_type)
    second = type(first)(first.config).eval()
    assert second.config is first.config
    ids, types = torch.randint(5, 900, (1, 40)), torch.full((1, 40), 2)
    stock = [model(input_ids=ids, use_cache=False).logits for model in (first, second)]

    wrapped = peft.get_peft_model(first, peft.LoraConfig(target_modules=["q_proj"])).eval()
    enable_hsa(wrapped, HSAConfig(noise_window=3))
    assert wrapped.config is first.config is not second.config
    text = first.base_model.language_model if model_type == "qwen2_5_vl" else first.base_model
    assert text.config is first.config.get_text_config(decoder=True)
    typed = first(input_ids=ids, semantic_ids=types, use_cache=False).logits
    assert torch.equal(second(input_ids=ids, use_cache=False).logits, stock[1])

    enable_hsa(second, HSAConfig(noise_window=7))
    disable_hsa(wrapped)
    assert torch.equal(first(input_ids=ids, use_cache=False).logits, stock[0])
    assert not torch.equal(typed, stock[0])
    assert not torch.equal(second(input_ids=ids, semantic_ids=types, use_cache=False).logits, stock[1])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_rules_that_change_between_forward_and_backward(use_reentrant):
    """What gradient checkpointing computes anew is what was computed."""
    ids, types, gradients = torch.randint(5, 900, (1, 40)), torch.randint(0, 3, (1, 40)), []
    for other in (None, HSAConfig(noise_window=2, backend="reference", layers=[0])):
        model = enable_hsa(tiny.build_model("qwen3"), HSAConfig(noise_window=9)).train()
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        loss = model(input_ids=ids, semantic_ids=types, labels=ids, use_cache=False).loss
        if other is not None:
            enable_hsa(model, other)
        loss.backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    assert gradients[0].abs().max() > 1e-4 and torch.equal(*gradients)
