"""`model.generate(…, turn_ids=…)`: keys go when their turns are over, and the text is that of full forwards."""

import pytest
import torch
from conversations import conversation, tokens, types, with_media_types
from halves import rest_long

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.models import HSACache
from hsa_factory.models.generation import prefill


CONFIG = HSAConfig(noise_turns=0, landmark_turns=2, generated_type="NOISE")
GREEDY = {"do_sample": False, "pad_token_id": 0}
LENGTH = 60


def build(model_type="llama", config=CONFIG, **overrides):
    return enable_hsa(tiny.build_model(model_type, **overrides), config)


def turns(batch=2, length=LENGTH, seed=2):
    """Up to 2 more every token or so, in each row by itself."""
    steps = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed))
    return ((steps > 0.9).long() + (steps > 0.97)).cumsum(1)


def go_on(numbers, new):
    return torch.cat([numbers, numbers[:, -1:].expand(-1, new)], dim=1)


@torch.no_grad()
def check_greedy(model, output, kinds, numbers, start=LENGTH, **inputs):
    """Each generated token must be the likeliest one of a single full forward."""
    new = output.shape[1] - kinds.shape[1]
    kinds, numbers = torch.nn.functional.pad(kinds, (0, new), value=2), go_on(numbers, new)
    if "attention_mask" in inputs:
        inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, new), value=1)
    output_logits = model(input_ids=output, semantic_ids=kinds, turn_ids=numbers, use_cache=False, **inputs).logits
    logits = output_logits[:, start - 1 : -1]
    chosen = logits.gather(-1, output[:, start:, None])[..., 0]
    assert (logits.amax(-1) - chosen).max() < 1e-4


KEPT = ["qwen3", "gemma3_text", "gpt_oss", "qwen3_5_text", "qwen2_vl", "qwen3_vl"]  # of each kind of attention one


@pytest.mark.parametrize("model_type", rest_long(tiny.MODEL_TYPES, KEPT))
def test_greedy_text(model_type):
    """With eviction, without it, and in one full forward; rows in different turns, padded left."""
    model, ids, kinds, numbers = build(model_type), tokens(), types(), turns()
    mask = torch.ones_like(ids)
    mask[0, :13] = 0
    numbers[0, :13] = 77
    inputs = {"attention_mask": mask, "semantic_ids": kinds, "turn_ids": numbers, "max_new_tokens": 30, **GREEDY}
    caches = HSACache(CONFIG, max_waiting=16), HSACache(CONFIG, evict=False)
    texts = [model.generate(ids, past_key_values=cache, **inputs) for cache in caches]
    assert torch.equal(*texts)
    check_greedy(model, texts[0], kinds, numbers, attention_mask=mask)
    small, large = (cache.report() for cache in caches)
    assert small.seen_tokens == large.seen_tokens == large.kept_tokens == LENGTH + 29
    assert small.kept_tokens < 0.9 * large.kept_tokens
    assert torch.equal(caches[0].turn_ids, go_on(numbers * mask, 29))


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 3, "top_k": 20}],
)
def test_beams_and_samples(options):
    model, ids, kinds, numbers, found = build(), tokens(), types(), turns(), []
    for evict in (True, False):
        torch.manual_seed(0)
        inputs = {"semantic_ids": kinds, "turn_ids": numbers, "max_new_tokens": 30, **GREEDY, **options}
        found.append(model.generate(ids, past_key_values=HSACache(CONFIG, evict=evict, max_waiting=8), **inputs))
    assert torch.equal(*found)


def test_long_prompts_in_chunks(monkeypatch):
    model, ids, kinds, numbers = build(), tokens(2, 250), types(2, 250), turns(2, 250)
    inputs = {"semantic_ids": kinds, "turn_ids": numbers, "max_new_tokens": 10, **GREEDY}
    expected = model.generate(ids, **inputs)
    monkeypatch.setattr(prefill, "PREFILL_CHUNK", 30)
    assert torch.equal(model.generate(ids, past_key_values=HSACache(CONFIG, max_waiting=16), **inputs), expected)
    check_greedy(model, expected, kinds, numbers, start=250)


@pytest.mark.parametrize("model_type", ["qwen3", "gemma3_text", "qwen3_5_text", "qwen2_vl"])
def test_many_turns(model_type):
    """The prompt of each turn is numbered by the caller, with numbers that skip; rows of a batch are in different ones."""
    model, cache = build(model_type), HSACache(CONFIG, max_waiting=8)
    ids, kinds, numbers, held = tokens(2, 20), types(2, 20), turns(2, 20), []
    for turn in range(4):
        start = ids.shape[1]
        inputs = {"semantic_ids": kinds, "turn_ids": numbers, "max_new_tokens": 15, **GREEDY}
        ids = model.generate(ids, past_key_values=cache, **inputs)
        kinds, numbers = torch.nn.functional.pad(kinds, (0, 15), value=2), go_on(numbers, 15)
        check_greedy(model, ids, kinds, numbers, start=start)
        held.append(cache.report().kept_tokens)
        ids, kinds = torch.cat([ids, tokens(2, 10, turn)], 1), torch.cat([kinds, types(2, 10, turn)], 1)
        numbers = torch.cat([numbers, numbers[:, -1:] + torch.tensor([[1] * 10, [2 + turn] * 10])], 1)
    assert held[-1] < 0.8 * cache.report().seen_tokens


