"""`HSACache`: what it lets go cannot be seen in the result, and what it holds is no more than that."""

import pytest
import torch
from feeding import CONFIG, LENGTH, MODELS, SOFTMAX, build, close, feed, runs, tokens, types, whole
from halves import half_long
from transformers import DynamicCache

from hsa_factory import HSAConfig, tiny
from hsa_factory.models import HSACache


def fail(model, cache, ids, kinds):
    """Feed the next token; the forward breaks off before the second layer."""
    handle = model.model.layers[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("oops")))
    with pytest.raises(RuntimeError, match="oops"):
        feed(model, cache, ids, kinds, [1])
    handle.remove()


class TestPromise5:
    @pytest.mark.parametrize(("model_type", "typed"), half_long(MODELS, [types, runs]))
    def test_token_by_token(self, model_type, typed):
        model, ids, kinds = build(model_type), tokens(), typed()
        cache = HSACache(CONFIG, max_waiting=8)
        close(feed(model, cache, ids, kinds, [30] + [1] * 60), whole(model, ids, kinds))
        report = cache.report()
        assert report.seen_tokens == LENGTH and report.kept_tokens < 0.8 * LENGTH

    @pytest.mark.parametrize("model_type", SOFTMAX)
    @pytest.mark.parametrize("sizes", [[7] * 12 + [6], [1, 40, 2, 30, 17]])
    def test_pieces_of_any_size(self, model_type, sizes):
        model, ids, kinds = build(model_type), tokens(), types()
        cache = HSACache(CONFIG, max_waiting=4)
        close(feed(model, cache, ids, kinds, sizes), whole(model, ids, kinds))
        assert cache.report().kept_tokens < 0.8 * LENGTH

    @pytest.mark.parametrize(
        ("options", "typed", "model_type"),
        half_long(
            [
                {"hide": [("GLOBAL", "NOISE"), ("LANDMARK", "GLOBAL")], "landmark_window": 9},
                {"hide": [(0, 2), (1, 2), (2, 2)], "noise_window": None},
                {"global_window": 20, "global_decay": 0.1, "landmark_window": 0, "noise_window": None},
                {"layers": [1]},
                {"backend": "reference"},
                {"backend": "blockwise"},
            ],
            [types, runs],
            ["qwen3", "gemma2"],
        ),
    )
    def test_rules(self, model_type, options, typed):
        if model_type == "gemma2" and options.get("backend") == "blockwise":
            pytest.skip("soft-capped logits")
        config = HSAConfig(**{"noise_window": 5} | options)
        model, ids, kinds = build(model_type, config), tokens(), typed()
        cache = HSACache(config, max_waiting=8)
        close(feed(model, cache, ids, kinds, [30] + [1] * 60), whole(model, ids, kinds))
        if options.get("layers"):
            sizes = {len(cache.tables[rules]) for rules in cache.layer_rules.values()}
            assert max(sizes) == LENGTH if model_type == "qwen3" else min(sizes) < LENGTH
        else:
            assert cache.report().kept_tokens < LENGTH

    @pytest.mark.parametrize("padding", [(0, 30), (10, 40), (60, 90), (47, 77)], ids=str)
    @pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2_vl"])
    def test_padding(self, model_type, padding):
        """Rows of 90 and 60 tokens, the padding at the prompt's beginning or end, or among the tokens after it."""
        model, ids, kinds = build(model_type), tokens(), runs()
        mask = torch.ones_like(ids)
        mask[0, slice(*padding)] = 0
        place = (mask.cumsum(1) - 1).clamp(min=0)
        cache = HSACache(CONFIG, max_waiting=8)
        logits = []
        with torch.no_grad():
            for start, stop in [(0, 40), *((n, n + 1) for n in range(40, LENGTH))]:
                inputs = {"attention_mask": mask[:, :stop], "position_ids": place[:, start:stop]}
                if model_type in tiny.VISION_MODELS:
                    inputs["position_ids"] = place[None, :, start:stop].expand(3, -1, -1)
                output = model(
                    input_ids=ids[:, start:stop],
                    semantic_ids=kinds[:, start:stop],
                    past_key_values=cache,
                    **inputs,
                )
                logits.append(output.logits)
        real = mask.bool()
        actual = torch.cat(logits, dim=1)
        close(actual[1], whole(model, ids[1:], kinds[1:])[0])
        close(actual[0][real[0]], whole(model, ids[:1][real[:1]][None], kinds[:1][real[:1]][None])[0])
        assert cache.report().kept_tokens < 0.8 * LENGTH

    def test_what_stands_at_padding_does_not_leak(self):
        model, ids, kinds = build(), tokens().clamp(max=998), runs()
        mask = torch.ones_like(ids)
        mask[0, :30] = 0
        expected = feed(model, HSACache(CONFIG), ids, kinds, [40] + [1] * 50, mask)[:, 40:]
        with torch.no_grad():
            ids[0, :30] = 999
            model.get_input_embeddings().weight[999] = float("nan")
        actual = feed(model, HSACache(CONFIG, max_waiting=8), ids, kinds, [40] + [1] * 50, mask)[:, 40:]
        close(actual, expected)

    def test_a_look_at_the_cache_between_tokens_changes_nothing(self):
        model, ids, kinds, logits = build(), tokens(), torch.full_like(tokens(), 2), []
        cache = HSACache(CONFIG, max_waiting=8)
        for stop in range(40, LENGTH + 1, 5):
            logits.append(feed(model, cache, ids, kinds, [40] if stop == 40 else [1] * 5))
            assert cache.report().seen_tokens == cache.semantic_ids.shape[1] == stop
            assert {len(table) for table in cache.tables.values()} == {cache.layers[0].get_seq_length()}
        close(torch.cat(logits, dim=1), whole(model, ids, kinds))

    def test_a_dynamic_cache_still_works(self):
        model, ids, kinds = build(), tokens(), types()
        cache = DynamicCache()
        with torch.no_grad():
            first = model(input_ids=ids[:, :80], semantic_ids=kinds[:, :80], past_key_values=cache).logits
            last = model(input_ids=ids[:, 80:], semantic_ids=kinds, past_key_values=cache).logits
        close(torch.cat([first, last], dim=1), whole(model, ids, kinds))

    def test_gradients_go_through_it(self):
        model, ids, kinds = build(), tokens(), types()
        whole_loss = model(input_ids=ids, semantic_ids=kinds, use_cache=False).logits[:, 60:].logsumexp(-1).sum()
        whole_loss.backward()
        expected = model.model.layers[0].self_attn.k_proj.weight.grad.clone()
        model.zero_grad()
        cache = HSACache(CONFIG, max_waiting=4)
        model(input_ids=ids[:, :60], semantic_ids=kinds[:, :60], past_key_values=cache)
        logits = model(input_ids=ids[:, 60:], semantic_ids=kinds[:, 60:], past_key_values=cache).logits
        logits.logsumexp(-1).sum().backward()
        close(model.model.layers[0].self_attn.k_proj.weight.grad, expected, 1e-4)


