"""What is settled when an engine starts with a model that has HSA: fitting options, and what is refused by name."""

import sys

import torch
from vllm import envs
from vllm.config import ModelConfig, VllmConfig
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform
from vllm.tokenizers.registry import resolve_tokenizer_args

from ..config import CONFIG_NAME, NOTE_KEY, HSAConfig
from ..labeling.rule_set import RuleSet
from ..serving_checkpoint import ARCHITECTURES, PREFIX
from .adapters import check_adapter
from .server.admission import Admission
from .serving_config import find_rules, serving_config


logger = init_logger(f"vllm.{__name__}")  # under the name of the logger that vLLM lets print

BLOCK_SIZE = 16
"""Tokens of a block where the user names none: the smaller, the more of what is out of sight goes back."""

_SERVERS = tuple(  # imported where requests come from elsewhere
    f"vllm.entrypoints.launchers.{name}" for name in ("api_server.entry", "grpc_server")
)

SCHEDULER = "hsa_factory.vllm.scheduler.HSAScheduler"
LISTENER = (
    "hsa_factory.vllm.listener:TypeListener"  # named here: as an entry point it would be in every model's engine
)
GATE = "hsa_factory.vllm.paged.model_state:TypeGate"  # what model runner V2 takes in its place


class HSAModelConfig(VerifyAndUpdateConfig):
    """vLLM calls it for each architecture with HSA, before the engine is made."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Set what HSA needs.

        Raises:
            ValueError: If something is switched on that cannot be honoured.
        """
        config = serving_config(vllm_config)
        assert config is not None, "vLLM calls this for models with HSA only"
        refuse(vllm_config, config)
        _check_adapters(vllm_config, config)
        if current_platform.is_cpu():
            from .cpu import let_vllm_look  # with llvmlite, which vLLM brings on a CPU only

            let_vllm_look()
        if not vllm_config.cache_config.user_specified_block_size:
            vllm_config.cache_config.block_size = BLOCK_SIZE
            vllm_config.cache_config.user_specified_block_size = True
        vllm_config.scheduler_config.scheduler_cls = SCHEDULER
        vllm_config.scheduler_config.async_scheduling = False
        model_config = vllm_config.model_config
        listener = GATE if vllm_config.use_v2_model_runner else LISTENER
        model_config.logits_processors = [*(model_config.logits_processors or ()), listener]
        Admission.needs_types |= any(name in sys.modules for name in _SERVERS)
        logger.info("%s", describe(vllm_config, config))


class UnnamedHSAConfig(VerifyAndUpdateConfig):
    """vLLM calls it for the architectures that do not say HSA: a model with rules is not served without them."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Refuse a checkpoint with HSA whose architecture does not say so, and adapters with HSA on a model without.

        Raises:
            ValueError: It says what to do.
        """
        model = vllm_config.model_config
        _check_adapters(vllm_config, None)
        try:
            has_rules = find_rules(model) is not None
        except (OSError, ValueError):  # the Hub is out of reach, or knows no such name: as without our plugin
            has_rules = False
        if has_rules:
            raise ValueError(
                f"{model.model} has an {CONFIG_NAME}, but vLLM would serve it without HSA, as another model. {_way_out(model)} To serve "
                "it with plain attention, copy it without that file."
            )
        if isinstance(getattr(model.hf_config, NOTE_KEY, None), str):
            logger.warning(
                "The config.json of %s says that it was trained with HSA, but the rules are not there: %s is missing, and it is "
                "served with plain attention, as another model. Copy the file from where the model was trained.",
                model.model,
                CONFIG_NAME,
            )
        super().verify_and_update_config(vllm_config)


def guarded(settings: type[VerifyAndUpdateConfig] | None) -> type[VerifyAndUpdateConfig]:
    """Return settings of an architecture that refuse a checkpoint with HSA first.

    Args:
        settings: vLLM's, or another plugin's; None: the architecture has none.
    """
    if settings is None:
        return UnnamedHSAConfig
    if issubclass(settings, (HSAModelConfig, UnnamedHSAConfig)):
        return settings
    return type(settings.__name__, (UnnamedHSAConfig, settings), {})


def _way_out(model: ModelConfig) -> str:
    """Say how a checkpoint with HSA is served as such."""
    named = str((model.architectures or ["none"])[0])
    if named.removeprefix(PREFIX) not in ARCHITECTURES:
        return (
            f"Our plugin serves HSA for {', '.join(ARCHITECTURES)}, not for {named}: `hsa-factory api` serves every model that "
            "LLaMA-Factory loads."
        )
    return (
        f"Start it with `hsa-factory serve {model.model}` and no --model-impl, or write a checkpoint that says HSA: hsa-factory export "
        f"{model.model} --export_for vllm --export_dir DIR. Both take a directory: download a model of the Hub before."
    )


