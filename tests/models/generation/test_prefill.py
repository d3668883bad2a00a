"""Prompts in pieces: the same logits as in one pass, no image cut, and one token at a time where a model needs it."""

import pytest
import torch
from conversations import tokens, with_media_types
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.models import HSACache
from hsa_factory.models.generation import prefill
from hsa_factory.models.generation.media import MediaPrompt


CONFIG = HSAConfig(noise_window=5, generated_type="NOISE")
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
ALTERNATING = {"layer_types": ["linear_attention", "full_attention"] * 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
HYBRIDS = {
    "qwen3_5_text": {**LINEAR, **ALTERNATING},
    "qwen3_next": {**LINEAR, **ALTERNATING, **EXPERTS, "shared_expert_intermediate_size": 32},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"] * 2,
        "num_local_experts": 0,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
    },
}
SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 16}
VISION = tuple(tiny.VISION_MODELS)


def build_hybrid(model_type):
    options = {**SIZES, **HYBRIDS[model_type], "num_key_value_heads": 2, "vocab_size": 1024, "initializer_range": 0.1}
    torch.manual_seed(0)
    return enable_hsa(AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options)).eval(), CONFIG)


def types(batch, length, seed=1):
    return torch.randint(0, 3, (batch, length), generator=torch.Generator().manual_seed(seed))


def watch(model):
    """Note how long each forward's input is."""
    sizes = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return sizes


@torch.no_grad()
def check_greedy(model, output, kinds, start, mask=None, **inputs):
    """Each token from `start` on must be the likeliest one of a single full forward."""
    kinds = torch.nn.functional.pad(kinds, (0, output.shape[1] - kinds.shape[1]), value=2)
    if mask is not None:
        inputs["attention_mask"] = torch.nn.functional.pad(mask, (0, output.shape[1] - mask.shape[1]), value=1)
    logits = model(input_ids=output, semantic_ids=kinds, use_cache=False, **inputs).logits[:, start - 1 : -1]
    chosen = logits.gather(-1, output[:, start:, None])[..., 0]
    assert (logits.amax(-1) - chosen).max() < 1e-4