class TestReport:
    def test_as_attributes_and_as_a_mapping(self):
        report = HSACache(CONFIG).report()
        assert dict(report) == {"seen_tokens": 0, "kept_tokens": 0, "bytes": 0} and report.bytes == report["bytes"]

    def test_bytes_are_those_of_what_is_visible_and_one_chunk(self):
        model, length = build("qwen3", HSAConfig()), 3000
        ids, kinds = tokens(1, length), torch.full((1, length), 2)
        kinds[:, :100] = 0
        cache, plain = HSACache(HSAConfig()), HSACache(HSAConfig(), evict=False)
        for held in (cache, plain):
            feed(model, held, ids, kinds, [2900] + [1] * 100)
        assert cache.report().seen_tokens == plain.report().kept_tokens == length
        assert cache.report().kept_tokens <= 100 + 51 + 256
        assert cache.report().bytes <= 1.1 * (100 + 51 + 256) / length * plain.report().bytes
        assert cache.report().bytes == sum(
            buffer.numel() * buffer.element_size() for layer in cache.layers for buffer in layer._buffers
        )

    def test_all_noise_is_held_for_one_window(self):
        model, ids = build(), tokens(1, 300)
        cache = HSACache(CONFIG, max_waiting=1)
        feed(model, cache, ids, torch.full_like(ids, 2), [200] + [1] * 100)
        assert cache.report().kept_tokens == 5


