"""`HSACache` with rules in turns: token by token gives what one full forward gives, and keys go when their turns are over."""

import pytest
import torch
from feeding import LENGTH, MODELS, SOFTMAX, build, close, tokens, types
from halves import half_long, rest_long
from hypothesis import given, settings
from hypothesis import strategies as st

from hsa_factory import HSAConfig, tiny
from hsa_factory.attention import AttentionPlan, LayerRules
from hsa_factory.models import HSACache
from hsa_factory.models.cache.key_table import Keys, find_visible


CONFIG = HSAConfig(noise_turns=0)
KEPT = ["qwen3", "gemma3_text", "gpt_oss", "qwen3_5_text", "qwen2_vl", "qwen3_vl"]  # of each kind of attention one
RULES = [
    {"noise_turns": 1},
    {"noise_turns": 0, "noise_window": 7, "noise_decay": 0.1},
    {"noise_turns": 2, "landmark_turns": 3, "global_window": 20},
    {"noise_turns": 1, "global_turns": 4, "landmark_turns": 0, "landmark_window": 0},
    {"noise_turns": 1, "hide": [("GLOBAL", "NOISE"), ("LANDMARK", "GLOBAL")]},
    {"landmark_turns": 0, "hide": [(0, 2), (1, 2), (2, 2)]},
    {"noise_turns": 0, "layers": [1]},
    {"noise_turns": 1, "backend": "reference"},
    {"noise_turns": 1, "landmark_turns": 2, "backend": "blockwise"},
]


def turns(batch=2, length=LENGTH, seed=2, longest=12):
    """Numbers that go up by 1 to 3 after a few tokens, in each row by itself, from any number on."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(batch):
        lengths = torch.randint(1, longest, (length,), generator=generator)
        steps = torch.randint(1, 4, (length,), generator=generator)
        rows.append((steps.cumsum(0) - 5).repeat_interleave(lengths)[:length])
    return torch.stack(rows).int()


@torch.no_grad()
def feed(model, cache, ids, kinds, numbers, sizes, mask=None):
    logits, start = [], cache.get_seq_length()
    for size in sizes:
        stop = start + size
        part = {} if mask is None else {"attention_mask": mask[:, :stop]}
        pieces = {name: all_[:, start:stop] for name, all_ in (("semantic_ids", kinds), ("turn_ids", numbers))}
        logits.append(model(input_ids=ids[:, start:stop], past_key_values=cache, **pieces, **part).logits)
        start = stop
    return torch.cat(logits, dim=1)


@torch.no_grad()
def whole(model, ids, kinds, numbers):
    return model(input_ids=ids, semantic_ids=kinds, turn_ids=numbers, use_cache=False).logits


class TestPromise5:
    @pytest.mark.parametrize("model_type", rest_long(MODELS, KEPT))
    def test_token_by_token(self, model_type):
        """Rows in different turns, and many of them."""
        model, ids, kinds, numbers = build(model_type, CONFIG), tokens(), types(), turns()
        cache = HSACache(CONFIG, max_waiting=8)
        close(feed(model, cache, ids, kinds, numbers, [30] + [1] * 60), whole(model, ids, kinds, numbers))
        report = cache.report()
        assert report.seen_tokens == LENGTH and report.kept_tokens < 0.8 * LENGTH
        assert torch.equal(cache.turn_ids, numbers.long())

    @pytest.mark.parametrize(
        ("model_type", "options", "sizes"),
        half_long(["qwen3", "mistral"], RULES, [[7] * 12 + [6], [1, 40, 2, 30, 17]]),
    )
    def test_rules_and_pieces_of_any_size(self, model_type, options, sizes):
        """Mistral's own sliding window cuts what turns let see."""
        config = HSAConfig(**options)
        model, ids, kinds, numbers = build(model_type, config), tokens(), types(), turns()
        cache = HSACache(config, max_waiting=4)
        close(feed(model, cache, ids, kinds, numbers, sizes), whole(model, ids, kinds, numbers))
        if not options.get("layers"):
            assert cache.report().kept_tokens < LENGTH

    @pytest.mark.parametrize("padding", [(0, 30), (10, 40), (60, 90), (47, 77)], ids=str)
    def test_padding(self, padding):
        """Whatever number stands there."""
        model, ids, kinds, numbers = build("llama", CONFIG), tokens(), types(), turns()
        mask = torch.ones_like(ids)
        mask[0, slice(*padding)] = 0
        numbers[mask == 0] = torch.randint(-9, 99, (30,), dtype=torch.int32)
        cache = HSACache(CONFIG, max_waiting=8)
        actual, real = feed(model, cache, ids, kinds, numbers, [40] + [1] * 50, mask), mask[0].bool()
        close(actual[1], whole(model, ids[1:], kinds[1:], numbers[1:])[0])
        close(actual[0][real], whole(model, *(all_[:1][real[None]][None] for all_ in (ids, kinds, numbers)))[0])
        assert cache.turn_ids[0, slice(*padding)].unique().tolist() == [0]

    def test_all_numbers_or_those_of_the_new_tokens(self):
        model, ids, kinds, numbers = build("llama", CONFIG), tokens(), types(), turns()
        cache = HSACache(CONFIG, max_waiting=8)
        feed(model, cache, ids, kinds, numbers, [60])
        with torch.no_grad():
            last = model(input_ids=ids[:, 60:], semantic_ids=kinds[:, 60:], turn_ids=numbers, past_key_values=cache)
        close(last.logits, whole(model, ids, kinds, numbers)[:, 60:])

    def test_rows_reordered_and_repeated(self):
        model, ids, kinds, numbers = build("llama", CONFIG), tokens(3), types(3), turns(3)
        cache, order = HSACache(CONFIG, max_waiting=8), torch.tensor([2, 0, 0]).repeat_interleave(2)
        feed(model, cache, ids, kinds, numbers, [50])
        cache.reorder_cache(torch.tensor([2, 0, 0]))
        cache.batch_repeat_interleave(2)
        rows = ids[order], kinds[order], numbers[order]
        close(feed(model, cache, *rows, [1] * 20), whole(model, *rows)[:, 50:70])

    def test_crop(self):
        model, ids, kinds, numbers = build("llama", CONFIG), tokens(), types(), turns()
        cache = HSACache(CONFIG, evict=False)
        feed(model, cache, ids, kinds, numbers, [60, 20])
        cache.crop(65)
        close(feed(model, cache, ids, kinds, numbers, [25]), whole(model, ids, kinds, numbers)[:, 65:])


