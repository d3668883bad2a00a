"""A forward that is refused, fails or is interrupted changes nothing in a cache, its ends or its tagger."""

import copy
import weakref
from itertools import count

import pytest
import torch
from feeding import CONFIG, SOFTMAX, build, close, feed, runs, tokens, types, whole
from halves import half_long

from hsa_factory import HSAConfig, tiny
from hsa_factory.models import ConstantTagger, HSACache, make_tagger
from hsa_factory.models.cache.tagger import Settled


def break_off(model, forward, error=RuntimeError("out of memory"), layer=1):
    """Run a forward that breaks off before one of the layers; with 0, before any has read."""
    attention = [module for module in model.modules() if hasattr(module, "hsa_state") and hasattr(module, "q_proj")]
    handle = attention[layer].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        forward()
    handle.remove()


class TestFailed:
    @pytest.mark.parametrize(
        ("model_type", "error"),
        half_long(
            [name for name in SOFTMAX if name not in ("phi3",)], [RuntimeError("no memory"), KeyboardInterrupt()]
        ),
    )
    def test_again_and_on(self, model_type, error):
        """Every forward fails once and is run again; keys go in between."""
        model, ids, kinds = build(model_type), tokens(), runs()
        cache, logits = HSACache(CONFIG, max_waiting=4), []
        for size in (30, 1, 1, 20, *[1] * 38):
            seen = cache.get_seq_length()
            before = cache.report()
            break_off(model, lambda size=size: feed(model, cache, ids, kinds, [size]), error)
            assert cache.get_seq_length() == seen
            logits.append(feed(model, cache, ids, kinds, [size]))
            assert cache.report().bytes >= before.bytes * 0.2
        close(torch.cat(logits, dim=1), whole(model, ids, kinds))
        assert cache.report().kept_tokens < 0.8 * ids.shape[1]

    def test_with_other_tokens_after_it(self):
        model, ids, kinds = build(), tokens(), types()
        cache = HSACache(CONFIG, max_waiting=4)
        feed(model, cache, ids, kinds, [60])
        break_off(model, lambda: feed(model, cache, tokens(seed=5), types(seed=5), [25]))
        close(feed(model, cache, ids, kinds, [1] * 30), whole(model, ids, kinds)[:, 60:])

    def test_gradients(self):
        model, ids, kinds = build(), tokens(), types()
        cache = HSACache(CONFIG, max_waiting=4)

        def forward(start, stop):
            inputs = {"input_ids": ids[:, start:stop], "semantic_ids": kinds[:, start:stop]}
            return model(**inputs, past_key_values=cache).logits

        forward(0, 60)
        break_off(model, lambda: forward(60, 90))
        forward(60, 90).logsumexp(-1).sum().backward()
        actual = model.model.layers[0].self_attn.k_proj.weight.grad.clone()
        model.zero_grad()
        logits = model(input_ids=ids, semantic_ids=kinds, use_cache=False).logits
        logits[:, 60:].logsumexp(-1).sum().backward()
        close(actual, model.model.layers[0].self_attn.k_proj.weight.grad, 1e-4)

    @pytest.mark.parametrize("layer", [0, 1])
    def test_more_rows(self, layer):
        model, ids, kinds = build(), tokens(1), types(1)
        cache = HSACache(CONFIG, max_waiting=4)
        feed(model, cache, ids, kinds, [60])
        rows = [ids.repeat(3, 1), kinds.repeat(3, 1)]
        break_off(model, lambda: feed(model, cache, *rows, [1]), layer=layer)
        assert len(cache.semantic_ids) == 1
        close(feed(model, cache, ids, kinds, [10]), whole(model, ids, kinds)[:, 60:70])
        close(feed(model, cache, *rows, [20]), whole(model, *rows)[:, 70:])


IMPOSSIBLE = {"semantic_ids": lambda kinds: 0 * kinds}  # all GLOBAL, though NOISE is gone
REFUSED = {
    "types that do not exist": {"semantic_ids": lambda kinds: kinds[:, -1:] + 3},
    "types of another length": {"semantic_ids": lambda kinds: kinds[:, -2:]},
    "no types": {"semantic_ids": lambda kinds: None},
    "a mask of another length": {"attention_mask": lambda kinds: torch.ones_like(kinds[:, -1:])},
    "types that can no longer hold": IMPOSSIBLE,
}


