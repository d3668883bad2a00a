"""HSA on transformers models: the promises on every architecture, and everything that surrounds switching it on."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BertConfig,
    BertModel,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hsa_factory import HSAConfig, apply_hsa_patch, disable_hsa, enable_hsa, tiny
from hsa_factory.attention.api import available_backends
from hsa_factory.config import BACKENDS
from hsa_factory.models.enable import get_hook
from hsa_factory.models.interface import active_forwards


MODELS = tiny.MODEL_TYPES
VISION = tuple(tiny.VISION_MODELS)
HYBRID = ("qwen3_5_text",)  # its linear layers mix documents and remember without bound, with HSA and without
SOFTMAX = tuple(model_type for model_type in MODELS if model_type not in HYBRID)
LENGTH = 70  # more than the window of NOISE and the models' own windows


def build(model_type, **overrides):
    model = tiny.build_model(model_type, **overrides)
    if model_type == "gemma2":  # stock sdpa leaves its soft-cap out
        model.set_attn_implementation("eager")
    return model


def enabled(model_type, config=None, **overrides):
    return enable_hsa(build(model_type, **overrides), config or HSAConfig())


def tokens(batch=2, length=LENGTH, seed=0):
    return torch.randint(0, 1000, (batch, length), generator=torch.Generator().manual_seed(seed))


def types(batch=2, length=LENGTH, seed=1):
    return torch.randint(0, 3, (batch, length), generator=torch.Generator().manual_seed(seed))


def run(model, input_ids=None, **inputs):
    with torch.no_grad():
        return model(input_ids=input_ids, **{"use_cache": False} | inputs).logits


def close(actual, expected, tolerance=2e-5):
    assert actual.shape == expected.shape and actual.isfinite().all()
    error, size = (actual - expected).abs().max(), expected.abs().max()
    assert error <= tolerance * max(1, size), f"{error:.2e} off at a size of {size:.2e}"


def differs(actual, expected):
    assert (actual - expected).abs().max() > 1e-2


def step(model, input_ids=None, **inputs):
    """One training step; return the loss and all gradients."""
    model.train()
    model.zero_grad()
    loss = model(input_ids=input_ids, labels=input_ids, use_cache=False, **inputs).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


PACKED = (30, 1, 25, 14)
MASK = torch.tensor([[number for number, length in enumerate(PACKED, 1) for _ in range(length)]])
POSITIONS = torch.cat([torch.arange(length) for length in PACKED])[None]


def positions(model_type, rows=3):
    """Positions that start anew in every document; M-RoPE has three rows of them, or the text's own before them."""
    return POSITIONS.expand(rows, 1, -1) if model_type in VISION else POSITIONS