class TestWhatGoes:
    @settings(deadline=None, max_examples=60)
    @given(st.data())
    def test_what_goes_no_later_query_would_see(self, data):
        limits = st.one_of(st.none(), st.integers(0, 4))
        names = [f"{kind}_{limit}" for kind in ("noise", "landmark", "global") for limit in ("window", "turns")]
        pair = st.tuples(st.integers(0, 2), st.integers(0, 2))
        config = HSAConfig(**{name: data.draw(limits) for name in names}, hide=data.draw(st.lists(pair, max_size=9)))
        rules = LayerRules.of(config, data.draw(st.one_of(st.none(), st.integers(1, 9))))
        length, number = data.draw(st.integers(2, 30)), data.draw(st.integers(1, 20))
        number = min(number, length - 1)
        kinds = torch.tensor([data.draw(st.lists(st.integers(0, 2), min_size=length, max_size=length))])
        steps = st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=length, max_size=length)
        numbers = torch.tensor([data.draw(steps)]).cumsum(1)
        held = Keys(
            torch.arange(number)[None], kinds[:, :number], torch.ones(1, number, dtype=torch.bool), numbers[:, :number]
        )
        plan = AttentionPlan.from_inputs(kinds, turn_ids=numbers)
        seen = plan.dense_bias(torch.float32, rules)[0, 0, number:, :number].isfinite()
        visible = find_visible(held, torch.tensor([number]), rules, numbers[:, number - 1])
        assert not (seen.any(dim=0) & ~visible[0]).any()
        if not config.hide:
            visible = find_visible(held, torch.tensor([number]), rules, numbers[:, number])
            assert visible[0].tolist() == seen[0].tolist()

    def test_with_the_next_turn_and_not_before(self):
        """A reply's end is known only by what follows: the key may be needed by a reply that goes on."""
        model, ids = build("llama", CONFIG), tokens(1, 60)
        kinds, numbers = torch.full_like(ids, 2), torch.arange(3).repeat_interleave(20)[None]
        cache = HSACache(CONFIG, max_waiting=1)
        feed(model, cache, ids, kinds, numbers, [20])
        assert cache.report().kept_tokens == 20
        feed(model, cache, ids, kinds, numbers, [1])
        assert cache.report().kept_tokens == 1
        feed(model, cache, ids, kinds, numbers, [19, 20])
        assert cache.report().kept_tokens == 20

    def test_few_wait(self):
        model, ids = build("llama", CONFIG), tokens(1, 600)
        kinds, numbers = torch.full_like(ids, 2), turns(1, 600)
        cache = HSACache(CONFIG, max_waiting=16)
        feed(model, cache, ids, kinds, numbers, [50])
        for place in range(50, 600):
            feed(model, cache, ids, kinds, numbers, [1])
            assert len(cache.tables[cache.layer_rules[0]]) < 16 + int((numbers == numbers[0, place]).sum())

    def test_retyping(self):
        """What is there gets its new type; what is gone does not come back, unless it would not be seen either."""
        config = HSAConfig(noise_turns=0, landmark_turns=1)
        model, ids = build("llama", config, num_hidden_layers=1), tokens(1, 60)
        kinds, numbers = torch.full_like(ids, 2), torch.arange(3).repeat_interleave(20)[None]
        cache = HSACache(config, max_waiting=1)
        feed(model, cache, ids, kinds, numbers, [20])
        cache.retype(0, 10, 20, "LANDMARK")
        kinds[0, 10:20] = 1
        close(feed(model, cache, ids, kinds, numbers, [10]), whole(model, ids, kinds, numbers)[:, 20:30])
        with pytest.raises(ValueError, match="Tokens 5 to 10 of row 0 cannot become LANDMARK"):
            cache.retype(0, 5, 10, 1)
        close(feed(model, cache, ids, kinds, numbers, [30]), whole(model, ids, kinds, numbers)[:, 30:])
        cache.retype(0, 5, 20, 1)


