"""One data set, three trainers: LLaMA-Factory's, transformers' and TRL's compute the same losses."""

import datasets
import pytest
import transformers

from hsa_factory import FeedbackConfig, HSAConfig, enable_hsa
from hsa_factory.training import HSADataCollator, encode_conversation, hsa_trainer


HSA = HSAConfig(noise_window=5, hide=[(0, 2)])
FEEDBACK = FeedbackConfig()


@pytest.fixture
def samples(lf):
    """Dialogues with types; the third has a weight, and the fourth feedback, after which replies are trained."""
    made = [
        lf.dialogue(types, words=3, first_mark=6 * k) for k, types in enumerate(([0, 1], [0, 2, 2, 1], [0, 1, 2, 0]))
    ]
    made[2][1]["weight"] = 0.25
    made.append(lf.dialogue([0, 2, 0, 1], words=3, first_mark=20))
    made[3][2]["content"] += lf.MARKER
    return made


def test_losses_are_the_same(lf, tmp_path, samples):
    arguments = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0}
    arguments |= {"max_steps": 2, "per_device_train_batch_size": 4, "max_grad_norm": 1.0, "logging_steps": 1}
    data, model_dir = lf.write_data(tmp_path, data=samples), lf.model_dir(extra=(lf.MARKER,))
    expected = lf.train(lf.args(data, "data", model_dir, template="qwen3_nothink", **arguments), HSA, FEEDBACK)

    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    rows = [encode_conversation(tokenizer, messages, HSA, FEEDBACK) for messages in samples]
    arguments |= {"output_dir": str(tmp_path / "other"), "save_strategy": "no", "use_cpu": True, "report_to": []}
    trl = pytest.importorskip("trl")
    for trainer_class, args_class in (
        (transformers.Trainer, transformers.TrainingArguments),
        (trl.SFTTrainer, trl.SFTConfig),
    ):
        more = {"processing_class": tokenizer} if trainer_class is trl.SFTTrainer else {}
        rows = sorted(rows, key=lambda row: "loss_weights" not in row)  # the first row tells the columns of all
        trainer = hsa_trainer(trainer_class)(
            model=enable_hsa(transformers.AutoModelForCausalLM.from_pretrained(model_dir), HSA),
            args=args_class(bf16=False, **arguments),
            train_dataset=datasets.Dataset.from_list(rows),
            data_collator=HSADataCollator(tokenizer),
            **more,
        )
        trainer.train()
        found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert found == pytest.approx(expected, abs=1e-6), trainer_class
