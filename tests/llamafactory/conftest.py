"""LLaMA-Factory's pipeline in this process, plainly or with the integration, on tiny models and generated data."""

import contextlib
import copy
import json
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typed_oracle import Oracle, Places

from hsa_factory import FeedbackConfig, HSAConfig, LossWeightsConfig, tiny


os.environ.setdefault("HF_HUB_OFFLINE", "1")

MARKER = "<|feedback|>"
MARKS = [f"<m{k}>" for k in range(41)]
"""Tokens that stand for nothing but the message, or the part of one, that they were put into."""

TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "observation",
    "function_tag": "function",
    "system_tag": "system",
    "semantic_tag": "semantic_type",
}
SHARED = Path(__file__).parents[2].parent / "shared"
TEXTS = ["The robot opens the fridge and takes the red apple out of it. It navigates to the table. "] * 4


@dataclass
class Prepared:
    """What a run's data preparation returned."""

    module: dict[str, Any]
    template: Any
    tokenizer: Any
    processor: Any
    data_args: Any
    report: dict[str, Any] | None

    def rows(self, split: str = "train") -> list[dict[str, Any]]:
        """All rows of a split (at most 1000 of a stream)."""
        return list(islice(self.module[f"{split}_dataset"], 1000))

    def text(self, token_ids: Any) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=False)

    def counts_of(self, name: str) -> dict[str, Any]:
        """The account of one training data set."""
        return self.report["datasets"][name]

    @property
    def counts(self) -> dict[str, Any]:
        """The account of the only training data set."""
        (account,) = self.report["datasets"].values()
        return account


