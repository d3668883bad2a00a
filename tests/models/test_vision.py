"""Vision-language models: typed prompts with pictures, and the tower stays as it is."""

import pytest
import torch
from helpers import VISION, build, close, differs, enabled, run

from hsa_factory import HSAConfig, enable_hsa, tiny


class TestVision:
    @pytest.fixture
    def pictures(self, tiny_tokenizer):
        pytest.importorskip("torchvision")
        generator = torch.Generator().manual_seed(0)

        def pictures(model_type, padding_side="left"):
            processor = tiny.build_processor(model_type, tiny_tokenizer)
            images = [
                torch.randint(0, 255, (3, *size), dtype=torch.uint8, generator=generator)
                for size in ((112, 84), (56, 140))
            ]
            picture = "<|vision_start|><|image_pad|><|vision_end|>"
            texts = [f"see {picture} and the robot", f"{picture}go"]
            return processor(text=texts, images=images, padding=True, padding_side=padding_side, return_tensors="pt")

        return pictures

    @pytest.mark.parametrize("model_type", VISION)
    def test_pictures(self, model_type, tiny_tokenizer, pictures):
        model, inputs = build(model_type, tokenizer=tiny_tokenizer), pictures(model_type)
        real = inputs["attention_mask"].bool()
        assert not real.all()
        stock = run(model, **inputs)
        enable_hsa(model, HSAConfig(noise_window=3))
        assert torch.equal(run(model, **inputs), stock)
        kinds = torch.zeros_like(inputs["input_ids"])
        close(run(model, **inputs, semantic_ids=kinds)[real], stock[real])
        kinds[inputs["input_ids"] == model.config.image_token_id] = 2
        differs(run(model, **inputs, semantic_ids=kinds)[real], stock[real])

    @pytest.mark.parametrize("model_type", VISION)
    def test_pictures_padded_left_and_right(self, model_type, tiny_tokenizer):
        pytest.importorskip("torchvision")
        model = enabled(model_type, tokenizer=tiny_tokenizer)
        picture = torch.randint(0, 255, (3, 112, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        processor = tiny.build_processor(model_type, tiny_tokenizer)
        texts = ["a <|vision_start|><|image_pad|><|vision_end|> robot", "<|vision_start|><|image_pad|><|vision_end|>"]
        outputs = []
        for side in ("left", "right"):
            inputs = processor(
                text=texts, images=[picture, picture], padding=True, padding_side=side, return_tensors="pt"
            )
            real = inputs["attention_mask"].bool()
            kinds = torch.full_like(inputs["input_ids"], 2)
            kinds[real] = torch.arange(int(real.sum())) % 3
            outputs.append(run(model, **inputs, semantic_ids=kinds)[real])
        close(*outputs)

    @pytest.mark.parametrize("model_type", VISION)
    def test_the_tower_stays_as_it_is(self, model_type, tiny_tokenizer, pictures):
        model, inputs = build(model_type, tokenizer=tiny_tokenizer), pictures(model_type)
        tower = model.model.visual
        former, names = tower.config._attn_implementation, sorted(vars(tower.config))
        see = lambda: tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        with torch.no_grad():
            before = see()
            enable_hsa(model, HSAConfig(noise_window=0, landmark_window=0, global_window=0))
            after = see()
        assert tower.config._attn_implementation == former == "sdpa" and sorted(vars(tower.config)) == names
        assert model.model.language_model.config._attn_implementation == "hsa"
        assert torch.equal(after.last_hidden_state, before.last_hidden_state)
        assert torch.equal(after.pooler_output, before.pooler_output)
        assert not any("hsa_state" in vars(module) for module in tower.modules())
