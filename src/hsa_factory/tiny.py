"""Tiny models and a tokenizer, built offline from nothing, for tests and the quickstart.

They are real transformers models of real architectures, only with small numbers and random weights, and they are
saved in the usual layout, so that everything that trains or serves a downloaded checkpoint takes them as well.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)


IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = tuple(
    (
        "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
        f"<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> {IMAGE_TOKEN} {VIDEO_TOKEN}"
    ).split()
)
"""The special tokens of Qwen2, Qwen2.5 and Qwen3, in their order."""

PLAIN_ADDED_TOKENS = tuple(
    (
        "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
        "<tool_response> </tool_response> <think> </think>"
    ).split()
)
"""Tokens that Qwen3 adds without calling them special: ``skip_special_tokens`` keeps them."""

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen cuts text into words before byte-pair merging."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}
            {%- set pad = '<|' + part.type + '_pad|>' -%}
            {{- part.text if part.type == 'text' else '<|vision_start|>' + pad + '<|vision_end|>' -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt -}}
"""
"""ChatML, with pictures and videos as content parts."""

WINDOW = 16
"""Sliding window of the models that have one: small enough to matter in a short test."""


def build_tokenizer(
    texts: Iterable[str], vocab_size: int = 1024, extra_special_tokens: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with Qwen's word splitting, special tokens and ChatML template.

    It knows no ``<|feedback|>``, as no released checkpoint does. The same texts give the same tokenizer. Every text
    comes back from its ids unchanged, up to the Unicode normalisation NFC that Qwen applies.

    Args:
        texts: What to learn the merges from; with too few texts the vocabulary stays smaller.
        vocab_size: Upper limit for ``len(tokenizer)``, added tokens included.
        extra_special_tokens: Special tokens to add after Qwen's own.

    Raises:
        ValueError: If the vocabulary has no room for the 256 bytes and the added tokens.
    """
    special = list(dict.fromkeys([*SPECIAL_TOKENS, *extra_special_tokens]))
    added = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    added += [AddedToken(token, special=False, normalized=False) for token in PLAIN_ADDED_TOKENS]
    added += [AddedToken(token, special=True, normalized=False) for token in special[len(SPECIAL_TOKENS) :]]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(added):
        raise ValueError(
            f"build_tokenizer: vocab_size = {vocab_size} is too small: {len(alphabet)} bytes and {len(added)} added "
            f"tokens need at least {len(alphabet) + len(added)}."
        )

    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.NFC()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added), initial_alphabet=sorted(alphabet), show_progress=False
    )
    learner.train_from_iterator(texts, trainer=trainer)

    learnt = json.loads(learner.to_str())["model"]
    options: dict[str, Any] = {
        "vocab": learnt["vocab"],
        "merges": [tuple(pair) for pair in learnt["merges"]],
        "unk_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "extra_special_tokens": [token for token in special if token not in ("<|im_end|>", "<|endoftext|>")],
        "added_tokens_decoder": {len(learnt["vocab"]) + i: token for i, token in enumerate(added)},
        "model_max_length": 32768,
    }
    tokenizer = Qwen2Tokenizer(**options)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


# -- configurations --------------------------------------------------------------------------------------------


def _mrope(spatial: float, **more: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Share the ``head_dim / 2`` rotary frequencies between time, height and width (`spatial` each)."""

    def rope_parameters(text: dict[str, Any]) -> dict[str, Any]:
        half = text.get("head_dim", text["hidden_size"] // text["num_attention_heads"]) // 2
        side = int(half * spatial)
        section = [half - 2 * side, side, side]
        return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section, **more}

    return rope_parameters


_HEAD_DIM = {"head_dim": 16}
_EXPERTS = {"num_experts_per_tok": 2}
_ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_YARN = {"rope_type": "yarn", "rope_theta": 1.5e5, "factor": 8.0, "original_max_position_embeddings": 4096}
_PARTIAL_ROPE = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.5}
_LINEAR_HEADS = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
_LINEAR_DIMS = {"linear_key_head_dim": 16, "linear_value_head_dim": 16}