class TestRefused:
    @pytest.mark.parametrize(
        ("model_type", "reason", "rows"), half_long(["llama", "gemma3_text", "gpt_oss"], list(REFUSED), [1, 3])
    )
    def test_it_goes_on_as_if_never_asked(self, model_type, reason, rows):
        model, ids = build(model_type), tokens(1)
        kinds = torch.where(torch.arange(90) < 20, 2, types(1))
        cache = HSACache(CONFIG, max_waiting=4)
        feed(model, cache, ids, kinds, [60])
        given = {"semantic_ids": lambda kinds: kinds[:, -1:]} | REFUSED[reason]
        inputs = {name: value(kinds[:, :61].repeat(rows, 1)) for name, value in given.items()}
        with pytest.raises(ValueError):
            model(input_ids=ids[:, 60:61].repeat(rows, 1), past_key_values=cache, **inputs)
        assert cache.semantic_ids.tolist() == kinds[:, :60].tolist()
        close(feed(model, cache, ids, kinds, [1] * 30), whole(model, ids, kinds)[:, 60:])

    @pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt_oss"])
    def test_generate_with_types_that_can_no_longer_hold(self, model_type):
        model, ids = build(model_type), tokens(1, 40)
        kinds = torch.where(torch.arange(40) < 20, 2, types(1, 40))
        wrong = kinds.clone()
        wrong[0, [0, 30]] = 1 - wrong[0, [0, 30]].clamp(max=1)  # the second alone would be possible
        results = []
        for is_asked in (False, True):
            cache = HSACache(CONFIG, max_waiting=4)
            feed(model, cache, ids, kinds, [39])
            options = {"past_key_values": cache, "do_sample": False, "max_new_tokens": 12, "output_logits": True}
            options |= {"return_dict_in_generate": True}
            if is_asked:
                with pytest.raises(ValueError, match="cannot become"):
                    model.generate(ids, semantic_ids=wrong, **options)
                assert cache.semantic_ids.tolist() == kinds[:, :39].tolist()
            results.append(torch.stack(model.generate(ids, semantic_ids=kinds, **options).logits))
        assert torch.equal(*results)

    def test_a_cache_that_was_refused_belongs_to_no_model(self):
        cache = HSACache(CONFIG)
        with pytest.raises(ValueError, match="semantic_ids are missing"):
            build()(input_ids=tokens(), past_key_values=cache)
        model, ids, kinds = build("qwen3", num_hidden_layers=3), tokens(), types()
        close(feed(model, cache, ids, kinds, [60, 30]), whole(model, ids, kinds))


class Forgetful:
    """A tagger of somebody's own that cannot take tokens back."""

    def __init__(self):
        self.numbers = count()

    def tag(self, token_ids):
        return torch.full(token_ids.shape, next(self.numbers) % 3)

    def settled(self):
        return []

    def unsettled(self):
        return None

    def change(self, change):
        pass


RULES = [
    {"tag": "think", "type": "NOISE"},
    {"contains": "found", "type": "LANDMARK"},
]