def test_a_reply_that_goes_on_after_its_stop_token():
    """A stop token ends no turn: what the reply answers is still in sight if the caller lets it go on."""
    model, ids, kinds, cache = build(), tokens(1, 30), types(1, 30), HSACache(CONFIG, max_waiting=1)
    numbers = torch.zeros_like(ids)
    kinds[0, 10:] = 2
    end = int(model.generate(ids, semantic_ids=kinds, turn_ids=numbers, max_new_tokens=4, **GREEDY)[0, -1])
    for _ in range(3):
        inputs = {"semantic_ids": kinds, "turn_ids": numbers, "eos_token_id": end, **GREEDY}
        start = ids.shape[1]
        ids = model.generate(ids, past_key_values=cache, max_new_tokens=12, **inputs)
        new = ids.shape[1] - start
        kinds, numbers = torch.nn.functional.pad(kinds, (0, new), value=2), go_on(numbers, new)
        check_greedy(model, ids, kinds, numbers, start=start)
        assert cache.report().kept_tokens == ids.shape[1] - 1
        ids, kinds = torch.cat([ids, tokens(1, 3)], 1), torch.nn.functional.pad(kinds, (0, 3), value=2)
        numbers = go_on(numbers, 3)  # a second message of the same reply


class TestStopTokenThatBeginsTheNextMessage:
    """As GLM's: it is sampled in the reply's turn, and belongs to the next one."""

    def first_turn(self, rows):
        model, ids, kinds, cache = build(), tokens(rows, 30), types(rows, 30), HSACache(CONFIG, max_waiting=1)
        numbers = turns(rows, 30)
        texts = model.generate(ids, semantic_ids=kinds, turn_ids=numbers, max_new_tokens=4, **GREEDY)
        options = {"eos_token_id": int(texts[0, -1]), "past_key_values": cache, "max_new_tokens": 20, **GREEDY}
        ids = model.generate(ids, semantic_ids=kinds, turn_ids=numbers, **options)
        kinds = torch.nn.functional.pad(kinds, (0, ids.shape[1] - 30), value=2)
        numbers, stop = go_on(numbers, ids.shape[1] - 30), ids[0].tolist().index(options["eos_token_id"], 30)
        numbers[0, stop:] += 1
        ids, kinds = torch.cat([ids, tokens(rows, 9)], 1), torch.cat([kinds, types(rows, 9)], 1)
        return model, ids, kinds, go_on(numbers, 9), options

    def test_alone(self):
        model, ids, kinds, numbers, options = self.first_turn(1)
        output = model.generate(ids, semantic_ids=kinds, turn_ids=numbers, **options)
        check_greedy(model, output, kinds, numbers, start=ids.shape[1])

    def test_read_before_the_other_rows_ended(self):
        model, ids, kinds, numbers, options = self.first_turn(2)
        with pytest.raises(ValueError, match="place 3. of row 0, but .* header of the next message, give such rows a"):
            model.generate(ids, semantic_ids=kinds, turn_ids=numbers, **options)


@pytest.mark.parametrize("pads_with_end", [False, True])
def test_rows_that_end_apart(pads_with_end):
    """They go on as if each had been alone, each in its own turn."""
    model, ids, kinds, numbers = build("qwen3"), tokens(), types(), turns()
    end = int(model.generate(ids, semantic_ids=kinds, turn_ids=numbers, max_new_tokens=5, **GREEDY)[0, -1])
    options = {"do_sample": False, "eos_token_id": end, "pad_token_id": end if pads_with_end else 0}

    def talk(ids, kinds, numbers, news):
        cache, written = HSACache(CONFIG, max_waiting=8), []
        for new in news:
            start, inputs = ids.shape[1], {"semantic_ids": kinds, "turn_ids": numbers, "past_key_values": cache}
            ids = model.generate(ids, max_new_tokens=40, **inputs, **options)
            kinds = torch.nn.functional.pad(kinds, (0, ids.shape[1] - start), value=2)
            rows = ids[:, start:].tolist()
            written.append([row[: row.index(end)] if end in row else row for row in rows])
            ids, kinds = torch.cat([ids, new], 1), torch.cat([kinds, torch.full_like(new, 2)], 1)
            numbers = torch.cat([go_on(numbers, ids.shape[1] - start - 12), numbers[:, -1:].expand(-1, 12) + 1], 1)
        return written, cache

    news = [tokens(2, 12, seed) for seed in range(3)]
    together, _ = talk(ids, kinds, numbers, news)
    assert len(together[0][0]) < 5 and len(together[0][1]) == 40
    for row in (0, 1):
        mine = slice(row, row + 1)
        alone, _ = talk(ids[mine], kinds[mine], numbers[mine], [new[mine] for new in news])
        assert [turn[row] for turn in together] == [turn[0] for turn in alone]


