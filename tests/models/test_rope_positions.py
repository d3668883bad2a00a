"""Conversations that share a model: each goes on at its own rotary positions, whatever was read between, and in any way."""

import copy
from dataclasses import dataclass, field

import pytest
import torch
from conversations import conversation, tokens, with_media_types
from helpers import VISION, close
from transformers import DynamicCache

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.models import HSACache


CONFIG = HSAConfig(noise_window=5, generated_type="NOISE")
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
NEXT = tokens(1, 8, 70)
NEXT_TYPES = torch.tensor([[0, 2, 1, 2, 2, 0, 2, 2]])


def types(length, seed=1):
    return torch.randint(0, 3, (1, length), generator=torch.Generator().manual_seed(seed))


@dataclass
class Conversation:
    """A prompt, and the logits of it and of `NEXT` when a model of its own reads them in one forward."""

    ids: torch.Tensor
    types: torch.Tensor
    inputs: dict = field(default_factory=dict)
    logits: torch.Tensor | None = None

    def __len__(self):
        return self.ids.shape[1]

    def all_inputs(self, model, ids):
        return with_media_types(model, ids, self.inputs) if self.inputs else {}


@torch.no_grad()
def read(model, ids, types, cache=None, **inputs):
    return model(
        input_ids=ids, semantic_ids=types, past_key_values=cache, use_cache=cache is not None, **inputs
    ).logits


def begin(model, talk, cache=None):
    """Read a conversation's prompt into a cache; return both the cache and the logits."""
    cache = HSACache(CONFIG) if cache is None else cache
    return cache, read(model, talk.ids, talk.types, cache, **talk.all_inputs(model, talk.ids))


def step(model, cache, place, rows=1, with_mask=False):
    """Read the token at a place of `NEXT`."""
    mask = torch.ones(rows, cache.get_seq_length() + 1, dtype=torch.long)
    inputs = {"attention_mask": mask} if with_mask else {}
    part = slice(place, place + 1)
    return read(model, NEXT[:, part].expand(rows, -1), NEXT_TYPES[:, part].expand(rows, -1), cache, **inputs)


def go_on(model, cache, rows=1, with_mask=False):
    return torch.cat([step(model, cache, place, rows, with_mask) for place in range(NEXT.shape[1])], dim=1)


@pytest.fixture(scope="module", params=VISION)
def shared(request):
    """A model, a conversation with images and one of text alone."""
    model = enable_hsa(tiny.build_model(request.param), CONFIG)
    ids, inputs = conversation(model, 2)
    talks = Conversation(ids, types(ids.shape[1]), inputs), Conversation(tokens(1, 12, 50), types(12, 2))
    for talk in talks:
        ids = torch.cat([talk.ids, NEXT], dim=1)
        talk.logits = read(
            copy.deepcopy(model), ids, torch.cat([talk.types, NEXT_TYPES], 1), **talk.all_inputs(model, ids)
        )
    return model, *talks


