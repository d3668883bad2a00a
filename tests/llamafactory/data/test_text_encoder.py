"""One text's ids: those of `tokenizer.encode`, whatever the tokenizer and the state that it was left in."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hsa_factory import HSAConfig, tiny
from hsa_factory.llamafactory.data.text_encoder import TextEncoder, known_texts


SPECIAL = ("<|im_start|>", "<|im_end|>", "<m0>", "<m40>", "<|feedback|>")
texts = st.lists(st.text(max_size=8) | st.sampled_from([*SPECIAL, "fridge ", " the red apple", "\n"])).map("".join)


@pytest.fixture(scope="module")
def tokenizers(lf):
    """A fast tokenizer, and one that reads special tokens as text."""
    plain, split = lf.new_tokenizer(lf.MARKER), lf.new_tokenizer(lf.MARKER)
    split.split_special_tokens = True
    split.encode("", add_special_tokens=False)  # sets the backend as the option says
    return plain, split


@given(texts, st.booleans())
def test_ids_and_offsets_are_the_tokenizers(tokenizers, text, splits):
    tokenizer = tokenizers[splits]
    encoder = TextEncoder(tokenizer)
    assert encoder.backend is not None
    expected = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert encoder.encode(text) == tokenizer.encode(text, add_special_tokens=False) == expected["input_ids"]
    assert encoder.encode_with_offsets(text) == (expected["input_ids"], expected["offset_mapping"])


@pytest.mark.parametrize(
    "leave",
    [
        lambda tokenizer: tokenizer.backend_tokenizer.enable_truncation(2),
        lambda tokenizer: tokenizer.backend_tokenizer.enable_padding(length=50),
        lambda tokenizer: setattr(tokenizer, "split_special_tokens", True),
    ],
)
def test_the_state_that_the_last_call_left_does_not_matter(lf, leave):
    text = "<|im_start|>The robot opens the fridge.<|im_end|>"
    other = lf.new_tokenizer()
    tokenizer = lf.new_tokenizer()
    leave(tokenizer)
    other.split_special_tokens = tokenizer.split_special_tokens
    expected = other(text, add_special_tokens=False, return_offsets_mapping=True)
    encoder = TextEncoder(tokenizer)
    assert encoder.backend is None
    assert encoder.encode(text) == expected["input_ids"]
    leave(tokenizer)
    ids, offsets = TextEncoder(tokenizer).encode_with_offsets(text)
    assert (ids, offsets) == (expected["input_ids"], expected["offset_mapping"])


def test_a_tokenizer_with_an_encoding_of_its_own_is_called(lf):
    by_instance, by_class = lf.new_tokenizer(), lf.new_tokenizer()
    by_instance.encode = lambda text, **kwargs: [len(text)]

    class Own(type(by_class)):
        def _encode_plus(self, text, *args, **kwargs):
            return super()._encode_plus(text.upper(), *args, **kwargs)

    by_class.__class__ = Own
    assert TextEncoder(by_instance).encode("fridge") == [6]
    upper = lf.new_tokenizer().encode("FRIDGE", add_special_tokens=False)
    assert TextEncoder(by_class).encode("fridge") == TextEncoder(by_class).encode_with_offsets("fridge")[0] == upper


def test_a_slow_tokenizer_knows_no_offsets():
    class Slow:
        is_fast = False
        model_max_length = 100

        def encode(self, text, add_special_tokens):
            assert not add_special_tokens
            return list(text.encode())

    assert TextEncoder(Slow()).encode("ab") == [97, 98]
    assert TextEncoder(Slow()).encode_with_offsets("ab") == ([97, 98], None)


def test_a_text_that_is_too_long_for_the_model_is_warned_of(lf, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = lf.new_tokenizer()
    tokenizer.model_max_length = 5
    text = "The robot opens the fridge. " * 4
    ids = TextEncoder(tokenizer).encode(text)
    assert len(ids) > 5 and ids == lf.new_tokenizer().encode(text, add_special_tokens=False)
    assert "longer than the specified maximum sequence length" in caplog.text


@pytest.mark.parametrize("name", ["encode", "encode_with_offsets"])
def test_half_a_character_is_named(tokenizers, name):
    with pytest.raises(ValueError, match=r"the text 'take \\ud83d it' holds half a character"):
        getattr(TextEncoder(tokenizers[0]), name)("take \ud83d it")
    with pytest.raises(TypeError):
        getattr(TextEncoder(tokenizers[0]), name)(5)


CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}{{ '<act>' + message.content + '<end>' }}{%- else -%}{{ message.content }}{%- endif -%}"
    "{%- endfor -%}{{- '<act>' if add_generation_prompt -}}"
)


def word_tokenizer(*words, **special):
    """A vocabulary of whole words, which raises at any other unless `special` names an unknown token."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, **special))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    options = {
        "tokenizer_object": backend,
        "pad_token": "<pad>",
        "eos_token": "<end>",
        "extra_special_tokens": ["<act>"],
    }
    return PreTrainedTokenizerFast(chat_template=CHAT_TEMPLATE, **options, **special)


WORDS = ("<pad>", "<act>", "<end>", "open", "fridge", "look", "kitchen")


@pytest.mark.parametrize("special", [{}, {"unk_token": "<unk>"}])
def test_what_opens_a_reply_is_found_with_words_that_the_tokenizer_knows(lf, tmp_path, special):
    tokenizer = word_tokenizer(*WORDS, *special.values(), **special)
    tiny.save_tiny("qwen3", tmp_path / "model", [], tokenizer=tokenizer)
    messages = [lf.say("user", "open look", "NOISE"), lf.say("assistant", "look", "NOISE")] * 2
    args = lf.args(lf.write_data(tmp_path, data=[messages]), "data", tmp_path / "model", template=None)
    prepared = lf.prepare(args, HSAConfig(noise_window=0))
    assert prepared.rows()[0]["input_ids"][:4] == tokenizer.encode("open look <act> look")
    first, second = (tokenizer.encode(text) for text in known_texts(tokenizer))
    assert first[-1] != second[-1], "else the end of the text would count as the template's"


def test_a_tokenizer_that_knows_one_word_is_no_tokenizer():
    with pytest.raises(ValueError, match="no two tokens"):
        known_texts(word_tokenizer("<pad>", "<act>", "<end>", "look"))