class TestHybrids:
    @pytest.mark.parametrize("model_type", HYBRIDS)
    def test_many_turns(self, model_type):
        """A later turn goes in token by token, each once; the first prompt at once, padded left."""
        model, cache = build_hybrid(model_type), HSACache(CONFIG, max_waiting=16)
        sizes, ids, kinds = watch(model), tokens(2, 20), types(2, 20)
        mask = torch.ones_like(ids)
        mask[0, :7] = 0
        for turn in range(4):
            start = ids.shape[1]
            inputs = {"attention_mask": mask, "semantic_ids": kinds, "max_new_tokens": 8, **GREEDY}
            ids = model.generate(ids, past_key_values=cache, **inputs)
            assert sizes[0] == 20 and set(sizes[1:]) == {1} and sum(sizes) == ids.shape[1] - 1
            check_greedy(model, ids, kinds, start, mask)
            sizes.pop()  # of the check
            kinds = torch.cat([torch.nn.functional.pad(kinds, (0, 8), value=2), types(2, 9, turn)], 1)
            ids = torch.cat([ids, tokens(2, 9, turn)], 1)
            mask = torch.nn.functional.pad(mask, (0, 17), value=1)
        assert cache.report().kept_tokens < 0.9 * cache.report().seen_tokens

    def test_padding_after_the_first_turn_is_refused(self):
        model, cache, ids = build_hybrid("qwen3_next"), HSACache(CONFIG), tokens(2, 30)
        model.generate(ids[:, :20], semantic_ids=types(2, 20), past_key_values=cache, max_new_tokens=1, **GREEDY)
        mask = torch.ones_like(ids)
        mask[1, 22] = 0
        inputs = {"semantic_ids": types(2, 30), "attention_mask": mask, "past_key_values": cache}
        with pytest.raises(ValueError, match="which read padding after text as text"):
            model.generate(ids, max_new_tokens=1, **inputs, **GREEDY)
        assert cache.get_seq_length() == 20
        with pytest.raises(ValueError, match="which read padding"):
            model(
                input_ids=ids[:, 20:21],
                semantic_ids=types(2, 1),
                past_key_values=cache,
                attention_mask=torch.tensor([[1] * 21, [1] * 20 + [0]]),
            )

    def test_rows_that_ended_apart_are_refused(self):
        model, cache, ids, kinds = build_hybrid("qwen3_next"), HSACache(CONFIG), tokens(2, 20), types(2, 20)
        end = int(model.generate(ids, semantic_ids=kinds, max_new_tokens=2, **GREEDY)[0, -1])
        options = GREEDY | {"past_key_values": cache, "eos_token_id": end}
        ids = model.generate(ids, semantic_ids=kinds, max_new_tokens=8, **options)
        assert cache.ended_rows.tolist() == [True, False]
        ids, kinds = torch.cat([ids, tokens(2, 5)], 1), torch.cat([kinds, types(2, 13)], 1)
        with pytest.raises(ValueError, match="those that end before the others, a cache each"):
            model.generate(ids, semantic_ids=kinds, max_new_tokens=1, **options)

    def test_with_images(self):
        """Qwen3.5 sees images in the first turn; text follows in later ones, with the right positions."""
        stock = AutoConfig.for_model("qwen3_5")
        text = {**SIZES, **HYBRIDS["qwen3_5_text"], "num_key_value_heads": 2, "vocab_size": 1024}
        vision = {"depth": 1, "num_heads": 2, "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 64}
        rope = stock.text_config.rope_parameters | {"mrope_section": [1, 1, 0]}
        ids = {"image_token_id": 1020, "video_token_id": 1021, "vision_start_token_id": 1022}
        config = AutoConfig.for_model(
            "qwen3_5",
            text_config=text | {"rope_parameters": rope, "initializer_range": 0.1},
            vision_config=vision,
            vision_end_token_id=1023,
            **ids,
        )
        torch.manual_seed(0)
        model = enable_hsa(AutoModelForImageTextToText.from_config(config).eval(), CONFIG)
        cache, (ids, inputs) = HSACache(CONFIG), several_images(model, [[(1, 2), (3, 1)]])
        kinds = types(1, ids.shape[1])
        for turn in range(2):
            start, media = ids.shape[1], with_media_types(model, ids, inputs)
            options = {"semantic_ids": kinds, "past_key_values": cache, "max_new_tokens": 6, **GREEDY}
            ids = model.generate(ids, **options, **media)
            check_greedy(model, ids, kinds, start, **with_media_types(model, ids, inputs))
            ids = torch.cat([ids, tokens(1, 8, turn)], 1)
            kinds = torch.cat([torch.nn.functional.pad(kinds, (0, 6), value=2), types(1, 8, turn)], 1)

        more, inputs = several_images(model, [[(1, 2), (3, 1), (2, 2)]])
        ids = torch.cat([ids, more[:, -8:]], 1)
        options = {"semantic_ids": types(1, ids.shape[1]), "past_key_values": cache, **GREEDY}
        with pytest.raises(ValueError, match="reads images and videos in the first turn only"):
            model.generate(ids, max_new_tokens=1, **options, **with_media_types(model, ids, inputs))


def several_images(model, rows, padding=0):
    """Rows of images, each (height, width) in tokens, with text around them; rows are padded left with 0."""
    config, vision, grids, ids = model.config, model.config.vision_config, [], []
    for number, images in enumerate(rows):
        row = tokens(1, 7, number)[0].tolist()
        for height, width in images:
            grids.append([1, height * vision.spatial_merge_size, width * vision.spatial_merge_size])
            image = [config.vision_start_token_id, *[config.image_token_id] * (height * width)]
            row += [*image, config.vision_end_token_id, *tokens(1, 3, height)[0].tolist()]
        ids.append(row)
    length = max(map(len, ids)) + padding
    channels = 3 * vision.temporal_patch_size * vision.patch_size**2
    grids = torch.tensor(grids)
    pixels = torch.randn(int(grids.prod(-1).sum()), channels, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in ids])
    return ids, {"pixel_values": pixels, "image_grid_thw": grids}


