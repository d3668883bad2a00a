"""The rules of the checkpoint that an engine serves, and what of them holds for its requests."""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoTokenizer
from vllm.config import ModelConfig, VllmConfig

from ..config import CONFIG_NAME, HSAConfig
from ..models.cache.tagger import Tagger
from ..models.generation.rule_tagger import make_tagger
from ..serving_checkpoint import PREFIX
from .types import InvalidTypes, PromptTypes


def has_hsa(vllm_config: VllmConfig) -> bool:
    """Whether the model that is served names HSA in its architecture."""
    model_config = vllm_config.model_config
    return model_config is not None and str(model_config.architecture).startswith(PREFIX)


def find_rules(model_config: ModelConfig) -> Path | None:
    """Return the directory that has a model's ``hsa_config.json``, from the Hugging Face Hub if the model is from there.

    None: there is none, or the Hub was not asked and none was downloaded before.
    """
    directory = Path(model_config.model)
    if not directory.is_dir():
        try:
            return Path(hf_hub_download(model_config.model, CONFIG_NAME, revision=model_config.revision)).parent
        except EntryNotFoundError:
            return None
    return directory if (directory / CONFIG_NAME).is_file() else None


def serving_config(vllm_config: VllmConfig) -> HSAConfig | None:
    """Return the rules of the checkpoint that is served. None: it has no HSA.

    Raises:
        ValueError: If it names HSA, but has no readable ``hsa_config.json``.
    """
    if not has_hsa(vllm_config):
        return None
    directory = find_rules(vllm_config.model_config)
    if directory is None:
        raise ValueError(
            f"{vllm_config.model_config.model} names HSA in its architecture, but has no {CONFIG_NAME}: copy it from where the model was "
            "trained."
        )
    return HSAConfig.from_pretrained(directory)


def load_tokenizer(model_config: ModelConfig) -> Any:
    """Return a tokenizer of the model for its caller alone; vLLM's own is used from several threads."""
    return AutoTokenizer.from_pretrained(
        model_config.tokenizer,
        revision=model_config.tokenizer_revision,
        trust_remote_code=model_config.trust_remote_code,
    )


class TaggerMaker:
    """Makes what types the generated tokens of each request, as `generate` does.

    Args:
        vllm_config: The engine's.
        config: The rules.
    """

    def __init__(self, vllm_config: VllmConfig, config: HSAConfig) -> None:
        self.config = config
        self._model_config = vllm_config.model_config
        self._tokenizer: Any = None

    def __call__(self, prompt: PromptTypes) -> Tagger:
        """Return a tagger for a reply.

        Raises:
            InvalidTypes: If a rule needs the roles of the messages before, and they are not said.
        """
        if self.config.rules is not None and self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._model_config)
        try:
            return make_tagger(self.config, self._tokenizer, prompt.roles)
        except ValueError as error:
            raise InvalidTypes(str(error)) from None