class TestTagger:
    TEXT = "<think>Where is it? <b>There</b>.</think> The key was found."

    def seen(self, model, tokenizer, fails):
        """Feed a prompt and a text written by rules; return all logits and the types."""
        ids = tokenizer.encode("Find the key." + self.TEXT, add_special_tokens=False)
        ids = torch.tensor([[*ids, tokenizer.eos_token_id, tokenizer.eos_token_id]])
        prompt = len(tokenizer.encode("Find the key.", add_special_tokens=False))
        cache, logits = HSACache(model.model.hsa_state.config, max_waiting=2), []
        tagger = make_tagger(model.model.hsa_state.config, tokenizer)
        cache.bind(model.config, model.model.hsa_state.layer_rules, model.model.hsa_state.config)
        cache.expect(torch.zeros(1, prompt, dtype=torch.long), tagger)
        cuts = [0, prompt, prompt + 1, prompt + 4, *range(prompt + 5, ids.shape[1] + 1)]
        with torch.no_grad():
            for start, stop in zip(cuts, cuts[1:]):
                forward = lambda start=start, stop=stop: model(input_ids=ids[:, start:stop], past_key_values=cache)
                for _ in range(fails):
                    break_off(model, forward)
                logits.append(forward().logits)
        return torch.cat(logits, dim=1), cache.semantic_ids

    def test_rules(self, tiny_tokenizer):
        config = HSAConfig(noise_window=5, labels=RULES)
        model = build("llama", config, tokenizer=tiny_tokenizer)
        expected, kinds = self.seen(model, tiny_tokenizer, 0)
        actual, others = self.seen(model, tiny_tokenizer, 2)
        assert set(kinds[0].tolist()) == {0, 1, 2}
        assert torch.equal(kinds, others)
        close(actual, expected)

    def test_one_that_cannot_go_back_ends_the_cache(self):
        model, ids, cache = build(), tokens(1), HSACache(CONFIG, Forgetful())
        feed_types = types(1)
        feed(model, cache, ids, feed_types, [60])
        break_off(model, lambda: model(input_ids=ids[:, 60:61], past_key_values=cache))
        with pytest.raises(ValueError, match="failed half-way"):
            model(input_ids=ids[:, 60:61], past_key_values=cache)

    def test_refused_before_the_tagger_is_asked(self):
        model, ids, cache = build(), tokens(1), HSACache(CONFIG, Forgetful())
        feed(model, cache, ids, types(1), [60])
        with pytest.raises(ValueError, match="attention_mask has shape"):
            model(input_ids=ids[:, 60:61], attention_mask=torch.ones(1, 1), past_key_values=cache)
        with torch.no_grad():
            model(input_ids=ids[:, 60:61], past_key_values=cache)
        assert cache.get_seq_length() == 61

    def test_changes_of_seen_types_are_taken_back(self):
        class Late(ConstantTagger):
            def settled(self):
                return [Settled(0, 0, 1, 1)]

        model, ids = build(), tokens(1)
        cache = HSACache(CONFIG, evict=False)
        feed(model, cache, ids, types(1), [60])
        cache.expect(cache.semantic_ids, Late(2))
        kinds = cache.semantic_ids
        with torch.no_grad():
            model(input_ids=ids[:, 60:61], past_key_values=cache)
            break_off(model, lambda: model(input_ids=ids[:, 61:62], past_key_values=cache))
            assert cache.semantic_ids.tolist() == [[*kinds[0].tolist(), 2]]
            model(input_ids=ids[:, 61:62], past_key_values=cache)
        assert cache.semantic_ids.tolist() == [[*kinds[0].tolist(), 1, 2]]


def test_rows_do_not_end_by_a_forward_that_failed():
    model, ids, kinds = build(), tokens(), types()
    ids[ids == 7] = 8
    cache = HSACache(CONFIG)
    feed(model, cache, ids, kinds, [60])
    cache.expect(cache.semantic_ids, ConstantTagger(2), end_ids=[7])
    end = torch.tensor([[7], [3]])
    with torch.no_grad():
        break_off(model, lambda: model(input_ids=end, past_key_values=cache))
        assert cache.ended_rows is None
        model(input_ids=end, past_key_values=cache)
    assert cache.ended_rows.tolist() == [True, False]


@pytest.mark.parametrize("model_type", sorted(set(tiny.MODEL_TYPES) - set(SOFTMAX)))
def test_a_linear_layer_that_has_read_cannot_go_back(model_type):
    model, ids, kinds = build(model_type), tokens(), types()
    cache = HSACache(CONFIG)
    feed(model, cache, ids, kinds, [60])
    break_off(model, lambda: feed(model, cache, ids, kinds, [1]), layer=0)
    with pytest.raises(ValueError, match="failed half-way"):
        feed(model, cache, ids, kinds, [1])