def describe(vllm_config: VllmConfig, config: HSAConfig) -> str:
    """Return the line that says what is on."""
    rules = ", ".join(
        f"{name}={value}"
        for name, value in config.attention_options().items()
        if value not in (None, ()) and (value or not name.endswith("_decay"))  # 0 is a window, too
    )
    typed = "by rules" if config.rules is not None else f"{config.generated.name}"
    gives_back = config.layers is None
    return (
        f"HSA is on ({rules}); generated tokens are typed {typed}; blocks of {vllm_config.cache_config.block_size} tokens "
        f"{'are given back when out of sight' if gives_back else 'all stay, as some layers have no HSA'}."
    )


def refuse(vllm_config: VllmConfig, config: HSAConfig) -> None:
    """Refuse what HSA in vLLM cannot honour.

    Raises:
        ValueError: With its name and what to do.
    """
    cache, parallel, scheduler = vllm_config.cache_config, vllm_config.parallel_config, vllm_config.scheduler_config
    model, attention = vllm_config.model_config, vllm_config.attention_config
    refused = {
        "speculative decoding": vllm_config.speculative_config is not None,
        "an attention backend of vLLM's (HSA has its own)": bool(attention.backend or attention.backend_per_kind),
        "prompts of embeddings (enable_prompt_embeds)": model.enable_prompt_embeds,
        f"tokenizer_mode={model.tokenizer_mode} (tokenizers of transformers only)": _is_foreign(model),
        "a KV connector (disaggregated prefill, offloading)": vllm_config.kv_transfer_config is not None
        or cache.kv_offloading_size is not None,  # of which vLLM makes one later
        "an encoder cache connector (disaggregated encoder)": vllm_config.ec_transfer_config is not None,
        "experts returned with answers (enable_return_routed_experts)": vllm_config.aux_output_config.enabled,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "decode context parallelism": parallel.decode_context_parallel_size > 1,
        "prefill context parallelism": parallel.prefill_context_parallel_size > 1,
        "dual-batch overlap": parallel.enable_dbo,
        "a device that is neither a CPU nor a GPU of NVIDIA": not (
            current_platform.is_cpu() or current_platform.is_cuda()
        ),
        "model runner V2 without a GPU of NVIDIA (set VLLM_USE_V2_MODEL_RUNNER=0)": vllm_config.use_v2_model_runner
        and not current_platform.is_cuda(),
        "vLLM's front end in Rust, which reads no types (VLLM_USE_RUST_FRONTEND)": envs.VLLM_USE_RUST_FRONTEND,
        f"the scheduler {scheduler.scheduler_cls}": scheduler.scheduler_cls not in (None, SCHEDULER),
    }
    for what, is_on in refused.items():
        if is_on:
            raise ValueError(f"HSA in vLLM cannot be served with {what}: leave it out.")
    check_cache_type(cache.cache_dtype, model.dtype)
    if model.runner_type != "generate":
        raise ValueError("HSA in vLLM serves models that generate, not pooling.")
    for rule in () if config.rules is None else RuleSet.parse(config.rules):
        if any(turn < 0 for turn in rule.turn):
            raise ValueError(
                f"HSAConfig.rules: rule {rule.name!r} counts turns from the conversation's end, which a server does not know: "
                "types of a prefix would change with every message. Leave the rule out."
            )


def check_cache_type(cache: str, model: torch.dtype) -> None:
    """Refuse keys and values of another number type than the model's: they are not what `generate` attends to.

    Args:
        cache: The type's name; ``auto``: the model's.
        model: The model's type.

    Raises:
        ValueError: It says how to keep them as they are.
    """
    name = str(model).removeprefix("torch.")
    if cache not in ("auto", name):
        asked = "" if name == "float32" else f"; where the checkpoint asks for it, say --kv-cache-dtype {name}"
        raise ValueError(
            f"HSA in vLLM cannot be served with kv_cache_dtype={cache}, as the model computes in {name}: leave it out{asked}."
        )


def _check_adapters(vllm_config: VllmConfig, config: HSAConfig | None) -> None:
    """Check the adapters that the configuration names; of others a server says so, or a request.

    Raises:
        ValueError: As `check_adapter`.
    """
    named = {} if vllm_config.lora_config is None else vllm_config.lora_config.default_mm_loras or {}
    for kind, path in named.items():
        check_adapter(LoRARequest(f"of {kind}", 1, path), config)


def _is_foreign(model: ModelConfig) -> bool:
    """Whether vLLM would take a tokenizer that is not of transformers, as it does by itself where Mistral's files lie."""
    if model.skip_tokenizer_init:
        return False
    mode, *_ = resolve_tokenizer_args(
        model.tokenizer, tokenizer_mode=model.tokenizer_mode, revision=model.tokenizer_revision
    )
    return mode != "hf"
