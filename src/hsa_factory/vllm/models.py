"""vLLM's own models with HSA in their attention, under names of their own."""

from typing import Any

from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from ..config import HSAConfig
from .at_start import check_cache_type
from .layers import rules_of
from .listener import rows_of
from .platform import KnownToRunnerV2, attention_here
from .serving_config import serving_config


class HSALlamaForCausalLM(KnownToRunnerV2, LlamaForCausalLM):
    """Llama with HSA."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
        put_hsa_into(self, vllm_config)


class HSAMistralForCausalLM(KnownToRunnerV2, MistralForCausalLM):
    """Mistral with HSA."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
        put_hsa_into(self, vllm_config)


class HSAQwen2ForCausalLM(KnownToRunnerV2, Qwen2ForCausalLM):
    """Qwen2 and Qwen2.5 with HSA."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        put_hsa_into(self, vllm_config)


class HSAQwen3ForCausalLM(KnownToRunnerV2, Qwen3ForCausalLM):
    """Qwen3 with HSA."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        put_hsa_into(self, vllm_config)


class HSAQwen3MoeForCausalLM(KnownToRunnerV2, Qwen3MoeForCausalLM):
    """Qwen3-MoE with HSA."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        put_hsa_into(self, vllm_config)


def put_hsa_into(model: nn.Module, vllm_config: VllmConfig) -> None:
    """Give the layers of a model, just made and without weights, HSA's attention.

    Args:
        model: The model.
        vllm_config: The engine's.

    Raises:
        ValueError: If the rules name a layer that is not there, or a layer has what HSA's attention cannot honour.
    """
    config = serving_config(vllm_config)
    assert config is not None, "the model's architecture names HSA"
    layers = {
        extract_layer_index(module.layer_name): module for module in model.modules() if isinstance(module, Attention)
    }
    _check(layers, config)
    for layer in layers.values():  # a quantised checkpoint may name a type that is known only now
        check_cache_type(layer.kv_cache_dtype, vllm_config.model_config.dtype)
    rules = {index: rules_of(config, index, layer.sliding_window) for index, layer in layers.items()}
    distinct = tuple(dict.fromkeys(rules.values()))
    backend = attention_here().of(distinct)
    for index, layer in layers.items():
        layer.attn_backend, layer.backend = backend, AttentionBackendEnum.CUSTOM
        layer.impl = backend.get_impl_cls()(
            rules[index],
            layer.num_heads,
            layer.head_size,
            layer.impl.scale,
            layer.num_kv_heads,
            layer.kv_cache_dtype,
        )
    rows_of(vllm_config).rules = distinct


def _check(layers: dict[int, Attention], config: HSAConfig) -> None:
    unknown = sorted(set(config.layers or ()) - set(layers))
    if unknown:
        raise ValueError(
            f"HSAConfig.layers = {list(config.layers or ())}: the model has no attention layer {unknown}."
        )
    for index, layer in layers.items():
        soft_cap = getattr(layer.impl, "logits_soft_cap", None)
        for what, is_there in (
            ("soft-capped logits", bool(soft_cap)),
            ("attention sinks", layer.has_sink),
            ("ALiBi", getattr(layer.impl, "alibi_slopes", None) is not None),
            ("keys shared between layers", layer.kv_sharing_target_layer_name is not None),
        ):
            if is_there:
                raise ValueError(f"Layer {index} has {what}, which HSA's attention in vLLM cannot honour.")