class TestAfterwards:
    """What follows a forward that an interrupt left open, or one that failed late, is not undone later."""

    def interrupted(self, model, rows=1):
        ids, kinds = tokens(rows), types(rows)
        cache = HSACache(CONFIG, evict=False)
        feed(model, cache, ids, kinds, [60])
        break_off(model, lambda: feed(model, cache, ids, kinds, [5]), KeyboardInterrupt())
        return ids, kinds, cache

    def test_retyping(self):
        model = build("llama", num_hidden_layers=2)
        ids, kinds, cache = self.interrupted(model)
        cache.retype(0, 0, 60, 0)
        kinds = kinds.clone()
        feed(model, cache, ids, kinds, [1])
        assert cache.semantic_ids[0, :60].sum() == 0

    def test_cropping_and_rows(self):
        model = build()
        ids, kinds, cache = self.interrupted(model, 2)
        cache.crop(50)
        close(feed(model, cache, ids, kinds, [10]), whole(model, ids, kinds)[:, 50:60])
        ids, kinds, cache = self.interrupted(model, 2)
        cache.reorder_cache(torch.tensor([1, 1]))
        ids, kinds = ids[[1, 1]], kinds[[1, 1]]
        close(feed(model, cache, ids, kinds, [30]), whole(model, ids, kinds)[:, 60:])

    def test_generating(self):
        model = build("llama", HSAConfig(noise_window=5, generated_type="LANDMARK"))
        ids, kinds = tokens(1, 30), types(1, 30)
        cache = HSACache(model.model.hsa_state.config)
        options = {"do_sample": False, "max_new_tokens": 9, "pad_token_id": 0}
        break_off(model, lambda: model.generate(ids, semantic_ids=kinds, past_key_values=cache), KeyboardInterrupt())
        text = model.generate(ids, semantic_ids=kinds, past_key_values=cache, **options)
        assert torch.equal(text, model.generate(ids, semantic_ids=kinds, **options))
        assert cache.semantic_ids[0, 30:].unique().tolist() == [1]

    def test_an_error_in_the_head(self):
        model, ids, kinds, cache = build(), tokens(), types(), HSACache(CONFIG, max_waiting=4)
        feed(model, cache, ids, kinds, [60])
        handle = model.lm_head.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("memory")))
        with pytest.raises(RuntimeError, match="memory"):
            feed(model, cache, ids, kinds, [10])
        handle.remove()
        assert cache.get_seq_length() == 60
        close(feed(model, cache, ids, kinds, [10, *[1] * 20]), whole(model, ids, kinds)[:, 60:])

    def test_an_error_at_the_end_itself(self, monkeypatch):
        """Some layers have let keys go by then: nothing can be told of such a cache any more."""
        model, ids, kinds, cache = build(), tokens(), types(), HSACache(CONFIG, max_waiting=1)
        feed(model, cache, ids, kinds, [60])
        with monkeypatch.context() as patch:
            patch.setattr(cache.layers[1], "commit", lambda: (_ for _ in ()).throw(RuntimeError("memory")))
            with pytest.raises(RuntimeError, match="memory"):
                feed(model, cache, ids, kinds, [10])
        with pytest.raises(ValueError, match="failed half-way"):
            feed(model, cache, ids, kinds, [1])
        cache.reset()
        close(feed(model, cache, ids, kinds, [90]), whole(model, ids, kinds))

    def test_layers_that_did_not_get_the_cache(self):
        model, cache = build().train(), HSACache(CONFIG)
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        with pytest.raises(ValueError, match="did not get the HSACache.*gradient checkpointing drops it"):
            model(input_ids=tokens(), semantic_ids=types(), past_key_values=cache, use_cache=True)
        assert cache.get_seq_length() == 0

    def test_a_refused_generation_forgets_nothing(self):
        model, ids, kinds = build(), tokens(), types()
        cache = HSACache(CONFIG)
        feed(model, cache, ids, kinds, [60])
        cache.expect(cache.semantic_ids, ConstantTagger(2), end_ids=[7])
        with torch.no_grad():
            model(input_ids=torch.tensor([[7], [3]]), past_key_values=cache)
        ended, seen = cache.ended_rows, cache.semantic_ids
        whole_ids = torch.cat([ids[:, :60], torch.tensor([[7, 0], [3, 4]])], dim=1)
        wrong = torch.nn.functional.pad(seen, (0, 1)).clone()
        with pytest.raises(ValueError, match="not used by the model"):
            model.generate(whole_ids, semantic_ids=wrong, past_key_values=cache, max_new_token=3)
        assert torch.equal(cache.ended_rows, ended) and torch.equal(cache.semantic_ids, seen)

    def test_a_refused_forward_with_more_rows_and_linear_layers(self):
        model, ids, kinds = build("qwen3_5_text"), tokens(1), types(1)
        cache = HSACache(CONFIG)
        feed(model, cache, ids, kinds, [60])
        with pytest.raises(ValueError, match="semantic_ids holds"):
            model(
                input_ids=ids[:, 60:61].repeat(2, 1),
                semantic_ids=kinds[:, 60:61].repeat(2, 1) + 3,
                past_key_values=cache,
            )
        close(feed(model, cache, ids, kinds, [1] * 30), whole(model, ids, kinds)[:, 60:])


