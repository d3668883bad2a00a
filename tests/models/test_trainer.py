"""HSA under transformers' own Trainer."""

import json

import pytest
import torch
from helpers import differs, enabled, tokens, types

from hsa_factory import HSAConfig


class TestTrainer:
    @staticmethod
    def train(model, output_dir, **options):
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")

        def collate(features):
            width = max(len(feature["input_ids"]) for feature in features)
            fillers = {"input_ids": 0, "labels": -100, "attention_mask": 0, "semantic_ids": 2}
            return {
                name: torch.tensor([f[name] + [filler] * (width - len(f[name])) for f in features])
                for name, filler in fillers.items()
                if name in features[0]
            }

        rows = [(tokens(1, n, n)[0].tolist(), types(1, n, n)[0].tolist()) for n in (20, 31, 9, 12)]
        data = [
            {"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids), "semantic_ids": kinds}
            for ids, kinds in rows
        ]
        arguments = transformers.TrainingArguments(
            output_dir=str(output_dir),
            max_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            logging_steps=1,
            save_steps=2,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            **options,
        )
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate)
        return trainer.train()

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
        assert "hsa" not in json.dumps(json.loads((tmp_path / "checkpoint-2" / "config.json").read_text()))