class TestPromise1:
    """All GLOBAL, switched off, or without semantic_ids: the stock model."""

    @pytest.mark.parametrize("model_type", MODELS)
    def test_stock(self, model_type):
        model, ids = build(model_type), tokens()
        stock = run(model, ids)
        assert enable_hsa(model, HSAConfig()) is model
        close(run(model, ids, semantic_ids=torch.zeros_like(ids)), stock)
        differs(run(model, ids, semantic_ids=torch.full_like(ids, 2)), stock)
        differs(run(model, ids, semantic_ids=types()), stock)
        assert torch.equal(run(model, ids), stock)
        assert torch.equal(run(model, ids, use_cache=True), stock)
        assert disable_hsa(model) is model
        assert torch.equal(run(model, ids), stock)

    @pytest.mark.parametrize("model_type", MODELS)
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding(self, model_type, side):
        model, ids, mask = build(model_type), tokens(), torch.ones(2, LENGTH, dtype=torch.long)
        mask[0, :20] = 0
        mask = mask if side == "left" else mask.flip(1)
        stock = run(model, ids, attention_mask=mask)
        enable_hsa(model, HSAConfig())
        assert torch.equal(run(model, ids, attention_mask=mask), stock)
        output = run(model, ids, attention_mask=mask, semantic_ids=torch.zeros_like(ids))
        assert output.isfinite().all()
        close(output[mask.bool()], stock[mask.bool()])

    # stock gpt_oss takes no notice of the positions, and would mix the documents
    @pytest.mark.parametrize("model_type", [model_type for model_type in MODELS if model_type != "gpt_oss"])
    def test_documents_that_only_the_positions_tell_apart(self, model_type):
        model, ids, place = build(model_type), tokens(1), positions(model_type, rows=4)
        stock = run(model, ids, position_ids=place)
        enable_hsa(model, HSAConfig())
        close(run(model, ids, position_ids=place, semantic_ids=torch.zeros_like(ids)), stock)

    @pytest.mark.parametrize("place", [[0, 1, 2, 7, 8, 9, 9, 10, 4, 5], [3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [0] * 10])
    def test_positions_that_do_not_go_up_by_one_begin_a_document(self, place):
        model, ids, place = build("llama"), tokens(2, 10), torch.tensor([place])
        stock = run(model, ids, position_ids=place)
        enable_hsa(model, HSAConfig())
        close(run(model, ids, position_ids=place, semantic_ids=torch.zeros_like(ids)), stock)

    @pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
    def test_scaling_of_the_models_own(self, model_type):
        model, ids = build(model_type, query_pre_attn_scalar=2), tokens()
        stock = run(model, ids)
        differs(stock, run(build(model_type), ids))
        enable_hsa(model, HSAConfig())
        close(run(model, ids, semantic_ids=torch.zeros_like(ids)), stock)

    @pytest.mark.parametrize("model_type", MODELS)
    def test_gradients(self, model_type):
        model, ids = build(model_type), tokens()
        loss, gradients = step(model, ids)
        enable_hsa(model, HSAConfig())
        hsa_loss, hsa_gradients = step(model, ids, semantic_ids=torch.zeros_like(ids))
        assert hsa_loss == pytest.approx(loss, abs=1e-5)
        assert hsa_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            close(hsa_gradients[name], gradient, 1e-4)

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_the_former_implementation_comes_back(self, implementation):
        model = build("llama")
        model.set_attn_implementation(implementation)
        enable_hsa(enable_hsa(model))
        disable_hsa(disable_hsa(model))
        assert model.config._attn_implementation == implementation
        for module in model.modules():
            assert not module._forward_pre_hooks and not module._forward_hooks
            assert not [name for name in vars(module) if "hsa" in name or name == "save_pretrained"]


class TestPromise3And4:
    @pytest.mark.parametrize("model_type", MODELS)
    def test_left_right_and_alone(self, model_type):
        model, lengths = enabled(model_type), (LENGTH, 55, 2)
        samples = [(tokens(1, length, length), types(1, length, length)) for length in lengths]
        for side in ("left", "right"):
            ids, kinds, mask = (torch.full((3, LENGTH), value) for value in (9, 0, 0))
            places = [slice(LENGTH - length, LENGTH) if side == "left" else slice(0, length) for length in lengths]
            for row, ((sample_ids, sample_kinds), place) in enumerate(zip(samples, places)):
                ids[row, place], kinds[row, place], mask[row, place] = sample_ids[0], sample_kinds[0], 1
            batch = run(model, ids, attention_mask=mask, semantic_ids=kinds)
            assert batch.isfinite().all()
            for row, ((sample_ids, sample_kinds), place) in enumerate(zip(samples, places)):
                close(batch[row : row + 1, place], run(model, sample_ids, semantic_ids=sample_kinds), 5e-5)

    @pytest.mark.parametrize("model_type", SOFTMAX)
    @pytest.mark.parametrize("how", ["mask", "document_ids", "positions"])
    def test_packed_and_alone(self, model_type, how):
        model, ids, kinds = enabled(model_type, HSAConfig(hide=[("GLOBAL", "NOISE")])), tokens(1), types(1)
        inputs = {
            "mask": {"attention_mask": MASK, "position_ids": positions(model_type)},
            "document_ids": {"document_ids": MASK - 5, "position_ids": positions(model_type)},
            "positions": {"position_ids": positions(model_type, rows=4)},
        }[how]
        packed = run(model, ids, semantic_ids=kinds, **inputs).split(PACKED, dim=1)
        for part, part_ids, part_kinds in zip(packed, ids.split(PACKED, 1), kinds.split(PACKED, 1)):
            close(part, run(model, part_ids, semantic_ids=part_kinds), 5e-5)


class TestReach:
    @pytest.mark.parametrize("model_type", SOFTMAX)
    def test_noise_outside_its_window_has_no_influence_at_all(self, model_type):
        """Through two layers with a window of 3, a token reaches the six after it and no more."""
        model, ids = enabled(model_type, HSAConfig(noise_window=3)), tokens(1)
        kinds = torch.full_like(ids, 2)
        before = run(model, ids, semantic_ids=kinds)
        ids[0, 20] += 1
        change = (run(model, ids, semantic_ids=kinds) - before).abs().amax(-1)[0]
        assert (change[:20] == 0).all() and (change[27:] < 1e-5).all()
        assert (change[20:24] > 1e-3).all() and change[26] > 1e-7

    @pytest.mark.parametrize("model_type", MODELS)
    def test_low_precision_is_finite(self, model_type):
        model, ids = enabled(model_type, dtype=torch.bfloat16), tokens()
        mask = torch.ones_like(ids)
        mask[0, :20] = 0
        loss, gradients = step(model, ids, attention_mask=mask, semantic_ids=types())
        assert 0 < loss < 20
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        assert any("q_proj" in name or "qkv_proj" in name for name in gradients)

    @pytest.mark.parametrize("model_type", MODELS)
    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_gradient_checkpointing_changes_nothing(self, model_type, use_reentrant):
        model, ids, kinds = enabled(model_type), tokens(), types()
        loss, gradients = step(model, ids, semantic_ids=kinds)
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.enable_input_require_grads()
        again, others = step(model, ids, semantic_ids=kinds)
        assert again == pytest.approx(loss, abs=1e-6)
        assert others.keys() == gradients.keys()
        for name, gradient in gradients.items():
            close(others[name], gradient, 1e-5)
        assert sum(gradient.abs().max() > 1e-4 for gradient in gradients.values()) > len(gradients) / 2

    @pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "qwen3_5_text", "qwen3_vl"])
    @pytest.mark.parametrize("backend", [name for name in available_backends() if name != "reference"])
    def test_backends(self, model_type, backend):
        """Outputs and gradients of the whole model, packed, padded, and with a layer left out."""
        ids, kinds, mask = tokens(2), types(), torch.cat([MASK, torch.ones_like(MASK)])
        mask[1, :20] = 0
        layers = [1] if model_type in HYBRID else [0]
        results = []
        for name in (backend, "reference"):
            model = enabled(model_type, HSAConfig(backend=name, layers=layers, noise_window=5))
            results.append(step(model, ids, attention_mask=mask, semantic_ids=kinds, position_ids=None))
        (loss, gradients), (expected, others) = results
        assert loss == pytest.approx(expected, abs=1e-5)
        for name, gradient in gradients.items():
            close(gradient, others[name], 5e-5)

    def test_layers(self):
        """With windows of 0 a token sees only itself in the layers that have HSA, and all before it in the others."""
        windows = {f"{kind}_window": 0 for kind in ("global", "landmark", "noise")}
        ids, kinds = tokens(1), types(1)
        other = ids.clone()
        other[0, 0] += 1
        for layers, reaches in ((None, False), ((0, 1), False), ((0,), True), ((1,), True), ((), True)):
            model = enabled("llama", HSAConfig(layers=layers, **windows))
            change = (run(model, ids, semantic_ids=kinds) - run(model, other, semantic_ids=kinds)).abs()
            assert (change[0, -1].max() > 1e-4) == reaches
        close(run(model, ids, semantic_ids=kinds), run(build("llama"), ids))

    @pytest.mark.parametrize(
        ("model_type", "layers", "message"),
        [
            ("llama", (0, 2), r"HSAConfig.layers = \[0, 2\]: LlamaForCausalLM .* in layers \[0, 1\], not in \[2\]"),
            ("qwen3_5_text", (0,), r"softmax attention in layers \[1, 3\], not in \[0\]"),
        ],
    )
    def test_layers_that_are_not_there(self, model_type, layers, message):
        model = build(model_type)
        with pytest.raises(ValueError, match=message):
            enable_hsa(model, HSAConfig(layers=layers))
        assert get_hook(model) is None and model.config._attn_implementation == "sdpa"

    def test_the_model_below_its_head(self):
        model = build("llama").model
        ids, kinds = tokens(), types()
        with torch.no_grad():
            expected = enabled("llama").model(input_ids=ids, semantic_ids=kinds).last_hidden_state
            assert torch.equal(enable_hsa(model)(input_ids=ids, semantic_ids=kinds).last_hidden_state, expected)

    def test_other_ways_to_pass_the_tokens(self):
        model, ids, kinds = enabled("llama"), tokens(), types()
        expected = run(model, ids, semantic_ids=kinds)
        with torch.no_grad():
            assert torch.equal(model(ids, semantic_ids=kinds).logits, expected)
            assert torch.equal(model(ids, torch.ones_like(ids), semantic_ids=kinds).logits, expected)
        assert torch.equal(run(model, inputs_embeds=model.get_input_embeddings()(ids), semantic_ids=kinds), expected)

    def test_with_a_cache_semantic_ids_cover_the_cached_tokens_too(self):
        model, ids, kinds = enabled("llama"), tokens(), types()
        mask = torch.ones_like(ids)
        mask[0, :9] = 0
        cache = DynamicCache(config=model.config)
        parts, start = [], 0
        for stop in (40, 41, LENGTH):
            inputs = {"attention_mask": mask[:, :stop], "semantic_ids": kinds[:, :stop], "past_key_values": cache}
            parts.append(run(model, ids[:, start:stop], use_cache=True, **inputs))
            start = stop
        expected = run(model, ids, attention_mask=mask, semantic_ids=kinds)
        close(torch.cat(parts, dim=1)[mask.bool()], expected[mask.bool()])

    @pytest.mark.parametrize("model_type", ["mistral", "gemma3_text"])
    def test_a_cache_that_forgets_is_honoured_or_refused(self, model_type):
        model, ids, kinds = enabled(model_type), tokens(), types()
        cache, expected = DynamicCache(config=model.config), run(model, ids, semantic_ids=kinds)
        try:
            run(model, ids[:, :40], use_cache=True, past_key_values=cache, semantic_ids=kinds[:, :40])
            rest = run(model, ids[:, 40:], use_cache=True, past_key_values=cache, semantic_ids=kinds)
        except ValueError as error:
            assert "plan was built for (batch, query length, key length)" in str(error)
        else:
            close(rest, expected[:, 40:])

    def test_attention_dropout_is_applied_in_training_only(self):
        model, ids, kinds = enabled("llama", attention_dropout=0.5), tokens(), types()
        assert torch.equal(run(model, ids, semantic_ids=kinds), run(enabled("llama"), ids, semantic_ids=kinds))
        model.train()
        differs(run(model, ids, semantic_ids=kinds), run(model, ids, semantic_ids=kinds))


