"""What HSA promises on every architecture: stock where all is GLOBAL, padding, packing, reach."""

import pytest
import torch
from helpers import (
    HYBRID,
    LENGTH,
    MASK,
    MODELS,
    PACKED,
    SOFTMAX,
    build,
    close,
    differs,
    enabled,
    positions,
    run,
    step,
    tokens,
    types,
)
from transformers import DynamicCache, StaticCache

from hsa_factory import HSAConfig, disable_hsa, enable_hsa
from hsa_factory.attention.api import available_backends
from hsa_factory.models.enable import get_state


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
    @pytest.mark.parametrize("model_type", [model_type for model_type in SOFTMAX if model_type != "gpt_oss"])
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

    @pytest.mark.parametrize("how", ["mask", "document_ids", "positions"])
    @pytest.mark.parametrize("model_type", HYBRID)
    def test_packed_rows_of_models_with_states_are_refused(self, model_type, how):
        """Their linear layers would mix the samples, and scale them by the number that the mask gives them."""
        model, ids, kinds = enabled(model_type), tokens(1), types(1)
        inputs = {
            "mask": {"attention_mask": MASK},
            "document_ids": {"document_ids": MASK},
            "positions": {"position_ids": positions(model_type)},
        }[how]
        with pytest.raises(ValueError, match="samples would see each other: set `neat_packing: false`"):
            run(model, ids, semantic_ids=kinds, **inputs)


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
        mask[0] = mask[0] if model_type in SOFTMAX else 1
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
        for layers, reaches in ((None, False), ((0, 1), False), ((0,), True), ((1,), True)):
            model = enabled("llama", HSAConfig(layers=layers, **windows))
            change = (run(model, ids, semantic_ids=kinds) - run(model, other, semantic_ids=kinds)).abs()
            assert (change[0, -1].max() > 1e-4) == reaches

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
        assert get_state(model) is None and model.config._attn_implementation == "sdpa"

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
    def test_a_cache_that_forgets_is_refused(self, model_type):
        model, ids, kinds = enabled(model_type), tokens(), types()
        cache = DynamicCache(config=model.config)
        run(model, ids[:, :40], use_cache=True, past_key_values=cache, semantic_ids=kinds[:, :40])
        with pytest.raises(
            ValueError, match="^DynamicCache cannot be used with semantic_ids: .* forgets .* Pass .*HSACache"
        ):
            run(model, ids[:, 40:], use_cache=True, past_key_values=cache, semantic_ids=kinds)

    @pytest.mark.parametrize("kind", ["StaticCache", "tuple", "DynamicCache without a configuration"])
    def test_other_caches(self, kind):
        """Those that hold the keys of all tokens, and no others, can be used."""
        model, ids, kinds = enabled("llama"), tokens(), types()
        expected = run(model, ids, semantic_ids=kinds)
        caches = {
            "StaticCache": lambda: StaticCache(config=model.config, max_cache_len=LENGTH + 1),
            "tuple": lambda: ((torch.zeros(2, 2, 3, 16),) * 2,) * 2,
        }
        cache = caches.get(kind, DynamicCache)()
        if kind in caches:
            with pytest.raises(ValueError, match=f"{kind} cannot be used with semantic_ids.*Pass .*HSACache"):
                run(model, ids, use_cache=True, past_key_values=cache, semantic_ids=kinds)
        else:
            close(run(model, ids, use_cache=True, past_key_values=cache, semantic_ids=kinds), expected)

    def test_attention_dropout_is_applied_in_training_only(self):
        model, ids, kinds = enabled("llama", attention_dropout=0.5), tokens(), types()
        assert torch.equal(run(model, ids, semantic_ids=kinds), run(enabled("llama"), ids, semantic_ids=kinds))
        model.train()
        differs(run(model, ids, semantic_ids=kinds), run(model, ids, semantic_ids=kinds))
