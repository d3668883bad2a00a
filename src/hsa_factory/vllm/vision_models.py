"""vLLM's own vision-language models with HSA in their language model, under names of their own.

Apart from `models`: vLLM imports torchvision with them, which models of text do without.
"""

from vllm.config import VllmConfig
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.model_executor.models.qwen2_vl import Qwen2VLForConditionalGeneration
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration

from .models import put_hsa_into
from .platform import KnownToRunnerV2


class HSAQwen2VLForConditionalGeneration(KnownToRunnerV2, Qwen2VLForConditionalGeneration):
    """Qwen2-VL with HSA."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        put_hsa_into(self, vllm_config)


class HSAQwen2_5_VLForConditionalGeneration(KnownToRunnerV2, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with HSA."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        put_hsa_into(self, vllm_config)


class HSAQwen3VLForConditionalGeneration(KnownToRunnerV2, Qwen3VLForConditionalGeneration):
    """Qwen3-VL with HSA."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "model") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        put_hsa_into(self, vllm_config)
