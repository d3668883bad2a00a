"""Tiny models and the tokenizer: real, seeded, loadable, and without side effects."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from hsa_factory import tiny


TEXTS = [
    "The robot opens the fridge and takes the red apple out of it. ",
    "<think>The table is the place to go.</think><DecisionMaking>navigate to table</DecisionMaking> ",
    "机器人打开冰箱，拿出一个苹果。",
] * 4


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.build_tokenizer(TEXTS)


def run(model, tokenizer, text="the robot takes the apple"):
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return model(input_ids=ids).logits


class TestTokenizer:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "plain words",
            "a  b\t\n\n c \r\n",
            "héllo wörld",
            "机器人打开冰箱",
            "👩‍👩‍👧 \u200b\x00\uffff",
            "مرحبا 안녕",
            "it's 12,345.6",
        ],
    )
    def test_every_text_comes_back(self, tokenizer, text):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    def test_training_is_deterministic(self, tokenizer):
        again = tiny.build_tokenizer(iter(TEXTS))
        assert again.get_vocab() == tokenizer.get_vocab()
        assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()

    def test_qwen_tokens_are_single_ids(self, tokenizer):
        for token in (*tiny.SPECIAL_TOKENS, *tiny.PLAIN_ADDED_TOKENS):
            assert tokenizer.tokenize(f"a{token}b") == ["a", token, "b"]
        assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
        assert tokenizer.bos_token is None and tokenizer.unk_token is None

    def test_thinking_tags_survive_skipping_special_tokens(self, tokenizer):
        ids = tokenizer("<|im_start|><think>x</think><|im_end|>")["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>x</think>"

    def test_feedback_token_is_absent_unless_asked_for(self, tokenizer):
        assert len(tokenizer.tokenize("<|feedback|>")) > 1
        extended = tiny.build_tokenizer(TEXTS, extra_special_tokens=["<|feedback|>"])
        assert extended.tokenize("<|feedback|>") == ["<|feedback|>"]
        assert len(extended) == len(tokenizer) + 1

    def test_vocabulary_size(self, tokenizer):
        assert len(tokenizer) <= 1024
        assert len(tiny.build_tokenizer(TEXTS, vocab_size=300)) == 300
        with pytest.raises(ValueError, match="vocab_size = 270 is too small"):
            tiny.build_tokenizer(TEXTS, vocab_size=270)

    def test_chat_template(self, tokenizer):
        messages = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
            {"role": "assistant", "content": "a cup"},
        ]
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>what?<|im_end|>\n"
            "<|im_start|>assistant\na cup<|im_end|>\n<|im_start|>assistant\n"
        )


class TestConfig:
    def test_unknown_model_type_lists_the_known_ones(self):
        with pytest.raises(ValueError, match="Unknown model type 'qwen9'.*llama.*qwen3_vl"):
            tiny.tiny_config("qwen9", 512)

    @pytest.mark.parametrize("model_type", ["qwen3", "qwen2_vl"])
    def test_unknown_option_is_refused(self, model_type):
        with pytest.raises(ValueError, match="no option hiden_size"):
            tiny.tiny_config(model_type, 512, hiden_size=32)

    def test_overrides_reach_the_language_model(self):
        config = tiny.tiny_config("qwen2_5_vl", 512, hidden_size=128, image_token_id=7, vision_config={"depth": 1})
        assert config.text_config.hidden_size == config.vision_config.out_hidden_size == 128
        assert sum(config.text_config.rope_parameters["mrope_section"]) == 128 // 4 // 2
        assert (config.image_token_id, config.vision_config.depth) == (7, 1)

    @pytest.mark.parametrize("model_type", ["mistral", "gemma2", "gemma3_text", "phi3", "gpt_oss"])
    def test_sliding_windows_are_small(self, model_type):
        assert tiny.tiny_config(model_type, 512).sliding_window == 16

    def test_hybrid_has_both_kinds_of_layers(self):
        assert set(tiny.tiny_config("qwen3_5_text", 512).layer_types) == {"linear_attention", "full_attention"}


class TestModel:
    @pytest.mark.parametrize("model_type", tiny.MODEL_TYPES)
    def test_saved_model_loads_and_gives_the_same_logits(self, model_type, tokenizer, tmp_path):
        state = torch.get_rng_state()
        model = tiny.build_model(model_type, tokenizer, seed=3)
        if model_type in tiny.VISION_MODELS:
            pytest.importorskip("torchvision")
        tiny.save_tiny(model_type, tmp_path, TEXTS, seed=3)
        assert torch.equal(torch.get_rng_state(), state)

        text = model.config.get_text_config()
        assert (text.hidden_size, text.num_attention_heads, text.num_key_value_heads) == (64, 4, 2)
        assert text.vocab_size == model.get_input_embeddings().num_embeddings == len(tokenizer)

        vision = model_type in tiny.VISION_MODELS
        auto_class = AutoModelForImageTextToText if vision else AutoModelForCausalLM
        loaded = auto_class.from_pretrained(tmp_path)
        reloaded = AutoTokenizer.from_pretrained(tmp_path)
        assert type(loaded) is type(model)
        assert reloaded.get_vocab() == tokenizer.get_vocab()
        assert reloaded.chat_template == tokenizer.chat_template
        logits = run(model, tokenizer)
        assert logits.isfinite().all()
        assert torch.equal(run(loaded, reloaded), logits)

    def test_seed_decides_the_weights(self, tokenizer):
        first, same, other = (run(tiny.build_model("qwen3", tokenizer, seed=seed), tokenizer) for seed in (0, 0, 1))
        assert torch.equal(first, same) and not torch.equal(first, other)

    def test_dtype_and_vocabulary_without_tokenizer(self):
        model = tiny.build_model("llama", vocab_size=333, dtype=torch.bfloat16)
        assert model.get_input_embeddings().weight.shape == (333, 64)
        assert model.dtype == torch.bfloat16

    @pytest.mark.parametrize("model_type", tiny.VISION_MODELS)
    def test_pictures_and_videos_reach_the_logits(self, model_type, tokenizer, tmp_path):
        pytest.importorskip("torchvision")
        tiny.save_tiny(model_type, tmp_path, [], tokenizer=tokenizer)
        model = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
        processor = AutoProcessor.from_pretrained(tmp_path)

        for kind, tensor in (("image", torch.zeros(3, 112, 112)), ("video", torch.zeros(4, 3, 64, 64))):
            text = f"<|vision_start|><|{kind}_pad|><|vision_end|>what?"
            answers = []
            for value in (30, 220):
                inputs = processor(
                    text=[text], **{f"{kind}s": [(tensor + value).to(torch.uint8)]}, return_tensors="pt"
                )
                with torch.no_grad():
                    answers.append(model(**inputs).logits)
            assert answers[0].isfinite().all()
            assert not torch.allclose(*answers)


def test_directory_is_returned_and_made(tokenizer, tmp_path: Path):
    directory = tiny.save_tiny("qwen3", tmp_path / "deep" / "model", [], tokenizer=tokenizer)
    assert (directory / "config.json").is_file() and (directory / "tokenizer.json").is_file()