@pytest.mark.parametrize("model_type", VISION)
class TestImages:
    @pytest.mark.parametrize("rows", [[[(2, 3), (4, 4), (1, 2)]], [[(4, 4)], [(2, 2), (1, 3), (2, 3)]]])
    @pytest.mark.parametrize("size", [5, 11, 30])
    def test_pieces_give_the_logits_of_one_pass(self, monkeypatch, model_type, rows, size):
        """Several images, longer than a piece, other numbers of them in the rows, left padding."""
        model = enable_hsa(tiny.build_model(model_type), CONFIG)
        ids, inputs = several_images(model, rows, padding=6)
        inputs = with_media_types(model, ids, inputs) | {"attention_mask": (ids != 0).long()}
        inputs |= {"semantic_ids": types(*ids.shape), "return_dict_in_generate": True, "output_logits": True}
        whole = model.generate(ids, max_new_tokens=12, **inputs, **GREEDY)

        monkeypatch.setattr(prefill, "PREFILL_CHUNK", size)
        sizes, cache = watch(model), HSACache(CONFIG, max_waiting=8)
        pieces = model.generate(ids, past_key_values=cache, max_new_tokens=12, **inputs, **GREEDY)
        assert len(sizes) > 12 and sum(sizes) == ids.shape[1] + 11
        assert max(sizes) <= max(size, 18)  # two images that overlap in other rows are at most so long
        for one, other in zip(whole.logits, pieces.logits, strict=True):
            torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-4)
        assert torch.equal(pieces.sequences, whole.sequences)
        assert cache.report().kept_tokens < cache.report().seen_tokens

    def test_text_alone(self, monkeypatch, model_type):
        """Without images, and with those of an earlier turn."""
        model, cache = enable_hsa(tiny.build_model(model_type), CONFIG), HSACache(CONFIG, max_waiting=8)
        monkeypatch.setattr(prefill, "PREFILL_CHUNK", 9)
        ids, kinds = tokens(2, 40), types(2, 40)
        check_greedy(model, model.generate(ids, semantic_ids=kinds, max_new_tokens=9, **GREEDY), kinds, 40)

        ids, inputs = several_images(model, [[(2, 3)]])
        for turn in range(3):
            kinds, start, media = types(*ids.shape), ids.shape[1], with_media_types(model, ids, inputs)
            media = media if turn != 1 else {}  # what is cached may be left out
            kinds = kinds if cache.semantic_ids is None else torch.cat([cache.semantic_ids, kinds], 1)[:, :start]
            ids = model.generate(ids, semantic_ids=kinds, past_key_values=cache, max_new_tokens=9, **media, **GREEDY)
            kinds = torch.cat([kinds[:, :start], torch.full_like(ids[:, start:], 2)], 1)
            check_greedy(model, ids, kinds, start, **with_media_types(model, ids, inputs))
            ids = torch.cat([ids, tokens(1, 25, turn)], 1)

    def test_beams(self, monkeypatch, model_type):
        """Copies of a row share what was read before they were made."""
        model = enable_hsa(tiny.build_model(model_type), CONFIG)
        ids, inputs = several_images(model, [[(4, 4)], [(2, 2), (1, 3), (2, 3)]])
        inputs = with_media_types(model, ids, inputs) | {"attention_mask": (ids != 0).long()}
        inputs |= {"semantic_ids": types(*ids.shape), "num_beams": 3, "num_return_sequences": 2, **GREEDY}
        whole = model.generate(ids, max_new_tokens=8, **inputs)
        monkeypatch.setattr(prefill, "PREFILL_CHUNK", 11)
        assert torch.equal(model.generate(ids, max_new_tokens=8, **inputs), whole)

    def test_media_types_may_be_left_out(self, monkeypatch, model_type):
        """As LLaMA-Factory does; transformers would take images for text."""
        model = enable_hsa(tiny.build_model(model_type), CONFIG)
        ids, inputs = several_images(model, [[(4, 4), (2, 3)]])
        options = {"semantic_ids": types(*ids.shape), "max_new_tokens": 9, **GREEDY}
        output = model.generate(ids, **options, **inputs)
        check_greedy(model, output, options["semantic_ids"], ids.shape[1], **with_media_types(model, output, inputs))
        monkeypatch.setattr(prefill, "PREFILL_CHUNK", 11)
        assert torch.equal(model.generate(ids, **options, **inputs), output)


def test_a_video_with_text_between_its_frames_stays_whole():
    """As Qwen3-VL's, whose frames have time stamps."""
    model = tiny.build_model("qwen3_vl")
    image, video = model.config.image_token_id, model.config.video_token_id
    ids = torch.tensor([[5, video, video, 6, 7, video, video, 8, 9, image, 10], [3, 4, 5, 6, 7, 8, image, 9, 9, 9, 9]])
    merge = model.config.vision_config.spatial_merge_size
    grids = {
        "video_grid_thw": torch.tensor([[2, merge, 2 * merge]]),
        "image_grid_thw": torch.tensor([[1, merge, merge]] * 2),
    }
    pixels = {
        "pixel_values_videos": torch.zeros(4 * merge**2, 1),
        "pixel_values": torch.arange(2.0 * merge**2)[:, None],
    }
    media = MediaPrompt(model.model, ids, grids | pixels)
    assert [media.next_cut(0, place) for place in range(1, 11)] == [1, 1, 1, 1, 1, 1, 7, 8, 9, 10]
    assert [media.next_cut(1, place) for place in range(2, 8)] == [7] * 6
    assert media.last_place() == 10
    chosen = media.select(7)
    assert set(chosen) == {"pixel_values", "image_grid_thw"} and torch.equal(
        chosen["pixel_values"], pixels["pixel_values"][: merge**2]
    )
    assert set(media.select(1, 7)) == {*grids, *pixels} and media.select(10) == {}
    with pytest.raises(ValueError, match="The cache ends inside an image or video .video_grid_thw, number 0"):
        media.select(4)