class TestVision:
    @pytest.fixture
    def pictures(self, tiny_tokenizer):
        pytest.importorskip("torchvision")
        generator = torch.Generator().manual_seed(0)

        def pictures(model_type, padding_side="left"):
            processor = tiny.build_processor(model_type, tiny_tokenizer)
            images = [
                torch.randint(0, 255, (3, *size), dtype=torch.uint8, generator=generator)
                for size in ((112, 84), (56, 140))
            ]
            picture = "<|vision_start|><|image_pad|><|vision_end|>"
            texts = [f"see {picture} and the robot", f"{picture}go"]
            return processor(text=texts, images=images, padding=True, padding_side=padding_side, return_tensors="pt")

        return pictures

    @pytest.mark.parametrize("model_type", VISION)
    def test_pictures(self, model_type, tiny_tokenizer, pictures):
        model, inputs = build(model_type, tokenizer=tiny_tokenizer), pictures(model_type)
        real = inputs["attention_mask"].bool()
        assert not real.all()
        stock = run(model, **inputs)
        enable_hsa(model, HSAConfig(noise_window=3))
        assert torch.equal(run(model, **inputs), stock)
        kinds = torch.zeros_like(inputs["input_ids"])
        close(run(model, **inputs, semantic_ids=kinds)[real], stock[real])
        kinds[inputs["input_ids"] == model.config.image_token_id] = 2
        differs(run(model, **inputs, semantic_ids=kinds)[real], stock[real])

    @pytest.mark.parametrize("model_type", VISION)
    def test_pictures_padded_left_and_right(self, model_type, tiny_tokenizer):
        pytest.importorskip("torchvision")
        model = enabled(model_type, tokenizer=tiny_tokenizer)
        picture = torch.randint(0, 255, (3, 112, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        processor = tiny.build_processor(model_type, tiny_tokenizer)
        texts = ["a <|vision_start|><|image_pad|><|vision_end|> robot", "<|vision_start|><|image_pad|><|vision_end|>"]
        outputs = []
        for side in ("left", "right"):
            inputs = processor(
                text=texts, images=[picture, picture], padding=True, padding_side=side, return_tensors="pt"
            )
            real = inputs["attention_mask"].bool()
            kinds = torch.full_like(inputs["input_ids"], 2)
            kinds[real] = torch.arange(int(real.sum())) % 3
            outputs.append(run(model, **inputs, semantic_ids=kinds)[real])
        close(*outputs)

    @pytest.mark.parametrize("model_type", VISION)
    def test_the_tower_stays_as_it_is(self, model_type, tiny_tokenizer, pictures):
        model, inputs = build(model_type, tokenizer=tiny_tokenizer), pictures(model_type)
        tower = model.model.visual
        former, names = tower.config._attn_implementation, sorted(vars(tower.config))
        see = lambda: tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        with torch.no_grad():
            before = see()
            enable_hsa(model, HSAConfig(noise_window=0, landmark_window=0, global_window=0))
            after = see()
        assert tower.config._attn_implementation == former == "sdpa" and sorted(vars(tower.config)) == names
        assert model.model.language_model.config._attn_implementation == "hsa"
        assert torch.equal(after.last_hidden_state, before.last_hidden_state)
        assert torch.equal(after.pooler_output, before.pooler_output)
        assert not any("hsa_hook" in vars(module) for module in tower.modules())


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
        assert get_hook(model).config == HSAConfig(noise_window=5)

    def test_on_again_after_off(self):
        model, ids, kinds = enabled("llama"), tokens(), types()
        expected = run(model, ids, semantic_ids=kinds)
        enable_hsa(disable_hsa(model), HSAConfig())
        assert torch.equal(run(model, ids, semantic_ids=kinds), expected)

    def test_the_former_name(self):
        model = build("llama")
        assert apply_hsa_patch(model) is model
        assert get_hook(model).config == HSAConfig()

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
        assert get_hook(model).config.noise_window == 5

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
        assert get_hook(model) is None

    @pytest.mark.parametrize("backend", sorted(set(BACKENDS) - set(available_backends())))
    def test_a_backend_that_is_not_there(self, backend):
        model = build("llama")
        with pytest.raises(ValueError, match=f"{backend!r} needs CUDA. Available here: auto"):
            enable_hsa(model, HSAConfig(backend=backend))
        assert get_hook(model) is None and model.config._attn_implementation == "sdpa"

    def test_data_parallel_wrapper(self):
        model = build("llama")
        wrapped = nn.DataParallel(model)
        assert enable_hsa(wrapped, HSAConfig()) is wrapped
        assert get_hook(model) is get_hook(wrapped) is not None
        disable_hsa(wrapped)
        assert get_hook(model) is None

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
        assert get_hook(loaded).config == config
        assert torch.equal(run(loaded, ids, semantic_ids=kinds), expected)

    def test_a_configuration_given_stands_above_the_saved_one(self, tmp_path):
        enabled("llama", HSAConfig(noise_window=3)).save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert get_hook(enable_hsa(loaded, HSAConfig(noise_window=4))).config == HSAConfig(noise_window=4)
        loaded.save_pretrained(tmp_path)
        assert HSAConfig.from_pretrained(tmp_path) == HSAConfig(noise_window=4)

    def test_defaults_where_nothing_was_saved(self, tmp_path):
        build("llama").save_pretrained(tmp_path)
        assert not (tmp_path / "hsa_config.json").exists()
        assert get_hook(enable_hsa(AutoModelForCausalLM.from_pretrained(tmp_path))).config == HSAConfig()

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
        assert get_hook(model) is None and "save_pretrained" not in {*vars(model), *vars(model.get_base_model())}

    def test_reentrant_checkpointing(self):
        model, ids, kinds = enable_hsa(self.wrap(build("qwen3")), HSAConfig()), tokens(), types()
        _, gradients = step(model, ids, semantic_ids=kinds)
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": True})
        _, others = step(model, ids, semantic_ids=kinds)
        for name, gradient in gradients.items():
            close(others[name], gradient, 1e-5)


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
        assert not active_forwards.hooks

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
            assert not active_forwards.hooks and get_hook(model).forward_pass.plan is None
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
        assert not active_forwards.hooks and get_hook(model).forward_pass.plan is None

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


class HandmadeConfig(PreTrainedConfig):
    model_type = "handmade"

    def __init__(self, fault=None, **options):
        self.fault, self.vocab_size, self.hidden_size, self.num_hidden_layers = fault, 32, 16, 2
        self.num_attention_heads = self.num_key_value_heads = 2
        self.sliding_window, self.initializer_range = 4, 0.5
        super().__init__(**options)


def eager_attention_forward(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    raise AssertionError("sdpa was asked for")


class HandmadeAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, True
        self.projection = nn.Linear(16, 48)

    def forward(self, hidden, attention_mask=None, **kwargs):
        query, key, value = self.projection(hidden).view(*hidden.shape[:2], 2, 24).transpose(1, 2).chunk(3, dim=-1)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        extra = {"position_bias": torch.zeros(1)} if self.config.fault == "asks for a position bias" else {}
        output, _ = attend(self, query, key, value, attention_mask, scaling=8**-0.5, **extra, **kwargs)
        return hidden + output.flatten(2)


class HandmadeDeafAttention(HandmadeAttention):
    def forward(self, hidden, attention_mask=None):
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        return attend(self, hidden, hidden, hidden, attention_mask)


class HandmadeModel(PreTrainedModel):
    config_class = HandmadeConfig
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        attention = HandmadeDeafAttention if config.fault == "attention without keywords" else HandmadeAttention
        self.embedding = nn.Embedding(32, 16)
        self.layers = nn.ModuleList(attention(config, index) for index in range(2))
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        fault, hidden = self.config.fault, self.embedding(input_ids)
        make_mask = create_causal_mask
        if fault == "hides its sliding window":
            make_mask = create_sliding_window_causal_mask
        given = {"config": self.config, "inputs_embeds": hidden, "attention_mask": attention_mask}
        extra = {"or_mask_function": lambda b, h, q, k: k == 0} if fault == "sees ahead" else {}
        mask = make_mask(**given, past_key_values=None, **extra)
        if fault == "makes its own mask":
            mask = torch.ones(hidden.shape[1], hidden.shape[1]).tril().bool()[None, None]
        for index, layer in enumerate(self.layers):
            dropped = fault == "drops keywords" or (fault == "drops keywords in one layer" and index)
            if not (fault == "skips a layer" and index):
                hidden = layer(hidden, mask, **({} if dropped else kwargs))
        return BaseModelOutput(last_hidden_state=hidden)


class HandmadeDeafModel(HandmadeModel):
    def forward(self, input_ids=None, attention_mask=None):
        return HandmadeModel.forward(self, input_ids, attention_mask)


class TestRefusedModels:
    IDS, KINDS = torch.arange(10)[None], torch.full((1, 10), 2)

    def test_the_same_model_without_a_fault_is_served(self):
        torch.manual_seed(0)
        model = HandmadeModel(HandmadeConfig()).eval()
        stock = model(input_ids=self.IDS).last_hidden_state
        enable_hsa(model, HSAConfig(noise_window=1))
        close(model(input_ids=self.IDS, semantic_ids=0 * self.KINDS).last_hidden_state, stock)
        differs(model(input_ids=self.IDS, semantic_ids=self.KINDS).last_hidden_state, stock)

    @pytest.mark.parametrize(
        ("model_class", "fault", "message"),
        [
            (HandmadeDeafModel, None, r"does not hand keywords on to its layers \(HandmadeDeafModel.forward has no"),
            (HandmadeModel, "attention without keywords", r"\(layer 0, HandmadeDeafAttention.forward has no \*\*kw"),
        ],
    )
    def test_seen_when_enabling(self, model_class, fault, message):
        model = model_class(HandmadeConfig(fault)).eval()
        with pytest.raises(ValueError, match=f"{model_class.__name__} .*{message}"):
            enable_hsa(model, HSAConfig())
        assert model.config._attn_implementation == "sdpa" and get_hook(model) is None

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ("drops keywords", r"did not hand HSA's plan on to HandmadeAttention \(layer 0\)"),
            ("drops keywords in one layer", r"did not hand HSA's plan on to HandmadeAttention \(layer 1\)"),
            ("skips a layer", r"plan did not reach layers \[1\]"),
            ("makes its own mask", "made its own attention mask although HSA was active"),
            ("asks for a position bias", "gives its attention 'position_bias', which HSA cannot honour"),
            ("sees ahead", "lays another mask over the causal one"),
            ("hides its sliding window", r"has a sliding window of \{4\} that its attention layers are not told of"),
        ],
    )
    def test_seen_in_the_first_forward(self, fault, message, training):
        model = enable_hsa(HandmadeModel(HandmadeConfig(fault)).train(training), HSAConfig())
        with pytest.raises(ValueError, match=f"HandmadeModel.*{message}"):
            model(input_ids=self.IDS, semantic_ids=self.KINDS)
        assert not active_forwards.hooks and get_hook(model).forward_pass.plan is None
        model.config.fault = None
        model(input_ids=self.IDS, semantic_ids=self.KINDS)

    def test_a_vision_language_model_that_stops_keywords_at_its_entry(self):
        model = build("qwen2_vl")
        forward = lambda self, input_ids=None, attention_mask=None: None
        model.model.__class__ = type("DeafEntry", (type(model.model),), {"forward": forward})
        with pytest.raises(ValueError, match=r"Qwen2VL.* does not hand keywords on .*DeafEntry.forward has no"):
            enable_hsa(model, HSAConfig())

    def test_encoder_decoder(self):
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=32, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
        )
        with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder model.*decoder-only"):
            enable_hsa(model, HSAConfig())

    def test_encoder(self):
        sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        with pytest.raises(ValueError, match="BertModel "):
            enable_hsa(BertModel(BertConfig(**sizes, intermediate_size=16)), HSAConfig())

    def test_chunked_attention(self):
        model = build("llama")
        model.config.layer_types = ["chunked_attention", "full_attention"]
        with pytest.raises(ValueError, match="LlamaForCausalLM uses chunked attention"):
            enable_hsa(model, HSAConfig())


