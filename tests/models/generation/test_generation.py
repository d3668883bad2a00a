"""`model.generate(input_ids, semantic_ids=…)`: transformers' text, with the keys that nobody can see dropped."""

import copy
import inspect
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conversations import conversation, tokens, types, with_media_types
from halves import half_long
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from hsa_factory import HSAConfig, disable_hsa, enable_hsa, tiny
from hsa_factory.models import HSACache
from hsa_factory.models.cache.tagger import ConstantTagger
from hsa_factory.models.generation import prefill


MODELS = tiny.MODEL_TYPES
VISION = tuple(tiny.VISION_MODELS)
CONFIG = HSAConfig(noise_window=5, generated_type="NOISE")
GREEDY = {"do_sample": False, "pad_token_id": 0}
LENGTH = 60


def build(model_type="llama", config=CONFIG, **overrides):
    return enable_hsa(tiny.build_model(model_type, **overrides), config)


def pickle_copy(model):
    return pickle.loads(pickle.dumps(model))


def torch_copy(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def left_padded(batch=2, padding=13):
    mask = torch.ones(batch, LENGTH, dtype=torch.long)
    mask[0, :padding] = 0
    return mask


@torch.no_grad()
def check_greedy(model, output, kinds, mask=None, generated_type=2, start=LENGTH):
    """Each generated token must be the likeliest one of a single full forward."""
    new = output.shape[1] - kinds.shape[1]
    kinds = torch.nn.functional.pad(kinds, (0, new), value=generated_type)
    mask = None if mask is None else torch.nn.functional.pad(mask, (0, new), value=1)
    logits = model(input_ids=output, semantic_ids=kinds, attention_mask=mask, use_cache=False).logits[
        :, start - 1 : -1
    ]
    chosen = logits.gather(-1, output[:, start:, None])[..., 0]
    assert (logits.amax(-1) - chosen).max() < 1e-4


class TestPromise5:
    @pytest.mark.parametrize("model_type", MODELS)
    def test_greedy_text(self, model_type):
        """With eviction, without it, and in one full forward; the rows padded left."""
        model, ids, kinds, mask = build(model_type), tokens(), types(), left_padded()
        inputs = {"attention_mask": mask, "semantic_ids": kinds, "max_new_tokens": 60, **GREEDY}
        caches = HSACache(CONFIG, max_waiting=16), HSACache(CONFIG, evict=False)
        texts = [model.generate(ids, past_key_values=cache, **inputs) for cache in caches]
        assert torch.equal(*texts)
        check_greedy(model, texts[0], kinds, mask)
        small, large = (cache.report() for cache in caches)
        assert small.seen_tokens == large.seen_tokens == large.kept_tokens == LENGTH + 59
        assert small.kept_tokens < 0.6 * large.kept_tokens

    @pytest.mark.parametrize("model_type", ["qwen3", pytest.param("mistral", marks=pytest.mark.long)])
    def test_long_text(self, model_type):
        model, ids, kinds = build(model_type), tokens(1), types(1)
        inputs = {"semantic_ids": kinds, "max_new_tokens": 400, **GREEDY}
        cache = HSACache(CONFIG)
        text = model.generate(ids, past_key_values=cache, **inputs)
        assert torch.equal(text, model.generate(ids, past_key_values=HSACache(CONFIG, evict=False), **inputs))
        check_greedy(model, text, kinds)
        assert cache.report().seen_tokens == 459 and cache.report().kept_tokens <= LENGTH + 5 + 256

    def test_it_makes_its_own_cache(self):
        model, ids, kinds = build(), tokens(), types()
        output = model.generate(ids, semantic_ids=kinds, max_new_tokens=20, return_dict_in_generate=True, **GREEDY)
        assert isinstance(output.past_key_values, HSACache)
        check_greedy(model, output.sequences, kinds)
        again = model.generate(input_ids=ids, semantic_ids=kinds, max_new_tokens=20, **GREEDY)
        assert torch.equal(again, output.sequences)

    @pytest.mark.parametrize(("generated_type", "number"), [(None, 0), ("LANDMARK", 1)])
    def test_type_of_what_is_generated(self, generated_type, number):
        config = HSAConfig(noise_window=5, landmark_window=9, generated_type=generated_type)
        model, ids, kinds, cache = build("llama", config), tokens(), types(), HSACache(config, max_waiting=8)
        output = model.generate(ids, semantic_ids=kinds, past_key_values=cache, max_new_tokens=40, **GREEDY)
        check_greedy(model, output, kinds, generated_type=number)
        assert cache.semantic_ids[:, LENGTH:].unique().tolist() == [number]
        assert torch.equal(cache.semantic_ids[:, :LENGTH], kinds)

    def test_without_types_the_prompt_has_the_default(self):
        config = HSAConfig(noise_window=5, default_type="NOISE")
        model, ids = build("llama", config), tokens()
        output = model.generate(ids, max_new_tokens=20, **GREEDY)
        check_greedy(model, output, torch.full_like(ids, 2))

    @pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
    def test_a_cache_made_in_inference_mode_goes_on_outside(self, grad):
        model, ids, kinds, cache = build(), tokens(), types(), HSACache(CONFIG, max_waiting=8)
        with torch.inference_mode():
            model(input_ids=ids[:, :50], semantic_ids=kinds[:, :50], past_key_values=cache)
        with grad():
            output = model.generate(ids, semantic_ids=kinds, past_key_values=cache, max_new_tokens=20, **GREEDY)
        check_greedy(model, output, kinds)


class TestWays:
    def test_sampling(self):
        model, ids, kinds = build(), tokens(), types()
        texts = []
        for evict in (True, False):
            torch.manual_seed(0)
            cache = HSACache(CONFIG, evict=evict, max_waiting=8)
            inputs = {"semantic_ids": kinds, "do_sample": True, "max_new_tokens": 40, "pad_token_id": 0, "top_k": 20}
            texts.append(model.generate(ids, past_key_values=cache, num_return_sequences=3, **inputs))
        assert texts[0].shape == (6, LENGTH + 40) and torch.equal(*texts)
        assert len({tuple(row) for row in texts[0].tolist()}) == 6

    @pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen2_5_vl"])
    def test_beams(self, model_type):
        model, ids, kinds, mask = build(model_type), tokens(), types(), left_padded()
        inputs = {"attention_mask": mask, "semantic_ids": kinds, "num_beams": 3, "num_return_sequences": 2}
        texts = [
            model.generate(ids, past_key_values=cache, max_new_tokens=30, **inputs, **GREEDY)
            for cache in (HSACache(CONFIG, max_waiting=8), HSACache(CONFIG, evict=False))
        ]
        assert texts[0].shape == (4, LENGTH + 30) and torch.equal(*texts)

    def test_beams_are_those_of_stock_transformers_where_all_is_global(self):
        model, ids = tiny.build_model("llama"), tokens()
        inputs = {"num_beams": 3, "max_new_tokens": 20, **GREEDY}
        stock = model.generate(ids, **inputs)
        enable_hsa(model, HSAConfig())
        assert torch.equal(model.generate(ids, semantic_ids=torch.zeros_like(ids), **inputs), stock)

    @pytest.mark.parametrize("wrapped", ["before", "after"])
    def test_peft(self, wrapped):
        peft = pytest.importorskip("peft")
        lora = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
        torch.manual_seed(0)
        if wrapped == "before":
            model = enable_hsa(peft.get_peft_model(tiny.build_model("llama"), lora).eval(), CONFIG)
        else:
            model = peft.get_peft_model(build(), lora).eval()
        ids, kinds = tokens(), types()
        output = model.generate(input_ids=ids, semantic_ids=kinds, max_new_tokens=20, **GREEDY)
        check_greedy(model, output, kinds)
        disable_hsa(model)
        assert "generate" not in vars(model.get_base_model())

    @pytest.mark.parametrize("length", [99, 100, 101, 250])
    @pytest.mark.parametrize("padding", [0, 45])
    def test_long_prompts_in_chunks(self, monkeypatch, length, padding):
        model, ids, kinds = build("qwen3"), tokens(2, length), types(2, length)
        mask = torch.ones_like(ids)
        mask[0, :padding] = 0
        inputs = {"attention_mask": mask, "semantic_ids": kinds, "max_new_tokens": 10, **GREEDY}
        expected = model.generate(ids, **inputs)
        monkeypatch.setattr(prefill, "PREFILL_CHUNK", 50)
        sizes, cache = [], HSACache(CONFIG, max_waiting=16)
        handle = model.model.register_forward_pre_hook(
            lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        assert torch.equal(model.generate(ids, past_key_values=cache, **inputs), expected)
        handle.remove()
        assert max(sizes) == 50 and sum(sizes) == length + 9
        check_greedy(model, expected, kinds, mask, start=length)

    @pytest.mark.parametrize("eos", [None, 0])
    def test_chunks_guess_the_padding_as_transformers_does(self, monkeypatch, eos):
        model, ids, kinds = build("qwen3"), tokens(), types()
        ids[0, :5] = 0
        inputs = {"semantic_ids": kinds, "max_new_tokens": 10, "eos_token_id": eos, **GREEDY}
        expected = model.generate(ids, **inputs)
        monkeypatch.setattr(prefill, "PREFILL_CHUNK", 7)
        assert torch.equal(model.generate(ids, **inputs), expected)

    def test_with_a_tagger_of_ones_own(self):
        model, ids, kinds, cache = build(), tokens(), types(), HSACache(CONFIG)
        inputs = {"semantic_ids": kinds, "past_key_values": cache, "tagger": ConstantTagger(1), **GREEDY}
        check_greedy(model, model.generate(ids, max_new_tokens=20, **inputs), kinds, generated_type=1)
        assert cache.semantic_ids[:, LENGTH:].unique().tolist() == [1]


class TestTurns:
    @pytest.mark.parametrize("model_type", ["qwen3", "gemma3_text", "qwen2_vl", "qwen3_vl"])
    def test_nothing_is_read_twice(self, model_type):
        model, cache, sizes = build(model_type), HSACache(CONFIG, max_waiting=16), []
        ids, kinds = tokens(2, 20), types(2, 20)
        mask = torch.ones_like(ids)
        mask[0, :7] = 0
        model.base_model.register_forward_pre_hook(
            lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        for turn in range(4):
            start = ids.shape[1]
            inputs = {"attention_mask": mask, "semantic_ids": kinds, "max_new_tokens": 15, **GREEDY}
            ids = model.generate(ids, past_key_values=cache, **inputs)
            kinds = torch.nn.functional.pad(kinds, (0, 15), value=2)
            mask = torch.nn.functional.pad(mask, (0, 15), value=1)
            if model_type in VISION:  # another conversation in between
                model.generate(tokens(1), semantic_ids=types(1), max_new_tokens=2, **GREEDY)
                del sizes[-2:]
            check_greedy(model, ids, kinds, mask, start=start)
            assert cache.get_seq_length() == ids.shape[1] - 1
            sizes.pop()  # of the check
            ids, kinds = torch.cat([ids, tokens(2, 10, turn)], 1), torch.cat([kinds, types(2, 10, turn)], 1)
            mask = torch.nn.functional.pad(mask, (0, 10), value=1)
        assert sum(sizes) == cache.get_seq_length()
        assert cache.report().kept_tokens < 0.8 * cache.report().seen_tokens

    @pytest.mark.parametrize(
        ("model_type", "pads_with_end"), half_long(["qwen3", "gemma3_text", "qwen2_vl"], [False, True])
    )
    def test_rows_that_end_apart(self, model_type, pads_with_end):
        """They go on as if each had been alone: what comes after a row's end is padding, and no distance."""
        config = HSAConfig(noise_window=9, generated_type="NOISE")
        model, ids, kinds = build(model_type, config), tokens(), types()
        end = int(model.generate(ids, semantic_ids=kinds, max_new_tokens=5, **GREEDY)[0, -1])
        options = {"do_sample": False, "eos_token_id": end, "pad_token_id": end if pads_with_end else 0}

        def talk(ids, kinds, news):
            """Return what a batch writes in each turn, the end and what follows it left out."""
            cache, written = HSACache(config, max_waiting=8), []
            for new in news:
                start = ids.shape[1]
                ids = model.generate(ids, semantic_ids=kinds, past_key_values=cache, max_new_tokens=40, **options)
                kinds = torch.nn.functional.pad(kinds, (0, ids.shape[1] - start), value=2)
                rows = ids[:, start:].tolist()
                written.append([row[: row.index(end)] if end in row else row for row in rows])
                ids, kinds = torch.cat([ids, new], 1), torch.cat([kinds, torch.full_like(new, 2)], 1)
            return written, cache

        news = [tokens(2, 12, seed) for seed in range(3)]
        together, cache = talk(ids, kinds, news)
        assert len(together[0][0]) < 5 and len(together[0][1]) == 40
        for row in (0, 1):
            alone, _ = talk(ids[row : row + 1], kinds[row : row + 1], [new[row : row + 1] for new in news])
            assert [turn[row] for turn in together] == [turn[0] for turn in alone]
        assert cache.attention_mask[0].sum() < cache.get_seq_length() - 30

    def test_types_of_what_was_generated_may_be_settled_later(self):
        """A turn is generated as NOISE, within its window it turns out to be a LANDMARK."""
        model, cache = build("llama", num_hidden_layers=1), HSACache(CONFIG, max_waiting=1)
        ids, kinds = tokens(1, 30), types(1, 30)
        ids = model.generate(ids, semantic_ids=kinds, past_key_values=cache, max_new_tokens=5, **GREEDY)
        kinds = torch.cat([kinds, torch.ones(1, 5, dtype=torch.long), types(1, 10)], 1)
        ids = torch.cat([ids, tokens(1, 10)], 1)
        output = model.generate(ids, semantic_ids=kinds, past_key_values=cache, max_new_tokens=20, **GREEDY)
        check_greedy(model, output, kinds, start=45)
        with pytest.raises(ValueError, match="cannot become GLOBAL any more: their keys are gone"):
            kinds = torch.nn.functional.pad(kinds, (0, 20))
            model.generate(output, semantic_ids=kinds, past_key_values=cache, max_new_tokens=20, **GREEDY)


@pytest.mark.parametrize("model_type", VISION)
class TestImages:
    """M-RoPE positions follow the true length and the images, whatever is held and whatever was read before."""

    def check(self, model, output, kinds, inputs, start):
        kinds = torch.nn.functional.pad(kinds, (0, output.shape[1] - kinds.shape[1]), value=2)
        with torch.no_grad():
            logits = model(
                input_ids=output, semantic_ids=kinds, use_cache=False, **with_media_types(model, output, inputs)
            ).logits
        logits = logits[:, start - 1 : -1]
        chosen = logits.gather(-1, output[:, start:, None])[..., 0]
        assert (logits.amax(-1) - chosen).max() < 1e-4

    def test_one_turn(self, model_type):
        model = build(model_type)
        ids, inputs = conversation(model, 2)
        kinds, texts = types(1, ids.shape[1]), []
        caches = HSACache(CONFIG, max_waiting=8), HSACache(CONFIG, evict=False)
        for cache in caches:
            media = with_media_types(model, ids, inputs)
            options = {"semantic_ids": kinds, "past_key_values": cache, "max_new_tokens": 40, **media, **GREEDY}
            texts.append(model.generate(ids, **options))
        assert torch.equal(*texts)
        assert caches[0].report().kept_tokens < 0.7 * caches[1].report().kept_tokens
        self.check(model, texts[0], kinds, inputs, ids.shape[1])

    @pytest.mark.parametrize("rows", [1, 2])
    def test_every_turn_brings_an_image(self, model_type, rows):
        model, cache, encoded = build(model_type), HSACache(CONFIG, max_waiting=8), []
        model.model.visual.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
        whole, _ = conversation(model, 3, rows)
        ids = kinds = None
        for turn in range(1, 4):
            length = conversation(model, turn, 1)[0].shape[1]
            before = conversation(model, turn - 1, 1)[0].shape[1] if turn > 1 else 0
            inputs = conversation(model, turn, rows)[1]
            new, new_kinds = whole[:, before:length], types(rows, length - before, turn)
            ids = new if ids is None else torch.cat([ids, new], 1)
            kinds = new_kinds if kinds is None else torch.cat([kinds, new_kinds], 1)
            start = ids.shape[1]
            options = {"semantic_ids": kinds, "past_key_values": cache, "max_new_tokens": 15, **GREEDY}
            ids = model.generate(ids, **options, **with_media_types(model, ids, inputs))
            kinds = torch.nn.functional.pad(kinds, (0, 15), value=2)
            other, others_inputs = conversation(model, 1)  # another conversation in between
            options = {"semantic_ids": types(1, other.shape[1]), "max_new_tokens": 2, **GREEDY}
            model.generate(other, **options, **with_media_types(model, other, others_inputs))
            if turn > 1:
                assert encoded[-2] == rows * int(inputs["image_grid_thw"][-1].prod())
            self.check(model, ids, kinds, inputs, start)
            encoded.pop()

    def test_images_of_the_new_turn_alone_are_not_enough(self, model_type):
        model, cache = build(model_type), HSACache(CONFIG)
        ids, inputs = conversation(model, 1)
        options = {"past_key_values": cache, "max_new_tokens": 5, **GREEDY}
        media = with_media_types(model, ids, inputs)
        written = model.generate(ids, semantic_ids=torch.zeros_like(ids), **options, **media)
        ids = torch.cat([written, conversation(model, 2)[0][:, ids.shape[1] :]], 1)
        with pytest.raises(
            ValueError, match="image_grid_thw describes 4 tokens, but input_ids has 10: pass the images"
        ):
            model.generate(ids, semantic_ids=torch.zeros_like(ids), **options, **with_media_types(model, ids, inputs))


class TestSwitching:
    def test_disabling_restores_generate(self):
        model, ids = tiny.build_model("llama"), tokens()
        stock = model.generate(ids, max_new_tokens=20, **GREEDY)
        enable_hsa(enable_hsa(model, CONFIG), CONFIG)
        assert "generate" in vars(model)
        disable_hsa(model)
        assert "generate" not in vars(model)
        assert torch.equal(model.generate(ids, max_new_tokens=20, **GREEDY), stock)
        with pytest.raises(ValueError, match="semantic_ids"):
            model.generate(ids, semantic_ids=types(), max_new_tokens=20, **GREEDY)

    def test_a_generate_of_the_models_own_comes_back(self):
        model = tiny.build_model("llama")
        own = model.generate
        model.generate = own
        disable_hsa(enable_hsa(model, CONFIG))
        assert vars(model)["generate"] is own

    def test_a_copy_generates_for_itself(self):
        model, ids, kinds = build(), tokens(), types()
        twin = copy.deepcopy(model)
        assert twin.generate.model is twin
        expected = model.generate(ids, semantic_ids=kinds, max_new_tokens=5, **GREEDY)
        assert torch.equal(twin.generate(ids, semantic_ids=kinds, max_new_tokens=5, **GREEDY), expected)

    @pytest.mark.parametrize("save", [pickle_copy, torch_copy])
    def test_a_saved_model_generates_for_itself(self, save):
        model, ids, kinds = build(), tokens(), types()
        twin = save(model)
        assert twin.generate.model is twin
        expected = model.generate(ids, semantic_ids=kinds, max_new_tokens=5, **GREEDY)
        assert torch.equal(twin.generate(ids, semantic_ids=kinds, max_new_tokens=5, **GREEDY), expected)
        disable_hsa(twin)
        assert "generate" not in vars(twin)

    def test_it_looks_like_the_stock_method(self):
        stock = inspect.signature(tiny.build_model("llama").generate)
        assert inspect.signature(build().generate) == stock


class TestBadInput:
    @pytest.mark.parametrize("shape", [(2, 59), (2, 61), (1, 60), (3, 60)])
    def test_types_of_another_shape(self, shape):
        with pytest.raises(ValueError, match=r"semantic_ids has shape .*, but input_ids has \(2, 60\)"):
            build().generate(tokens(), semantic_ids=types(*shape), max_new_tokens=5)

    @pytest.mark.parametrize("kinds", [types() + 1, types() - 1, types().float(), types() > 0])
    def test_types_that_do_not_exist(self, kinds):
        with pytest.raises(ValueError, match="must hold whole numbers from 0"):
            build().generate(tokens(), semantic_ids=kinds, max_new_tokens=5)

    def test_missing_types_on_a_continued_cache(self):
        model, ids, kinds, cache = build(), tokens(), types(), HSACache(CONFIG)
        ids = model.generate(ids, semantic_ids=kinds, past_key_values=cache, max_new_tokens=5, **GREEDY)
        with pytest.raises(ValueError, match="semantic_ids are missing: going on from an HSACache"):
            model.generate(ids, past_key_values=cache, max_new_tokens=5, **GREEDY)

    def test_other_tokens_than_those_seen(self):
        """Such as the same text, encoded anew."""
        model, ids, kinds, cache = build(), tokens(), types(), HSACache(CONFIG)
        ids = model.generate(ids, semantic_ids=kinds, past_key_values=cache, max_new_tokens=5, **GREEDY)
        other = ids.clone()
        other[1, 62] += 1
        options = {"semantic_ids": torch.nn.functional.pad(kinds, (0, 5), value=2), "max_new_tokens": 2, **GREEDY}
        with pytest.raises(ValueError, match="differs from what .* first at token 62 of row 1: pass the tokens that"):
            model.generate(other, past_key_values=cache, **options)
        cache.batch_select_indices(torch.tensor([1, 0]))
        with pytest.raises(ValueError, match="first at token 0 of row 0"):
            model.generate(ids, past_key_values=cache, **options | {"semantic_ids": options["semantic_ids"].flip(0)})
        options["semantic_ids"] = options["semantic_ids"].flip(0)
        assert model.generate(ids.flip(0), past_key_values=cache, **options).shape == (2, 67)

    def test_a_cache_of_other_rows(self):
        """Beams leave a row each behind."""
        model, ids, kinds, cache = build(), tokens(), types(), HSACache(CONFIG)
        ids = model.generate(ids, semantic_ids=kinds, past_key_values=cache, num_beams=3, max_new_tokens=5, **GREEDY)
        with pytest.raises(ValueError, match="This HSACache holds 6 rows, but input_ids has 2"):
            model.generate(ids, semantic_ids=types(2, 65), past_key_values=cache, max_new_tokens=5, **GREEDY)

    def test_nothing_new(self):
        model, ids, kinds, cache = build(), tokens(), types(), HSACache(CONFIG)
        model.generate(ids, semantic_ids=kinds, past_key_values=cache, max_new_tokens=5, **GREEDY)
        with pytest.raises(ValueError, match="input_ids has 60 tokens, but the cache has seen 64"):
            model.generate(ids, semantic_ids=kinds, past_key_values=cache, max_new_tokens=5, **GREEDY)

    def test_another_configuration(self):
        with pytest.raises(ValueError, match="This HSACache was made for"):
            build().generate(tokens(), semantic_ids=types(), past_key_values=HSACache(HSAConfig()), max_new_tokens=5)

    @pytest.mark.parametrize("options", [{"max_new_tokens": 41}, {"max_length": 101}])
    def test_more_tokens_than_positions(self, options):
        model = build(max_position_embeddings=100)
        with pytest.raises(
            ValueError, match="prompt has 60 tokens and up to 41 more.*LlamaForCausalLM has 100 positions"
        ):
            model.generate(tokens(), semantic_ids=types(), **options)
        with pytest.raises(ValueError, match="prompt has 101 tokens and up to 0 more"):
            model.generate(tokens(1, 101), semantic_ids=types(1, 101))
        assert model.generate(tokens(), semantic_ids=types(), max_new_tokens=40, **GREEDY).shape == (2, 100)

    @pytest.mark.parametrize("shape", [(1, 0), (0, 5), (5,), (1, 2, 3)])
    def test_no_prompt(self, shape):
        with pytest.raises(ValueError, match="empty prompt|needs input_ids of shape"):
            build().generate(torch.ones(shape, dtype=torch.long), semantic_ids=torch.zeros(shape, dtype=torch.long))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
    def test_a_prompt_of_another_dtype(self, dtype):
        with pytest.raises(ValueError, match=f"needs input_ids of whole numbers, got {dtype}"):
            build().generate(tokens().to(dtype), semantic_ids=types(), max_new_tokens=5)

    @pytest.mark.parametrize("shape", [(2, 59), (1, 60), (2, 1, 60, 60)])
    def test_a_mask_of_another_shape(self, shape):
        with pytest.raises(ValueError, match="attention_mask must have the shape of input_ids"):
            build().generate(tokens(), semantic_ids=types(), attention_mask=torch.ones(shape), max_new_tokens=5)

    def test_a_mask_that_takes_back_tokens(self):
        model, ids, cache = build(), tokens(), HSACache(CONFIG)
        model.generate(ids[:, :50], semantic_ids=types(2, 50), past_key_values=cache, max_new_tokens=1, **GREEDY)
        mask = torch.ones_like(ids)
        mask[0, 20] = 0
        inputs = {"semantic_ids": torch.cat([types(2, 50), types(2, 10)], 1), "attention_mask": mask}
        with pytest.raises(ValueError, match="takes tokens for padding that this HSACache has seen as text"):
            model.generate(ids, past_key_values=cache, max_new_tokens=1, **inputs, **GREEDY)

    def test_gradient_checkpointing(self):
        model = build().train()
        model.gradient_checkpointing_enable()
        with pytest.raises(ValueError, match=r"call model.eval\(\) before"):
            model.generate(tokens(), semantic_ids=types(), max_new_tokens=5)
        assert model.eval().generate(tokens(), semantic_ids=types(), max_new_tokens=5, **GREEDY).shape == (2, 65)

    def test_a_model_with_a_cache_of_its_own(self):
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        layers = {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2, "vocab_size": 1024}
        config = AutoConfig.for_model("minimax", **sizes, **layers, num_key_value_heads=2, head_dim=16)
        model = enable_hsa(AutoModelForCausalLM.from_config(config).eval(), CONFIG)
        with pytest.raises(ValueError, match="MiniMaxForCausalLM brings a cache of its own"):
            model.generate(tokens(), semantic_ids=types(), max_new_tokens=5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"input_ids": tokens()}, "got its prompt twice"),
            ({"tagger": "NOISE"}, "tagger must have the methods of .*, got 'NOISE'"),
            ({"guidance_scale": 1.5}, "guidance_scale: classifier-free guidance"),
            ({"token_healing": True}, "token_healing: it changes tokens of the prompt"),
            ({"assistant_model": tiny.build_model("llama")}, "assistant_model: assisted decoding"),
            ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens: prompt lookup"),
            ({"use_cache": False}, "needs its cache"),
            ({"cache_implementation": "static"}, "cache_implementation: HSA brings its own"),
            ({"past_key_values": DynamicCache()}, "needs an HSACache, got DynamicCache"),
            ({"prefill_chunk_size": 8}, "prefill_chunk_size"),
            ({"inputs_embeds": torch.zeros(2, 60, 64)}, "inputs_embeds"),
            ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
        ],
    )
    def test_what_cannot_be_honoured(self, options, message):
        with pytest.raises(ValueError, match=message):
            build().generate(tokens(), semantic_ids=types(), max_new_tokens=5, **options)


