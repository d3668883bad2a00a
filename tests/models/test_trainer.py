"""HSA under transformers' own Trainer."""

import json

import pytest
import torch
from helpers import differs, enabled, tokens, types
from probe import assert_hsa_reaches, probe_batch

from hsa_factory import HSAConfig


CONFIG = HSAConfig(noise_window=3)


def collate(features):
    width = max(len(feature["input_ids"]) for feature in features)
    fillers = {"input_ids": 0, "labels": -100, "attention_mask": 0, "semantic_ids": 2}
    return {
        name: torch.tensor([f[name] + [filler] * (width - len(f[name])) for f in features])
        for name, filler in fillers.items()
        if name in features[0]
    }


def dataset():
    rows = [(tokens(1, n, n)[0].tolist(), types(1, n, n)[0].tolist()) for n in (20, 31, 9, 12)]
    return [
        {"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids), "semantic_ids": kinds}
        for ids, kinds in rows
    ]


def arguments(output_dir, **options):
    usual = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1}
    usual |= {"save_steps": 2, "use_cpu": True, "report_to": [], "disable_tqdm": True}
    return {"output_dir": str(output_dir)} | usual | options


class TestTrainer:
    @staticmethod
    def train(model, output_dir, **options):
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
        args = transformers.TrainingArguments(**arguments(output_dir, **options))
        return transformers.Trainer(model=model, args=args, train_dataset=dataset(), data_collator=collate).train()

    def test_dropped_columns_are_explained(self, tmp_path):
        with pytest.raises(ValueError, match="no `semantic_ids`.*set `remove_unused_columns: false`"):
            self.train(enabled("llama"), tmp_path, remove_unused_columns=True)

    @pytest.mark.parametrize("gradient_checkpointing", [False, True])
    def test_training(self, tmp_path, gradient_checkpointing):
        model = enabled("llama", HSAConfig(noise_window=3))
        before = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
        result = self.train(
            model, tmp_path, remove_unused_columns=False, gradient_checkpointing=gradient_checkpointing
        )
        assert 0 < result.training_loss < 20
        differs(model.model.layers[0].self_attn.q_proj.weight, before)
        assert HSAConfig.from_pretrained(tmp_path / "checkpoint-2") == HSAConfig(noise_window=3)
        config = json.loads((tmp_path / "checkpoint-2" / "config.json").read_text())
        assert config.pop("hsa").startswith("This model was trained with") and "hsa" not in json.dumps(config)

    def test_an_adapter_put_on_afterwards(self, tmp_path):
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(enabled("llama", CONFIG), peft.LoraConfig(target_modules=["q_proj"]))
        self.train(model, tmp_path, remove_unused_columns=False)
        assert (tmp_path / "checkpoint-2" / "adapter_config.json").is_file()
        assert HSAConfig.from_pretrained(tmp_path / "checkpoint-2") == CONFIG
        assert_hsa_reaches(model, probe_batch())


class TestSFTTrainer:
    @pytest.mark.parametrize("is_lora", [False, True])
    def test_checkpoints_say_by_which_rules(self, is_lora, tiny_tokenizer, tmp_path):
        trl, peft, datasets = (pytest.importorskip(name) for name in ("trl", "peft", "datasets"))
        options = {"remove_unused_columns": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
        trainer = trl.SFTTrainer(
            model=enabled("llama", CONFIG),
            args=trl.SFTConfig(**arguments(tmp_path, **options)),
            train_dataset=datasets.Dataset.from_list(dataset()),
            data_collator=collate,
            processing_class=tiny_tokenizer,
            peft_config=peft.LoraConfig(target_modules=["q_proj"]) if is_lora else None,
        )
        trainer.train()
        trainer.save_model(tmp_path / "final")
        for name in ("checkpoint-2", "final"):
            assert (tmp_path / name / "adapter_config.json").is_file() is is_lora
            assert HSAConfig.from_pretrained(tmp_path / name) == CONFIG
        assert_hsa_reaches(trainer.model, probe_batch())
