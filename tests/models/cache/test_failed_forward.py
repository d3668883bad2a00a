"""A forward that is refused, fails or is interrupted changes nothing in a cache, its ends or its tagger."""

from itertools import count

import pytest
import torch
from feeding import CONFIG, SOFTMAX, build, close, feed, runs, tokens, types, whole

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
    @pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["error", "interrupt"])
    @pytest.mark.parametrize("model_type", [name for name in SOFTMAX if name not in ("phi3",)])
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
    @pytest.mark.parametrize("rows", [1, 3])
    @pytest.mark.parametrize("reason", REFUSED)
    @pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt_oss"])
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