TEXT_MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {**_HEAD_DIM},
    "qwen3_moe": {**_HEAD_DIM, **_EXPERTS, "num_experts": 4, "moe_intermediate_size": 64},
    "mistral": {**_HEAD_DIM, "sliding_window": WINDOW},
    "gemma2": {**_HEAD_DIM, **_ALTERNATING, "query_pre_attn_scalar": 16},
    "gemma3_text": {**_HEAD_DIM, **_ALTERNATING, "query_pre_attn_scalar": 16},
    "phi3": {"sliding_window": WINDOW, "original_max_position_embeddings": 32768},
    "gpt_oss": {**_HEAD_DIM, **_EXPERTS, **_ALTERNATING, "num_local_experts": 4, "rope_parameters": _YARN},
    "qwen3_5_text": {
        **_HEAD_DIM,
        **_LINEAR_HEADS,
        **_LINEAR_DIMS,
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "rope_parameters": {**_PARTIAL_ROPE, "mrope_section": [2, 1, 1], "mrope_interleaved": True},
    },
}
"""What each text model needs besides `COMMON`."""

_TOWER = {"depth": 2, "num_heads": 2}
_NARROW_TOWER = {**_TOWER, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": "text"}

VISION_MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": (
        {"rope_parameters": _mrope(3 / 8)},
        {**_TOWER, "embed_dim": 32, "mlp_ratio": 2, "hidden_size": "text"},
    ),
    "qwen2_5_vl": (
        {"rope_parameters": _mrope(3 / 8)},
        {**_NARROW_TOWER, "window_size": 56, "fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": (
        {**_HEAD_DIM, "rope_parameters": _mrope(5 / 16, mrope_interleaved=True)},
        {**_NARROW_TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
    ),
}
"""What each vision-language model needs: of the language model, and of the vision tower ("text": its width)."""

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "initializer_range": 0.1,  # at width 64 the usual 0.02 would leave attention almost uniform
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MODEL_TYPES = (*TEXT_MODELS, *VISION_MODELS)
"""Every name that `tiny_config`, `build_model` and `save_tiny` take."""

_TOP_LEVEL = (
    "tie_word_embeddings",
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
)


def tiny_config(model_type: str, vocab_size: int, **overrides: Any) -> PreTrainedConfig:
    """Return the configuration of a tiny model: width 64, two layers (hybrids: four), 4 heads, 2 key/value heads.

    Args:
        model_type: One of `MODEL_TYPES`.
        vocab_size: Number of token embeddings.
        **overrides: Options of that configuration to set. Of a vision-language model these are options of the
            language model, except the token ids, ``tie_word_embeddings`` and ``vision_config`` (a mapping, merged).
            Without token ids, the four last ids of the vocabulary stand for them.

    Raises:
        ValueError: If the model type or an option is unknown.
    """
    if model_type not in MODEL_TYPES:
        raise ValueError(f"Unknown model type {model_type!r}. Allowed: {', '.join(MODEL_TYPES)}.")

    vision_options = overrides.pop("vision_config", {})
    top = {name: overrides.pop(name) for name in _TOP_LEVEL if name in overrides}
    if model_type in TEXT_MODELS:
        options = {**COMMON, **TEXT_MODELS[model_type], "vocab_size": vocab_size, **overrides, **top}
        _check_options(model_type, AutoConfig.for_model(model_type), overrides)
        if vision_options:
            raise ValueError(f"tiny_config: {model_type} has no vision tower, so it takes no vision_config.")
        return AutoConfig.for_model(model_type, **options)

    extra, vision = VISION_MODELS[model_type]
    tied = top.setdefault("tie_word_embeddings", False)
    text = {**COMMON, **extra, "vocab_size": vocab_size, "tie_word_embeddings": tied, **overrides}
    text = {name: value(text) if callable(value) else value for name, value in text.items()}
    vision = {name: text["hidden_size"] if value == "text" else value for name, value in vision.items()}
    vision = {**vision, "initializer_range": text["initializer_range"], **vision_options}
    ids = {name: vocab_size - 4 + i for i, name in enumerate(_TOP_LEVEL[1:])}
    stock = AutoConfig.for_model(model_type)
    _check_options(model_type, stock.text_config, overrides)
    _check_options(model_type, stock.vision_config, vision_options)
    return AutoConfig.for_model(model_type, text_config=text, vision_config=vision, **{**ids, **top})


def _check_options(model_type: str, stock: PreTrainedConfig, options: dict[str, Any]) -> None:
    """Refuse options that the configuration does not have: transformers would keep them and do nothing."""
    known = {*COMMON, *TEXT_MODELS.get(model_type, {})}
    unknown = [name for name in options if name not in known and not hasattr(stock, name)]
    if unknown:
        raise ValueError(f"tiny_config: {type(stock).__name__} ({model_type}) has no option {', '.join(unknown)}.")


# -- models ----------------------------------------------------------------------------------------------------


def build_model(
    model_type: str,
    tokenizer: PreTrainedTokenizerFast | None = None,
    vocab_size: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> PreTrainedModel:
    """Build a tiny model with random weights, in evaluation mode; the global random state stays as it was.

    Args:
        model_type: One of `MODEL_TYPES`.
        tokenizer: Gives the vocabulary's size, the end and padding tokens, and the picture tokens' ids.
        vocab_size: Number of token embeddings; None: as many as the tokenizer has tokens, 1024 without one.
        seed: Decides the weights.
        dtype: Type of the weights.
        **overrides: Options for `tiny_config`.

    Raises:
        ValueError: If the model type or an option is unknown.
    """
    if tokenizer is not None:
        known = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        if model_type in VISION_MODELS:
            tokens = (IMAGE_TOKEN, VIDEO_TOKEN, "<|vision_start|>", "<|vision_end|>")
            known |= {
                name: tokenizer.convert_tokens_to_ids(token)
                for name, token in zip(_TOP_LEVEL[1:], tokens, strict=True)
            }
        overrides = known | overrides
    if vocab_size is None:
        vocab_size = 1024 if tokenizer is None else len(tokenizer)

    config = tiny_config(model_type, vocab_size, **overrides)
    auto_class = AutoModelForImageTextToText if model_type in VISION_MODELS else AutoModelForCausalLM
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        model = auto_class.from_config(config, dtype=dtype)
    return model.eval()


def build_processor(model_type: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Build the processor of a vision-language model, for pictures of about 4 to 64 tokens; needs torchvision."""
    import transformers

    size = {"shortest_edge": 56 * 56, "longest_edge": 224 * 224}
    patch = {"patch_size": 16 if model_type == "qwen3_vl" else 14}
    video_class = "Qwen3VLVideoProcessor" if model_type == "qwen3_vl" else "Qwen2VLVideoProcessor"
    names = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}
    return getattr(transformers, names[model_type])(
        image_processor=transformers.Qwen2VLImageProcessor(size=dict(size), **patch),
        video_processor=getattr(transformers, video_class)(size=dict(size), **patch),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )


def save_tiny(model_type: str, directory: str | Path, texts: Iterable[str], seed: int = 0, **overrides: Any) -> Path:
    """Write a tiny model, its tokenizer and, for vision-language types, its processor into a directory.

    ``from_pretrained`` of transformers' auto classes loads the directory, and so does LLaMA-Factory.

    Args:
        model_type: One of `MODEL_TYPES`.
        directory: Where to write; made if missing.
        texts: What the tokenizer is trained on.
        seed: Decides the weights.
        **overrides: Options for `build_model` and `tiny_config`; ``tokenizer`` takes a ready tokenizer instead of
            training one.

    Returns:
        The directory.
    """
    directory = Path(directory)
    tokenizer = overrides.pop("tokenizer", None) or build_tokenizer(texts)
    build_model(model_type, tokenizer, seed=seed, **overrides).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if model_type in VISION_MODELS:
        build_processor(model_type, tokenizer).save_pretrained(directory)
    return directory