class TestRows:
    def test_reorder_repeat_and_select(self):
        model, ids, kinds = build(), tokens(3), types(3)
        cache = HSACache(CONFIG, max_waiting=8)
        feed(model, cache, ids, kinds, [50])
        cache.reorder_cache(torch.tensor([2, 0, 0]))
        order = torch.tensor([2, 0, 0])
        close(feed(model, cache, ids[order], kinds[order], [1] * 10), whole(model, ids[order], kinds[order])[:, 50:60])
        cache.batch_repeat_interleave(2)
        order = order.repeat_interleave(2)
        close(feed(model, cache, ids[order], kinds[order], [1] * 10), whole(model, ids[order], kinds[order])[:, 60:70])
        cache.batch_select_indices(torch.tensor([5, 0]))
        order = order[[5, 0]]
        close(feed(model, cache, ids[order], kinds[order], [20]), whole(model, ids[order], kinds[order])[:, 70:])
        assert torch.equal(cache.semantic_ids, kinds[order])

    def test_crop_before_keys_are_gone(self):
        model, ids, kinds = build(), tokens(), types()
        for cache in (HSACache(CONFIG, evict=False), HSACache(CONFIG, max_waiting=256)):
            feed(model, cache, ids, kinds, [60, 20])
            cache.crop(70)
            cache.crop(-5)
            cache.crop(100)
            assert cache.get_seq_length() == 65
            close(feed(model, cache, ids, kinds, [25]), whole(model, ids, kinds)[:, 65:])

    def test_crop_is_refused_once_keys_are_gone(self):
        model, ids, kinds = build(), tokens(), types()
        cache = HSACache(CONFIG, max_waiting=8)
        feed(model, cache, ids, kinds, [60])
        with pytest.raises(
            ValueError,
            match="cannot be cropped: keys that the remaining tokens would see are gone.*evict=False. where tokens are taken",
        ):
            cache.crop(50)

    def test_reset(self):
        model, ids, kinds = build(), tokens(), types()
        cache = HSACache(CONFIG, max_waiting=8)
        feed(model, cache, ids, kinds, [60])
        cache.reset()
        assert dict(cache.report()) == {"seen_tokens": 0, "kept_tokens": 0, "bytes": 0}
        close(feed(model, cache, ids, kinds, [60, 30]), whole(model, ids, kinds))


class TestTypes:
    def test_the_callers_types_stay_as_they_are(self):
        model, ids, kinds = build(), tokens(1), types(1)
        before, cache = kinds.clone(), HSACache(CONFIG)
        feed(model, cache, ids, kinds, [LENGTH])
        cache.retype(0, 80, 90, 1)
        assert torch.equal(kinds, before) and cache.semantic_ids[0, 80:].tolist() == [1] * 10

    def test_retyped_keys_are_seen_with_their_new_type(self):
        model, ids, kinds = build("llama", num_hidden_layers=1), tokens(1), types(1)
        cache = HSACache(CONFIG, max_waiting=4)
        feed(model, cache, ids, kinds, [80])
        changed = kinds.clone()
        changed[0, 80:] = 2
        changed[0, 76:80] = torch.tensor([0, 0, 1, 1])
        cache.retype(0, 76, 78, 0)
        cache.retype(0, 78, 80, 1)
        close(feed(model, cache, ids, changed, [1] * 10), whole(model, ids, changed)[:, 80:])

    def test_all_types_given_again_change_those_seen(self):
        model, ids, kinds = build("llama", num_hidden_layers=1), tokens(2), types(2)
        cache = HSACache(CONFIG, evict=False)
        feed(model, cache, ids, kinds, [80])
        kinds = types(seed=9)
        with torch.no_grad():
            last = model(input_ids=ids[:, 80:], semantic_ids=kinds, past_key_values=cache).logits
        close(last, whole(model, ids, kinds)[:, 80:])

    def test_a_key_that_is_gone_does_not_come_back(self):
        model, ids = build(), tokens(1)
        cache = HSACache(CONFIG, max_waiting=1)
        feed(model, cache, ids, torch.full_like(ids, 2), [80])
        cache.retype(0, 0, 60, 2)
        with pytest.raises(ValueError, match="Tokens 0 to 60 of row 0 cannot become LANDMARK any more"):
            cache.retype(0, 0, 60, 1)