class Pipeline:
    """LLaMA-Factory's steps, as functions that tests call."""

    MARKER, MARKS, TAGS, SHARED, Oracle, Places = MARKER, MARKS, TAGS, SHARED, Oracle, Places

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._models: dict[tuple, Path] = {}

    # -- tokenizers and models ---------------------------------------------------------------------------------

    def new_tokenizer(self, *extra: str) -> Any:
        """Return a tiny Qwen tokenizer that knows every mark."""
        return tiny.build_tokenizer(TEXTS, extra_special_tokens=[*MARKS, *extra])

    def model_dir(self, model_type: str = "qwen3", extra: tuple[str, ...] = (), **overrides: Any) -> Path:
        """Return a directory with a tiny model, its tokenizer and processor; made once a session."""
        key = (model_type, extra, json.dumps(overrides, sort_keys=True))
        if key not in self._models:
            directory = self.directory / f"{model_type}-{len(self._models)}"
            tiny.save_tiny(model_type, directory, [], tokenizer=self.new_tokenizer(*extra), **overrides)
            self._models[key] = directory
        return self._models[key]

    def save_checkpoint(self, directory: Path, config: HSAConfig) -> Path:
        """Save a tiny model with HSA as training saves it; return the directory."""
        tiny.save_tiny("qwen3", directory, [], tokenizer=self.new_tokenizer())
        config.save_pretrained(directory)
        return directory

    # -- data --------------------------------------------------------------------------------------------------

    def write_data(self, directory: Path, **datasets: Any) -> Path:
        """Write data sets and ``dataset_info.json``.

        Args:
            directory: Where to.
            **datasets: Samples in sharegpt format (a list of messages, or a dict with `messages` and more columns),
                or a tuple (entry of dataset_info without the file's name, samples).
        """
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "dataset_info.json"
        info = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        for name, samples in datasets.items():
            entry, samples = samples if isinstance(samples, tuple) else (None, samples)
            if entry is None:
                samples = [sample if isinstance(sample, dict) else {"messages": sample} for sample in samples]
                columns = {"messages": "messages"}
                columns |= {key: key for key in ("images", "system", "tools") if any(key in s for s in samples)}
                entry = {"formatting": "sharegpt", "columns": columns, "tags": TAGS}
            (directory / f"{name}.json").write_text(json.dumps(samples, ensure_ascii=False), "utf-8")
            info[name] = {"file_name": f"{name}.json", **entry}
        path.write_text(json.dumps(info), "utf-8")
        return directory

    def images(self, directory: Path, sizes: list[tuple[int, int]]) -> list[str]:
        """Write pictures of the given sizes; return their paths."""
        directory.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, size in enumerate(sizes):
            colour = (40 * number % 256, 255 - 30 * number % 256, 128)
            path = directory / f"{number}.png"
            Image.new("RGB", size, colour).save(path)
            paths.append(str(path))
        return paths

    def with_pictures(self, conversations: list[list[dict]], directory: Path) -> list[dict[str, Any]]:
        """Return samples whose first message begins with a picture, of different sizes, written to `directory`."""
        sizes = [[(56, 56), (84, 56), (56, 84)][number % 3] for number in range(len(conversations))]
        samples = []
        for messages, path in zip(conversations, self.images(directory, sizes), strict=True):
            messages[0]["content"] = "<image>" + messages[0]["content"]
            samples.append({"messages": messages, "images": [path]})
        return samples

    def args(self, data_dir: Path, dataset: str | None, model: Path | None = None, **more: Any) -> dict[str, Any]:
        """Return LLaMA-Factory's arguments for a small run on the CPU."""
        values = {
            "model_name_or_path": str(model or self.model_dir()),
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "dataset": dataset,
            "dataset_dir": str(data_dir),
            "template": "qwen3",
            "cutoff_len": 2048,
            "output_dir": str(Path(data_dir) / "out"),
            "overwrite_output_dir": True,
            "cache_dir": str(self.directory / "cache"),
            "use_cpu": True,
            "report_to": "none",
            "logging_steps": 1,
            "save_strategy": "no",
            "learning_rate": 1e-3,
            "max_steps": 2,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "lr_scheduler_type": "constant",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        return {key: value for key, value in {**values, **more}.items() if value is not None}

    # -- LLaMA-Factory -----------------------------------------------------------------------------------------

    def prepare(
        self,
        args: dict[str, Any],
        hsa: HSAConfig | bool | None = None,
        feedback: FeedbackConfig | None = None,
        weights: LossWeightsConfig | None = None,
    ) -> Prepared:
        """Run LLaMA-Factory's data preparation; without `hsa`, `feedback` and `weights` the plain one."""
        from llamafactory.data import get_template_and_fix_tokenizer
        from llamafactory.hparams import get_train_args

        from hsa_factory.llamafactory import integrate
        from hsa_factory.llamafactory.train.stages import STAGES

        is_on = hsa or feedback or weights
        with integrate(hsa, feedback, weights) if is_on else contextlib.nullcontext() as integration:
            model_args, data_args, training_args, finetuning_args, _ = get_train_args(dict(args))
            stage = STAGES[finetuning_args.stage]
            workflow = stage.workflow
            loaded = workflow.load_tokenizer(model_args)
            template = get_template_and_fix_tokenizer(loaded["tokenizer"], data_args)
            module = workflow.get_dataset(template, model_args, data_args, training_args, stage=stage.data, **loaded)
        report = integration.report.to_dict() if integration is not None else None
        return Prepared(module, template, loaded["tokenizer"], loaded["processor"], data_args, report)

    def load(
        self, args: dict[str, Any], hsa: HSAConfig | bool | None = None, feedback: FeedbackConfig | None = None
    ) -> tuple[Any, Any]:
        """Load tokenizer and model as `run_sft` does, for training."""
        import llamafactory.train.sft.workflow as workflow
        from llamafactory.data import get_template_and_fix_tokenizer
        from llamafactory.hparams import get_train_args

        from hsa_factory.llamafactory import integrate

        with integrate(hsa, feedback) if hsa or feedback else contextlib.nullcontext():
            model_args, data_args, _, finetuning_args, _ = get_train_args(dict(args))
            tokenizer = workflow.load_tokenizer(model_args)["tokenizer"]
            get_template_and_fix_tokenizer(tokenizer, data_args)
            return tokenizer, workflow.load_model(tokenizer, model_args, finetuning_args, True)

    def collator(
        self,
        prepared: Prepared,
        hsa: HSAConfig | None = None,
        feedback: FeedbackConfig | None = None,
        model: Any = None,
        **more: Any,
    ) -> Any:
        """Return the collator as `run_sft` makes it; without `hsa` and `feedback` LLaMA-Factory's own."""
        from llamafactory.data import SFTDataCollatorWith4DAttentionMask

        from hsa_factory.llamafactory.data.collator import HSADataCollator

        values = {
            "template": prepared.template,
            "model": model,
            "tokenizer": prepared.tokenizer,
            "processor": prepared.processor,
            "pad_to_multiple_of": 8,
            "label_pad_token_id": -100,
            "block_diag_attn": prepared.data_args.neat_packing,
            "neat_packing": prepared.data_args.neat_packing,
            "attn_implementation": "sdpa",
            "compute_dtype": torch.float32,
            **more,
        }
        if hsa is None and feedback is None:
            return SFTDataCollatorWith4DAttentionMask(**values)
        return HSADataCollator(**values, hsa_config=hsa, feedback_config=feedback)

    def model(self, directory: Path, hsa: HSAConfig | None = None) -> Any:
        """Load a tiny model, in evaluation mode."""
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

        from hsa_factory import enable_hsa

        vision = AutoConfig.from_pretrained(directory).model_type in tiny.VISION_MODELS
        auto_class = AutoModelForImageTextToText if vision else AutoModelForCausalLM
        model = auto_class.from_pretrained(directory).eval()
        return enable_hsa(model, hsa) if hsa is not None else model

    def train(
        self,
        args: dict[str, Any],
        hsa: HSAConfig | bool | None = None,
        feedback: FeedbackConfig | None = None,
        weights: LossWeightsConfig | None = None,
    ) -> list[float]:
        """Run LLaMA-Factory's training; return the logged losses."""
        from llamafactory.train.tuner import run_exp

        from hsa_factory.llamafactory import integrate

        is_on = hsa or feedback or weights
        with integrate(hsa, feedback, weights) if is_on else contextlib.nullcontext():
            run_exp(dict(args))
        return self.losses(args["output_dir"])

    @staticmethod
    def losses(directory: str | Path) -> list[float]:
        state = json.loads((Path(directory) / "trainer_state.json").read_text("utf-8"))
        return [entry["loss"] for entry in state["log_history"] if "loss" in entry]

    def typed_rows(
        self, template: Any, tokenizer: Any, data_args: Any, samples: Any, feedback: Any = None, processor: Any = None
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Run the typed processor over one batch (as in `Oracle`); return its rows and its account."""
        from hsa_factory.llamafactory.data.accounts import is_account_alone
        from hsa_factory.llamafactory.data.processor import TypedPackedProcessor, TypedSupervisedProcessor

        made = (TypedPackedProcessor if data_args.packing else TypedSupervisedProcessor)(
            template,
            tokenizer,
            processor,
            data_args,
            hsa_config=HSAConfig(),
            attention_config=HSAConfig(noise_turns=1),
            feedback_config=feedback,
        )
        columns = made.preprocess_dataset(Oracle.columns(samples))
        account, *_ = columns.pop("hsa_account")
        rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
        return ([] if is_account_alone(account) else rows), json.loads(account)["data"]

    # -- conversations -----------------------------------------------------------------------------------------

    @staticmethod
    def say(role: str, content: str, semantic_type: Any = ...) -> dict[str, Any]:
        """Return a message; without a type it has no such key."""
        message = {"role": role, "content": content}
        return message if semantic_type is ... else {**message, "semantic_type": semantic_type}

    def dialogue(self, types: list[Any], words: int = 3, first_mark: int = 0) -> list[dict[str, Any]]:
        """Return user and assistant messages in turn: message k consists of mark k only."""
        return [
            self.say(("user", "assistant")[k % 2], MARKS[first_mark + k] * words, semantic_type)
            for k, semantic_type in enumerate(types)
        ]

    def mark_ids(self, tokenizer: Any) -> dict[int, int]:
        """Return the number of each mark by its id."""
        return {tokenizer.convert_tokens_to_ids(mark): k for k, mark in enumerate(MARKS)}


@pytest.fixture(scope="session")
def lf(tmp_path_factory):
    """LLaMA-Factory's pipeline; data sets are cached in a temporary directory."""
    import datasets

    directory = tmp_path_factory.mktemp("llamafactory")
    former = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = directory / "cache"
    os.environ["HF_DATASETS_CACHE"] = str(directory / "cache")
    yield Pipeline(directory)
    datasets.config.HF_DATASETS_CACHE = former
    del os.environ["HF_DATASETS_CACHE"]


@pytest.fixture(autouse=True)
def _templates_stay_as_registered():
    """LLaMA-Factory writes options into its registered templates; no test shall see those of another."""
    from llamafactory.data.template import TEMPLATES

    former = {name: dict(template.__dict__) for name, template in TEMPLATES.items()}
    yield
    for name, values in former.items():
        TEMPLATES[name].__dict__.clear()
        TEMPLATES[name].__dict__.update(values)


@pytest.fixture(scope="session")
def tiny_qwen3(lf):
    return lf.model_dir("qwen3")


@pytest.fixture(scope="session")
def qwen_tokenizer():
    """The real Qwen vocabulary with the marks; one object for all tests."""
    from transformers import AutoTokenizer

    directory = SHARED / "tokenizers" / "qwen"
    if not directory.is_dir():
        pytest.skip("../shared is absent")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(MARKS, special_tokens=False)
    tokenizer.chat_template = copy.copy(tiny.CHAT_TEMPLATE)
    return tokenizer