class TestByForward:
    @pytest.mark.parametrize("with_mask", [False, True])
    def test_text_after_images(self, shared, with_mask):
        model, images, text = shared
        begin(model, images)
        cache, logits = begin(model, text)
        close(torch.cat([logits, go_on(model, cache, with_mask=with_mask)], 1), text.logits)

    def test_taking_turns(self, shared):
        """Token by token, with and without a mask, with plain forwards between; text and images begin first in turn."""
        model, images, text = shared
        for talks in ((images, text), (text, images)):
            begun = [begin(model, talk) for talk in talks]
            logits = [[first] for _, first in begun]
            for place in range(NEXT.shape[1]):
                for (cache, _), parts in zip(begun, logits):
                    parts.append(step(model, cache, place, with_mask=place % 2 == 1))
                if place % 3 == 0:
                    read(model, images.ids, images.types, **images.all_inputs(model, images.ids))
                    read(model, text.ids, text.types)
            for talk, parts in zip(talks, logits):
                close(torch.cat(parts, 1), talk.logits)

    def test_images_and_text_in_a_batch(self, shared):
        model, images, text = shared
        padding = len(images) - len(text)
        pad = lambda row: torch.nn.functional.pad(row, (padding, 0))
        ids, kinds = torch.cat([images.ids, pad(text.ids)]), torch.cat([images.types, pad(text.types)])
        mask = torch.ones_like(ids)
        mask[1, :padding] = 0
        cache = HSACache(CONFIG)
        read(model, ids, kinds, cache, attention_mask=mask, **images.all_inputs(model, ids))
        for place in range(NEXT.shape[1]):
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            part = slice(place, place + 1)
            logits = read(
                model, NEXT[:, part].expand(2, -1), NEXT_TYPES[:, part].expand(2, -1), cache, attention_mask=mask
            )
            close(logits[0], images.logits[0, len(images) + place][None])
            close(logits[1], text.logits[0, len(text) + place][None])

    def test_copies_and_chosen_rows(self, shared):
        model, images, text = shared
        cache, _ = begin(model, images)
        beams, single = copy.deepcopy(cache), copy.deepcopy(cache)
        beams.batch_repeat_interleave(3)
        beams.reorder_cache(torch.tensor([2, 0, 1]))
        beams.batch_select_indices(torch.tensor([0, 2]))
        begin(model, Conversation(text.ids.expand(3, -1), text.types.expand(3, -1)))
        expected = images.logits[:, len(images) :]
        close(go_on(model, beams, rows=2), expected.expand(2, -1, -1))
        close(go_on(model, single, rows=3), expected.expand(3, -1, -1))  # a forward of more rows copies by itself
        close(go_on(model, cache), expected)

    def test_crop_before_the_images_and_a_forward_that_fails(self, shared):
        model, images, text = shared
        cache, _ = begin(model, text, HSACache(CONFIG, evict=False))
        with pytest.raises(ValueError, match="mm_token_type_ids is missing"):
            read(model, images.ids, images.types, cache, **images.inputs)
        assert cache.get_seq_length() == len(text)
        begin(model, images, cache)
        cache.crop(len(text))
        close(go_on(model, cache), text.logits[:, len(text) :])

    def test_images_of_a_later_turn(self, shared):
        model, images, text = shared
        cache, first = begin(model, text)
        _, second = begin(model, images, cache)
        ids = torch.cat([text.ids, images.ids, NEXT], 1)
        kinds = torch.cat([text.types, images.types, NEXT_TYPES], 1)
        expected = read(copy.deepcopy(model), ids, kinds, **images.all_inputs(model, ids))
        close(torch.cat([first, second, go_on(model, cache)], 1), expected)

    def test_a_long_video(self, shared):
        """It reaches further in time than in height and width, which the text after it follows; a piece may end with it."""
        model, *_ = shared
        config, vision = model.config, model.config.vision_config
        number, side = 6, vision.spatial_merge_size
        is_split = "Qwen3" in type(model).__name__  # into frames, with time stamps between
        frame = [config.vision_start_token_id, *[config.video_token_id] * 2]
        video = (
            (frame + [config.vision_end_token_id, 7]) * number if is_split else frame + [config.video_token_id] * 10
        )
        ids = torch.tensor([[5, 6, *video, config.vision_end_token_id, *NEXT[0].tolist()]])
        patches = torch.Generator().manual_seed(0)
        channels = 3 * vision.temporal_patch_size * vision.patch_size**2
        inputs = {
            "pixel_values_videos": torch.randn(number * 2 * side**2, channels, generator=patches),
            "video_grid_thw": torch.tensor([[number, side, 2 * side]]),
        }
        media_types = (ids == config.video_token_id).long() * 2
        kinds, stop = types(ids.shape[1]), 2 + len(video)
        expected = read(copy.deepcopy(model), ids, kinds, mm_token_type_ids=media_types, **inputs)
        cache = HSACache(CONFIG)
        inputs["mm_token_type_ids"] = media_types[:, :stop]
        logits = [read(model, ids[:, :stop], kinds[:, :stop], cache, **inputs)]
        logits += [read(model, ids[:, i : i + 1], kinds[:, i : i + 1], cache) for i in range(stop, ids.shape[1])]
        close(torch.cat(logits, 1), expected)

    @pytest.mark.parametrize("axes", [1, 3, 4])
    def test_positions_of_the_callers_own(self, shared, axes):
        """The conversation goes on behind them: only differences count."""
        model, images, text = shared
        places = torch.arange(1000, 1000 + len(text)).expand(1, -1)
        places = places if axes == 1 else places.expand(axes, 1, -1)
        begin(model, images)
        cache = HSACache(CONFIG)
        logits = read(model, text.ids, text.types, cache, position_ids=places)
        assert cache.next_rope_positions.tolist() == [[1000 + len(text)]]
        close(torch.cat([logits, go_on(model, cache)], 1), text.logits, 1e-3)

    def test_embeddings_instead_of_tokens(self, shared):
        model, images, text = shared
        begin(model, images)
        embed = model.get_input_embeddings()
        with torch.no_grad():
            output = model(
                inputs_embeds=embed(text.ids), semantic_ids=text.types, past_key_values=(cache := HSACache(CONFIG))
            )
        close(torch.cat([output.logits, go_on(model, cache)], 1), text.logits)

    def test_the_models_own_memory_is_left_alone(self, shared):
        """A conversation with transformers' own cache goes on as if nothing had been read with an HSACache."""
        model, images, text = shared
        model = copy.deepcopy(model)
        own = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=images.ids, past_key_values=own, **images.all_inputs(model, images.ids))
            expected = model(input_ids=NEXT[:, :1], past_key_values=copy.deepcopy(own)).logits
            cache, _ = begin(model, text)
            model.generate(text.ids, semantic_ids=text.types, max_new_tokens=2, **GREEDY)
            with pytest.raises(ValueError, match="semantic_ids has shape"):
                model(input_ids=NEXT, semantic_ids=NEXT_TYPES[:, :3], past_key_values=cache)
            assert torch.equal(model(input_ids=NEXT[:, :1], past_key_values=own).logits, expected)