def test_threads_that_share_a_model_take_turns():
    model = build("qwen3", HSAConfig(noise_window=5))
    ids = torch.randint(0, 1000, (1, 40), generator=torch.Generator().manual_seed(0))
    kinds = [torch.full_like(ids, 2), torch.zeros_like(ids)]
    expected = [model.generate(ids, semantic_ids=types, max_new_tokens=20, do_sample=False) for types in kinds]
    assert not torch.equal(*expected)
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(
            lambda types: model.generate(ids, semantic_ids=types, max_new_tokens=20, do_sample=False), kinds * 4
        )
        for number, result in enumerate(results):
            assert torch.equal(result, expected[number % 2])


def test_forwards_of_several_threads_have_a_plan_each():
    model, ids = build("gemma3_text"), tokens()
    kinds = [types(seed=seed) for seed in range(3)]
    generated = model.generate(ids, semantic_ids=kinds[0], max_new_tokens=10, **GREEDY)

    @torch.no_grad()
    def forward(number):
        return model(input_ids=ids, semantic_ids=kinds[number % 3], use_cache=False).logits

    def run(number):
        if number % 4 == 3:
            return model.generate(ids, semantic_ids=kinds[0], max_new_tokens=10, **GREEDY)
        return forward(number)

    expected = [forward(number) for number in range(3)]
    with ThreadPoolExecutor(4) as pool:
        for number, result in enumerate(pool.map(run, range(24))):
            wanted = generated if number % 4 == 3 else expected[number % 3]
            torch.testing.assert_close(result, wanted, atol=1e-5, rtol=1e-5)