# -- around it -------------------------------------------------------------------------------------------------


class TestTrainer:
    @staticmethod
    def train(model, output_dir, **options):
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")

        def collate(features):
            width = max(len(feature["input_ids"]) for feature in features)
            fillers = {"input_ids": 0, "labels": -100, "attention_mask": 0, "semantic_ids": 2}
            return {
                name: torch.tensor([f[name] + [filler] * (width - len(f[name])) for f in features])
                for name, filler in fillers.items()
                if name in features[0]
            }

        rows = [(tokens(1, n, n)[0].tolist(), types(1, n, n)[0].tolist()) for n in (20, 31, 9, 12)]
        data = [
            {"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids), "semantic_ids": kinds}
            for ids, kinds in rows
        ]
        arguments = transformers.TrainingArguments(
            output_dir=str(output_dir),
            max_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            logging_steps=1,
            save_steps=2,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            **options,
        )
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate)
        return trainer.train()

    def test_dropped_columns_are_explained(self, tmp_path):
        with pytest.raises(ValueError, match="no `semantic_ids`.*set `remove_unused_columns: false`"):
            self.train(enabled("llama"), tmp_path, remove_unused_columns=True)

    @pytest.mark.parametrize("gradient_checkpointing", [False, True])
    def test_training(self, tmp_path, gradient_checkpointing):
        model = enabled("llama", HSAConfig(noise_window=3))
        before = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
        result = self.train(
            model, tmp_path, remove_unused_columns=False, gradient_checkpointing=gradient_checkpointing
        )
        assert 0 < result.training_loss < 20
        differs(model.model.layers[0].self_attn.q_proj.weight, before)
        assert HSAConfig.from_pretrained(tmp_path / "checkpoint-2") == HSAConfig(noise_window=3)
        assert "hsa" not in json.dumps(json.loads((tmp_path / "checkpoint-2" / "config.json").read_text()))