def test_a_reply_retyped_after_it_ended():
    """It was NOISE and would be gone with the next message; it turns out to be a LANDMARK, which stays two turns more."""
    model, cache = build("llama", num_hidden_layers=1), HSACache(CONFIG, max_waiting=1)
    ids, kinds, numbers = tokens(1, 30), types(1, 30), turns(1, 30)
    inputs = {"past_key_values": cache, "max_new_tokens": 5, **GREEDY}
    ids = model.generate(ids, semantic_ids=kinds, turn_ids=numbers, **inputs)
    for turn in range(4):
        kinds = torch.cat([kinds, torch.ones(1, 5, dtype=torch.long) + turn % 2, types(1, 10)], 1)
        numbers = torch.cat([go_on(numbers, 5), numbers[:, -1:].expand(-1, 10) + 1], 1)
        ids = torch.cat([ids, tokens(1, 10, turn)], 1)
        start = ids.shape[1]
        ids = model.generate(ids, semantic_ids=kinds, turn_ids=numbers, **inputs)
        check_greedy(model, ids, kinds, numbers, start=start)
    with pytest.raises(ValueError, match="cannot become GLOBAL any more: their keys are gone"):
        kinds = torch.zeros_like(ids)
        model.generate(ids, semantic_ids=kinds, turn_ids=go_on(numbers, 5), **inputs)


def test_every_turn_brings_an_image():
    model, cache = build("qwen2_vl"), HSACache(CONFIG, max_waiting=8)
    whole, _ = conversation(model, 3)
    ids = kinds = numbers = None
    for turn in range(1, 4):
        length = conversation(model, turn)[0].shape[1]
        before = conversation(model, turn - 1)[0].shape[1] if turn > 1 else 0
        inputs, number = conversation(model, turn)[1], length - before
        new, new_kinds = whole[:, before:length], types(1, number, turn)
        ids = new if ids is None else torch.cat([ids, new], 1)
        kinds = new_kinds if kinds is None else torch.cat([kinds, new_kinds], 1)
        numbers = torch.zeros_like(ids) if numbers is None else torch.cat([numbers, torch.full_like(new, turn)], 1)
        start, media = ids.shape[1], with_media_types(model, ids, inputs)
        ids = model.generate(
            ids, semantic_ids=kinds, turn_ids=numbers, past_key_values=cache, max_new_tokens=15, **GREEDY, **media
        )
        kinds, numbers = torch.nn.functional.pad(kinds, (0, 15), value=2), go_on(numbers, 15)
        check_greedy(model, ids, kinds, numbers, start=start, **with_media_types(model, ids, inputs))


class TestBadInput:
    @pytest.mark.parametrize("given", [{"semantic_ids": types()}, {}])
    def test_missing(self, given):
        model = build(config=HSAConfig(noise_turns=1, default_type="NOISE"))
        with pytest.raises(ValueError, match="noise_turns need.* turn_ids.*HSADataCollator.*encode_conversation"):
            model.generate(tokens(), max_new_tokens=5, **given)

    @pytest.mark.parametrize(
        ("wrong", "problem"),
        [
            (turns(2, 59), r"turn_ids has shape \(2, 59\), but the input has \(batch, length\) = \(2, 60\)"),
            (turns()[0], r"turn_ids has shape \(60,\)"),
            (turns().tolist(), "turn_ids has shape list"),
            (turns().double(), "turn_ids must hold whole numbers, got torch.float64"),
            (
                torch.arange(3, -57, -1).expand(2, 60),
                "fall within a document: row 0 has 3 at place 0 and 2 at place 1",
            ),
        ],
    )
    def test_wrong(self, monkeypatch, wrong, problem):
        """Nothing has been read then."""
        monkeypatch.setattr(prefill, "PREFILL_CHUNK", 1)
        model, ids, kinds, cache = build(), tokens(), types(), HSACache(CONFIG)
        with pytest.raises(ValueError, match=problem):
            model.generate(ids, semantic_ids=kinds, turn_ids=wrong, past_key_values=cache, max_new_tokens=5, **GREEDY)
        assert cache.get_seq_length() == 0

    def test_not_needed(self):
        """A prompt that plain `generate` could read needs none; nor do rules without turns, which do not read them."""
        model, ids, numbers = build(), tokens(), turns()
        stock = tiny.build_model("llama").generate(ids, max_new_tokens=5, **GREEDY)
        plain = build(config=HSAConfig(noise_turns=0))
        assert torch.equal(plain.generate(ids, turn_ids=numbers, max_new_tokens=5, **GREEDY), stock)
        model = build(config=HSAConfig())
        cache, kinds = HSACache(HSAConfig()), types()
        model.generate(ids, semantic_ids=kinds, turn_ids=numbers, past_key_values=cache, max_new_tokens=5, **GREEDY)
        assert cache.turn_ids is None