class TestByGenerate:
    def test_going_on_from_a_prefix(self, shared):
        """That a forward has read, after conversations of other images and of more rows."""
        model, images, text = shared
        for talk in (images, text):
            cache, _ = begin(model, talk)
            for other in (Conversation(text.ids.expand(3, -1), text.types.expand(3, -1)), images, text):
                if other is not talk:
                    begin(model, other)
            ids, kinds = torch.cat([talk.ids, NEXT], 1), torch.cat([talk.types, NEXT_TYPES], 1)
            check_generate(model, talk, cache, ids, kinds)

    def test_taking_turns(self, shared):
        model, *talks = shared
        texts = [(HSACache(CONFIG), talk.ids, talk.types) for talk in talks]
        for _ in range(3):
            for number, (talk, (cache, ids, kinds)) in enumerate(zip(talks, texts)):
                ids, kinds = check_generate(model, talk, cache, ids, kinds)
                texts[number] = cache, torch.cat([ids, NEXT], 1), torch.cat([kinds, NEXT_TYPES], 1)

    def test_beams_from_a_prefix(self, shared):
        model, images, text = shared
        options = {"num_beams": 3, "max_new_tokens": 5, **GREEDY}
        for talk in (images, text):
            cache, _ = begin(model, talk)
            begin(model, text if talk is images else images)
            ids, kinds = torch.cat([talk.ids, NEXT], 1), torch.cat([talk.types, NEXT_TYPES], 1)
            media = talk.all_inputs(model, ids)
            output = model.generate(ids, semantic_ids=kinds, past_key_values=cache, **media, **options)
            assert torch.equal(output, copy.deepcopy(model).generate(ids, semantic_ids=kinds, **media, **options))


def check_generate(model, talk, cache, ids, kinds):
    """Generate; a model of its own gives the same logits in one forward. Return all tokens and types."""
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True, **GREEDY}
    output = model.generate(ids, semantic_ids=kinds, past_key_values=cache, **talk.all_inputs(model, ids), **options)
    kinds = torch.cat([kinds, torch.full((1, 4), 2)], 1)
    media = talk.all_inputs(model, output.sequences)
    expected = read(copy.deepcopy(model), output.sequences, kinds, **media)
    close(torch.stack(output.logits, 1), expected[:, ids.shape[1] - 1 : -1])
    return output.sequences, kinds


@pytest.mark.parametrize("model_type", ["llama", "qwen2_5_vl"])
class TestPaddedRows:
    """A forward counts padding where it is given no positions, `generate` does not: each row goes on where it was."""

    @pytest.fixture
    def batch(self, model_type):
        model, ids, kinds = enable_hsa(tiny.build_model(model_type), CONFIG), tokens(2, 20), types(20).repeat(2, 1)
        mask = torch.ones_like(ids)
        mask[0, :8] = 0
        alone = torch.cat([ids[:1, 8:], NEXT], 1), torch.cat([kinds[:1, 8:], NEXT_TYPES], 1)
        return model, ids, kinds, mask, read(model, *alone)

    def test_generate_after_forward(self, batch):
        model, ids, kinds, mask, alone = batch
        cache = HSACache(CONFIG)
        read(model, ids, kinds, cache, attention_mask=mask)
        output = model.generate(
            torch.cat([ids, NEXT.expand(2, -1)], 1),
            semantic_ids=torch.cat([kinds, NEXT_TYPES.expand(2, -1)], 1),
            past_key_values=cache,
            max_new_tokens=1,
            return_dict_in_generate=True,
            output_logits=True,
            **GREEDY,
        )
        close(output.logits[0][:1], alone[:, -1])

    def test_forward_after_generate(self, batch):
        model, ids, kinds, mask, alone = batch
        cache = HSACache(CONFIG)
        options = {"attention_mask": mask, "past_key_values": cache, "max_new_tokens": 1, **GREEDY}
        model.generate(ids, semantic_ids=kinds, **options)
        close(go_on(model, cache, rows=2)[:1], alone[:, 12:])