class TestMemory:
    def test_no_buffer_outlives_the_layer_that_outgrew_it(self):
        model, ids, kinds = build("llama", num_hidden_layers=6), tokens(1), types(1)
        cache = HSACache(CONFIG, evict=False, max_waiting=8)
        feed(model, cache, ids, kinds, [60])
        former = [weakref.ref(buffer.untyped_storage()) for layer in cache.layers for buffer in layer._buffers]
        assert all(one() is not None for one in former)
        alive = []
        model.model.norm.register_forward_pre_hook(lambda *_: alive.append(sum(one() is not None for one in former)))
        feed(model, cache, ids, kinds, [20])
        assert alive == [0]

    def test_a_failed_forward_keeps_no_graph(self):
        model, ids, kinds = build(), tokens(), types()
        cache = HSACache(CONFIG)
        feed(model, cache, ids, kinds, [60])
        forward = lambda: model(input_ids=ids[:, 60:], semantic_ids=kinds[:, 60:], past_key_values=cache)
        break_off(model, forward)
        assert not any(buffer.requires_grad for layer in cache.layers for buffer in layer._buffers)

    def test_the_callers_types_are_copied(self):
        model, ids, kinds, cache = build(), tokens(), types(), HSACache(CONFIG)
        given = kinds[:, :60].clone()
        with torch.no_grad():
            model(input_ids=ids[:, :60], semantic_ids=given, past_key_values=cache)
        given.zero_()
        close(feed(model, cache, ids, kinds, [30]), whole(model, ids, kinds)[:, 60:])


@pytest.mark.long
def test_compiled():
    """Prefill, then token by token: the plan is made outside of what is compiled. Types are given, then expected."""
    model, ids, kinds = build("qwen3"), tokens(1, 40), types(1, 40)
    expected = whole(model, ids, kinds)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    for typed in (True, False):
        cache, logits = HSACache(CONFIG, max_waiting=4), []
        if not typed:
            cache.bind(model.config, model.model.hsa_state.layer_rules, CONFIG)
            cache.expect(kinds, ConstantTagger(2))
        for start, stop in [(0, 25), *((number, number + 1) for number in range(25, 40))]:
            inputs = {"semantic_ids": kinds[:, start:stop]} if typed else {}
            with torch.no_grad():
                logits.append(compiled(input_ids=ids[:, start:stop], past_key_values=cache, **inputs).logits)
        close(torch.cat(logits, dim=1), expected)


def test_a_copy_of_a_cache_that_an_interrupt_left_open():
    model, ids, kinds = build(), tokens(), types()
    cache = HSACache(CONFIG, max_waiting=4)
    feed(model, cache, ids, kinds, [60])
    break_off(model, lambda: feed(model, cache, ids, kinds, [5]), KeyboardInterrupt())
    twin = copy.deepcopy(cache)
    for one in (twin, cache):
        close(feed(model, one, ids, kinds, [1] * 30), whole(model, ids, kinds)[:, 60:])