class TestBadInput:
    def test_missing_types(self):
        model, ids, kinds = build(), tokens(), types()
        cache = HSACache(CONFIG)
        with pytest.raises(ValueError, match="semantic_ids are missing"):
            model(input_ids=ids, past_key_values=cache)
        feed(model, cache, ids, kinds, [60])
        with pytest.raises(ValueError, match="semantic_ids are missing"):
            model(input_ids=ids[:, 60:61], past_key_values=cache)
        close(feed(model, cache, ids, kinds, [30]), whole(model, ids, kinds)[:, 60:])

    @pytest.mark.parametrize("shape", [(2, 29), (2, 89), (2, 91), (1, 30)])
    def test_types_of_another_shape(self, shape):
        model, ids, kinds = build(), tokens(), types()
        cache = HSACache(CONFIG)
        feed(model, cache, ids, kinds, [60])
        with pytest.raises(ValueError, match=r"semantic_ids has shape .*\(batch, length\) = \(2, 90\), 60 of them"):
            model(input_ids=ids[:, 60:], semantic_ids=types(*shape), past_key_values=cache)

    def test_types_that_do_not_exist(self):
        with pytest.raises(ValueError, match="semantic_ids holds 3"):
            build()(input_ids=tokens(), semantic_ids=types() + 1, past_key_values=HSACache(CONFIG))

    def test_another_number_of_rows(self):
        model, ids, kinds = build(), tokens(), types()
        cache = HSACache(CONFIG)
        feed(model, cache, ids, kinds, [60])
        with pytest.raises(ValueError, match="holds 2 rows, but the input has 3"):
            model(input_ids=tokens(3, 1), semantic_ids=types(3, 1), past_key_values=cache)

    def test_a_mask_of_the_new_tokens_only(self):
        model, ids, kinds = build(), tokens(), types()
        cache = HSACache(CONFIG)
        feed(model, cache, ids, kinds, [60])
        with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 1\), but .* \(2, 61\), 60 cached"):
            model(
                input_ids=ids[:, 60:61],
                semantic_ids=kinds[:, 60:61],
                attention_mask=torch.ones(2, 1),
                past_key_values=cache,
            )

    def test_another_configuration(self):
        model, cache = build(), HSACache(HSAConfig(noise_window=6))
        with pytest.raises(ValueError, match="was made for .*6.*but the model attends with .*5"):
            model(input_ids=tokens(), semantic_ids=types(), past_key_values=cache)
        same_rules = HSACache(HSAConfig(noise_window=5, generated_type="NOISE", backend="dense"))
        model(input_ids=tokens(), semantic_ids=types(), past_key_values=same_rules)

    def test_another_model(self):
        cache = HSACache(CONFIG)
        feed(build(), cache, tokens(), types(), [60])
        with pytest.raises(ValueError, match="belongs to another model"):
            feed(build(num_hidden_layers=3), cache, tokens(), types(), [30])

    @pytest.mark.parametrize("options", [{"num_key_value_heads": 4}, {"hidden_size": 128}])
    def test_a_model_of_another_shape(self, options):
        cache = HSACache(CONFIG)
        feed(build(), cache, tokens(), types(), [60])
        with pytest.raises(ValueError, match="belongs to another model"):
            feed(build(**options), cache, tokens(), types(), [30])
        feed(build(), cache, tokens(), types(), [30])

    @pytest.mark.parametrize("batch, length", [(2, 0), (0, 5)])
    def test_nothing_to_read(self, batch, length):
        with pytest.raises(ValueError, match="There is nothing to read"):
            build()(
                input_ids=tokens(batch, length), semantic_ids=types(batch, length), past_key_values=HSACache(CONFIG)
            )

    def test_retyping_what_is_not_there(self):
        cache = HSACache(CONFIG)
        with pytest.raises(ValueError, match="has seen no token whose type could change"):
            cache.retype(0, 0, 5, 1)
        feed(build(), cache, tokens(), types(), [60])
        for kind in (7, "LOUD"):
            with pytest.raises(ValueError, match="Unknown semantic type"):
                cache.retype(0, 0, 5, kind)
        cache.retype(0, 0, 5, "KEY_EVENT")
        assert cache.semantic_ids[0, :5].tolist() == [1] * 5

    def test_a_linear_layer_that_read_before_a_failure(self):
        """Its state cannot be taken back, and does not show."""
        model, ids, kinds, cache = build("qwen3_5_text"), tokens(), types(), HSACache(CONFIG)
        feed(model, cache, ids, kinds, [60])
        fail(model, cache, ids, kinds)
        with pytest.raises(ValueError, match="failed half-way"):
            feed(model, cache, ids, kinds, [1])

    def test_a_model_without_hsa(self):
        with pytest.raises(ValueError, match=r"needs a model with HSA: call enable_hsa\(model\)"):
            tiny.build_model("llama")(input_ids=tokens(), past_key_values=HSACache(CONFIG))

    @pytest.mark.parametrize("packed", ["attention_mask", "document_ids"])
    def test_packed_rows(self, packed):
        documents = torch.ones_like(tokens())
        documents[:, 50:] = 2
        with pytest.raises(ValueError, match="packed row .* cannot be cached"):
            build()(input_ids=tokens(), semantic_ids=types(), past_key_values=HSACache(CONFIG), **{packed: documents})

    def test_linear_attention_goes_on_by_one_token(self):
        model, cache = build("qwen3_5_text"), HSACache(CONFIG)
        feed(model, cache, tokens(), types(), [60])
        with pytest.raises(ValueError, match="go on from a cache by one token at a time only; got 5"):
            feed(model, cache, tokens(), types(), [5])

    @pytest.mark.parametrize("max_waiting", [0, -1, 1.5, True])
    def test_arguments(self, max_waiting):
        with pytest.raises(ValueError, match="max_waiting = "):
            HSACache(CONFIG, max_waiting=max_waiting)
        with pytest.raises(TypeError, match="needs an HSAConfig, got dict"):
            HSACache({})