def test_importing_has_no_side_effects():
    """`import hsa_factory` does not import transformers, and nothing is registered before `enable_hsa`."""
    code = """
import sys
import hsa_factory
assert "transformers" not in sys.modules and "torch" not in sys.modules, "heavy import"
hsa_factory.HSAConfig(), hsa_factory.FeedbackConfig(), hsa_factory.SemanticType
import hsa_factory.attention, hsa_factory.feedback, hsa_factory.labeling.token_ids, hsa_factory.labeling.typed_text
assert "transformers" not in sys.modules, "transformers imported"

from transformers import AttentionInterface, AttentionMaskInterface
hsa_factory.enable_hsa, hsa_factory.disable_hsa, hsa_factory.apply_hsa_patch
import hsa_factory.models
for interface in (AttentionInterface(), AttentionMaskInterface()):
    assert "hsa" not in interface.valid_keys(), "registered"
assert "llamafactory" not in sys.modules, "llamafactory imported"

from hsa_factory import tiny
hsa_factory.enable_hsa(tiny.build_model("llama"))
for interface in (AttentionInterface(), AttentionMaskInterface()):
    assert "hsa" in interface.valid_keys(), "not registered"
try:
    hsa_factory.nothing
except AttributeError as error:
    assert "has no attribute 'nothing'" in str(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_hybrid_warns_once_that_its_linear_layers_mix_packed_documents(tiny_tokenizer, caplog):
    model = enable_hsa(tiny.build_model("qwen3_5_text", tokenizer=tiny_tokenizer).eval(), HSAConfig())
    ids = torch.randint(5, 50, (1, 8))
    types = torch.zeros_like(ids)
    model(input_ids=ids, semantic_ids=types, attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]]))
    assert "neat_packing" not in caplog.text
    for _ in range(2):
        model(input_ids=ids, semantic_ids=types, attention_mask=torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0]]))
    assert caplog.text.count("neat_packing") == 1


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
