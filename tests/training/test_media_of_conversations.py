"""Pictures and videos: their tokens take the type of the part that they stand for, and none is ever cut."""

import numpy as np
import pytest
from chatting_templates import TEMPLATES, new_tokenizer, show
from PIL import Image

from hsa_factory import HSAConfig, tiny
from hsa_factory.training import ConversationLeftOut, encode_conversation


pytest.importorskip("torchvision")


def picture(width):
    return Image.new("RGB", (width, 56), (width, 3, 4))


def conversation():
    pictures = [
        {"type": "image", "image": picture(84), "semantic_type": "LANDMARK"},
        {"type": "image", "image": picture(112), "semantic_type": "NOISE"},
    ]
    texts = [{"type": "text", "text": "what"}, {"type": "text", "text": "?", "semantic_type": "NOISE"}]
    video = {"type": "video", "video": np.zeros((4, 56, 56, 3), np.uint8)}
    return [
        {"role": "system", "content": "see", "semantic_type": "LANDMARK"},
        {"role": "user", "content": [*pictures, *texts]},
        {"role": "assistant", "content": "a dog", "semantic_type": "NOISE"},
        {"role": "user", "content": [video, {"type": "text", "text": "this"}], "semantic_type": "NOISE"},
        {"role": "assistant", "content": [{"type": "text", "text": "a cat"}], "semantic_type": "LANDMARK"},
    ]


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def processor(request):
    name = "qwen3_vl" if request.param == "qwen3_vl" else "qwen2_vl"
    processor = tiny.build_processor(request.param, new_tokenizer(name))
    processor.chat_template = TEMPLATES[name]
    return processor


def as_parts(message):
    """Return a message in the one form that transformers' processors tokenize."""
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}] if isinstance(content, str) else list(content)}


def test_tokens_of_media_have_the_type_of_their_part(processor):
    messages = conversation()
    row = encode_conversation(processor, messages, HSAConfig(noise_turns=1))
    official = processor.apply_chat_template(
        [as_parts(message) for message in messages], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert row["input_ids"] == official["input_ids"][0].tolist()
    assert row["mm_token_type_ids"] == official["mm_token_type_ids"][0].tolist()
    assert row["image_grid_thw"].tolist() == official["image_grid_thw"].tolist()
    shown = show(row, processor.tokenizer)
    assert [line[:4] for line in shown] == [
        "L 0 ",
        "G 0 ",
        "L 0 ",
        "N 0 ",
        "G 0 ",
        "N 0 ",
        "G 0 ",
        "N*0 ",
        "N 1 ",
        "L*1 ",
    ]
    pads = [line.count("<|image_pad|>") for line in shown]
    assert pads[2] == 6 and pads[3] == 8 and sum(pads) == 14
    assert shown[2].startswith("L 0 <|vision_start|>") and shown[2].endswith("<|vision_end|>")
    assert "<|video_pad|>" in shown[8] and shown[9] == "L*1 a cat<|im_end|>\n"


def test_media_are_never_cut(processor):
    messages = conversation()[:3]
    whole = encode_conversation(processor, messages, HSAConfig())
    length = len(whole["input_ids"]) - 2
    cut = encode_conversation(processor, messages, HSAConfig(), max_length=length)
    assert [len(cut[name]) for name in ("input_ids", "labels", "mm_token_type_ids")] == [length] * 3
    with pytest.raises(ConversationLeftOut, match="max_length = 20 would cut an image") as left_out:
        encode_conversation(processor, messages, HSAConfig(), max_length=20)
    assert left_out.value.reason == "media do not fit into max_length"


def test_pictures_in_the_form_of_openai(processor, tmp_path):
    picture(84).save(tmp_path / "dog.png")
    part = {"type": "image_url", "image_url": {"url": str(tmp_path / "dog.png")}, "semantic_type": "NOISE"}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "what"}]}, conversation()[2]]
    row = encode_conversation(processor, messages, HSAConfig())
    pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert {kind for token, kind in zip(row["input_ids"], row["semantic_ids"]) if token == pad} == {2}
    assert messages[0]["content"][0] is part


def test_a_conversation_without_media(processor):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    row = encode_conversation(processor, messages, HSAConfig())
    assert processor.tokenizer.decode([label for label in row["labels"] if label != -100]) == "yo<|im_end|>\n"
    assert "pixel_values" not in row
