"""One name each for what versions of transformers call differently."""

import pytest
import torch
from helpers import enabled, tokens, types

from hsa_factory import HSAConfig
from hsa_factory.models import HSACache
from hsa_factory.models.transformers_versions import CACHE, CROP_BY_NUMBER, find_cache, is_checkpointing, name_cache


OLD = "past_key_values"
needs_both = pytest.mark.skipif(CACHE == OLD, reason="this transformers has one name for a cache")


class TestCache:
    @pytest.mark.parametrize("name", sorted({OLD, CACHE}))
    @pytest.mark.filterwarnings("ignore:`past_key_values`.*deprecated:FutureWarning")
    def test_under_each_name(self, name):
        model, ids, kinds = enabled("llama", HSAConfig(noise_window=3)), tokens(1, 20), types(1, 20)
        expected = model.generate(ids, semantic_ids=kinds, max_new_tokens=8, do_sample=False)
        caches = [HSACache(HSAConfig(noise_window=3)) for _ in range(2)]
        options = {"semantic_ids": kinds, "max_new_tokens": 8, "do_sample": False}
        assert torch.equal(model.generate(ids, **{name: caches[0]}, **options), expected)
        with torch.no_grad():
            logits = model(input_ids=ids, semantic_ids=kinds, **{name: caches[1]}).logits
        assert logits[0, -1].argmax() == expected[0, 20]
        assert caches[1].get_seq_length() == 20 and caches[0].get_seq_length() == 27

    @pytest.mark.filterwarnings("error")
    def test_generating_warns_of_nothing(self):
        enabled("llama").generate(tokens(1, 20), semantic_ids=types(1, 20), max_new_tokens=2, do_sample=False)

    @needs_both
    def test_two_at_once(self):
        first, second = object(), object()
        with pytest.raises(ValueError, match="two names of the same argument: pass cache only"):
            name_cache({OLD: first, CACHE: second})
        given = {OLD: first, CACHE: first}
        name_cache(given)
        assert given == {CACHE: first}

    @needs_both
    def test_an_old_name_without_a_cache(self):
        given = {OLD: None}
        name_cache(given)
        assert given == {} and find_cache(given) is None
        assert find_cache({OLD: "old"}) == "old" and find_cache({CACHE: "new"}) == "new"

    def test_cropping_to_nothing(self):
        model, cache = enabled("llama"), HSACache(HSAConfig(), evict=False)
        model(input_ids=tokens(1, 20), semantic_ids=types(1, 20), **{CACHE: cache})
        cache.crop(-5)
        assert cache.get_seq_length() == 15
        cache.crop(0)
        assert cache.get_seq_length() == (15 if CROP_BY_NUMBER else 0)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_checkpointing():
    model = enabled("llama")
    assert is_checkpointing(model) is False
    model.gradient_checkpointing_enable()
    assert is_checkpointing(model) is True