class TestBadInput:
    def test_missing(self):
        config = HSAConfig(noise_turns=0, landmark_turns=2)
        model, ids, kinds = build("llama", config), tokens(), types()
        for inputs in ({"past_key_values": HSACache(config)}, {"use_cache": False}):
            with pytest.raises(
                ValueError, match=r"landmark_turns and noise_turns need turn_ids.*collator.*encode_conv"
            ):
                model(input_ids=ids, semantic_ids=kinds, **inputs)
        cache = HSACache(config)
        feed(model, cache, ids, kinds, turns(), [60])
        with pytest.raises(ValueError, match="need turn_ids"):
            model(input_ids=ids[:, 60:], semantic_ids=kinds[:, 60:], past_key_values=cache)
        close(feed(model, cache, ids, kinds, turns(), [30]), whole(model, ids, kinds, turns())[:, 60:])

    @pytest.mark.parametrize(
        ("wrong", "problem"),
        [
            (
                turns(2, 29),
                r"turn_ids has shape \(2, 29\), but the input has \(batch, length\) = \(2, 90\), 60 of them",
            ),
            (turns(1, 30), r"turn_ids has shape \(1, 30\)"),
            (turns()[:, 60:].float(), "whole numbers, got torch.float32"),
            (turns()[:, 60:].bool(), "whole numbers, got torch.bool"),
            ([1, 2], "shape list"),
            (
                turns()[:, 60:].flip(1),
                r"turn_ids fall within a document: row 0 has \d+ at place 60 and \d+ at place 6\d\. ",
            ),
            (
                turns()[:, 60:] - 20,
                r"turn_ids fall within a document: row 0 has \d+ at place 59 and -?\d+ at place 60\. ",
            ),
            (turns()[:, 60:].long() + 2**31, "holds 2147483\\d+; a turn's number fits 32 bits"),
            (turns() + 1, r"turn_ids says -1 at place 0 of row 0, but this HSACache has read that token in turn -4"),
        ],
    )
    def test_wrong(self, wrong, problem):
        model, ids, kinds, numbers = build("llama", CONFIG), tokens(), types(), turns()
        numbers[:, 0] = -4
        cache = HSACache(CONFIG)
        feed(model, cache, ids, kinds, numbers, [60])
        with pytest.raises(ValueError, match=problem):
            model(input_ids=ids[:, 60:], semantic_ids=kinds[:, 60:], turn_ids=wrong, past_key_values=cache)
        close(feed(model, cache, ids, kinds, numbers, [30]), whole(model, ids, kinds, numbers)[:, 60:])

    def test_they_are_not_read_where_the_rules_have_none(self):
        config = HSAConfig()
        model, ids, kinds = build("llama", config), tokens(), types()
        cache = HSACache(config)
        feed(model, cache, ids, kinds, turns(), [LENGTH])
        assert cache.turn_ids is None


@pytest.mark.parametrize("model_type", tiny.TEXT_MODELS)
def test_a_forward_without_a_cache_pads_as_it_should(model_type):
    model, ids, kinds, numbers = build(model_type, CONFIG), tokens(), types(), turns()
    left = [torch.nn.functional.pad(all_, (9, 0)) for all_ in (ids, kinds, numbers)]
    mask = torch.nn.functional.pad(torch.ones_like(ids), (9, 0))
    if model_type in SOFTMAX:
        with torch.no_grad():
            place = (mask.cumsum(1) - 1).clamp(min=0)
            actual = model(
                input_ids=left[0], semantic_ids=left[1], turn_ids=left[2], attention_mask=mask, position_ids=place
            ).logits
        close(actual[:, 9:], whole(model, ids, kinds, numbers))
