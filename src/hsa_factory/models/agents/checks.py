"""What is refused before anything is read: tokens that a batch of agents cannot read, options that it would not honour."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from .reply_writer import encode


_MEDIA = tuple(f"{kind}_token_{end}" for kind in ("image", "video", "audio") for end in ("id", "index"))
# Of a generation configuration: read, drawing (an argument of AgentBatch's), lengths, and what changes no token.
_ALLOWED = frozenset(
    "eos_token_id pad_token_id bos_token_id decoder_start_token_id do_sample temperature top_k top_p max_length max_new_tokens "
    "use_cache cache_implementation cache_config prefill_chunk_size early_stopping length_penalty output_attentions "
    "output_hidden_states output_scores output_logits return_dict_in_generate is_assistant num_assistant_tokens "
    "num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind target_lookbehind low_memory "
    "max_matching_ngram_size compile_config disable_compile continuous_batching_config transformers_version _from_model_config "
    "num_beam_groups diversity_penalty renormalize_logits remove_invalid_values".split()
)
_OFF = dict.fromkeys(
    "repetition_penalty encoder_repetition_penalty typical_p num_beams num_return_sequences guidance_scale top_h".split(),
    1,
)


class TokenCheck:
    """Refuses tokens that a model cannot read as text.

    Args:
        model: The model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        weight: Any = model.get_input_embeddings().weight
        self._number = int(weight.shape[0])
        known = ((name, getattr(model.config, name, None)) for name in _MEDIA)
        self._media = {token: name for name, token in known if isinstance(token, int)}

    def check(self, row: int, ids: Sequence[int], has_images: bool = False) -> None:
        """Check what a row is given. `has_images`: the images that tokens stand for are there.

        Raises:
            ValueError: Naming the row and the token.
        """
        for place, token in enumerate(ids):
            kind = self._media[token].split("_")[0] if token in self._media else None
            if kind is not None and not (has_images and kind == "image"):
                raise ValueError(
                    f"row {row}: token {place} is {token}, which stands for {kind} ({self._media[token]}). append() reads "
                    "text only: give AgentBatch the processor and images by append_messages(), describe it in words, or call "
                    "model.generate with an HSACache and the processor's inputs."
                )
            if token >= self._number:
                raise ValueError(
                    f"row {row}: token {place} is {token}, but the model knows {self._number} tokens. Give it the tokenizer that it "
                    "was trained with, or resize its embeddings."
                )


def check_generation_config(config: Any) -> None:
    """Refuse what a model's generation configuration asks for and replies would be written without.

    Raises:
        ValueError: Naming the option.
    """
    for name, value in ({} if config is None else config.to_diff_dict()).items():
        is_off = value is None or not value or value == _OFF.get(name)
        if name not in _ALLOWED and not is_off:
            raise ValueError(
                f"AgentBatch does not apply {name} = {value!r} of model.generation_config. Set it to None there, and if it is meant, "
                "pass what does the same as logits_processor=[…] (it sees the reply under way)."
            )


def read_choices(tokenizer: Any, choices: Mapping[int, Any], limit: int) -> dict[int, list[list[int]]]:
    """Return the tokens of what replies must be one of.

    Args:
        tokenizer: Of the model.
        choices: Texts by row.
        limit: Tokens of a reply.

    Raises:
        ValueError: If there is no choice, or one could not be written to its end; names the row.
    """
    read = {}
    for row, texts in choices.items():
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise ValueError(f"choices: row {row}: expected a list of texts, one at least, got {texts!r:.60}.")
        read[row] = [encode(tokenizer, f"choices of row {row}", text) for text in texts]
        for text, ids in zip(texts, read[row]):
            if len(ids) > limit:
                raise ValueError(
                    f"choices: row {row}: {text!r:.60} has {len(ids)} tokens, but max_new_tokens is {limit}. Raise it."
                )
    return read
