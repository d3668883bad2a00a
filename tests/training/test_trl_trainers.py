"""TRL's trainers with HSA: types reach the model, and all GLOBAL is what TRL computes by itself."""

import datasets
import pytest
import torch
from helpers import build
from runs import CONFIG, LENGTHS, arguments, close, data, losses, model, row, rows, trl_class

from hsa_factory import HSAConfig, disable_hsa, enable_hsa, tiny
from hsa_factory.models.enable import get_state
from hsa_factory.training import HSADataCollator, HSAPreferenceCollator, HSATrainerCallback, hsa_trainer, pair_rows
from hsa_factory.training.trl_names import refuse_trl_trainer


pytest.importorskip("trl")


def pairs(kind=None):
    """Pairs that part after the fourth token, which is the last of the prompt."""
    made = []
    for length in LENGTHS:
        chosen, rejected = row(length, kind=kind), row(length + 3, 77, kind)
        made.append(pair_rows(chosen, {name: chosen[name][:4] + rejected[name][4:] for name in chosen}))
    return datasets.Dataset.from_list(made)


class TestSFT:
    @pytest.fixture
    def make(self, tmp_path, tiny_tokenizer):
        def run(by_hand=False, options=None, **given):
            trainer_class = trl_class("SFTTrainer")
            if by_hand:
                given |= {"data_collator": HSADataCollator(tiny_tokenizer), "callbacks": [HSATrainerCallback()]}
            args = trl_class("SFTConfig")(**arguments(tmp_path, **options or {}))
            usual = {"model": model(), "train_dataset": data(), "processing_class": tiny_tokenizer}
            return (trainer_class if by_hand else hsa_trainer(trainer_class))(args=args, **usual | given)

        return run

    def test_padded_and_flattened(self, make):
        expected = losses(make(by_hand=True, options={"dataset_kwargs": {"skip_prepare_dataset": True}}))
        close(losses(make()), expected)
        close(losses(make(options={"padding_free": True, "max_length": None})), expected)

    def test_all_global_is_plain_trl(self, make, tmp_path, tiny_tokenizer):
        every = losses(make(train_dataset=data(0)))
        args = trl_class("SFTConfig")(**arguments(tmp_path))
        plain = data().remove_columns("semantic_ids")
        stock = trl_class("SFTTrainer")(build("llama"), args, train_dataset=plain, processing_class=tiny_tokenizer)
        close(every, losses(stock))
        assert abs(losses(make(options={"max_steps": 1}))[0] - every[0]) > 1e-3

    def test_packed_documents_stay_apart(self, make):
        options = {"per_device_train_batch_size": 4, "max_steps": 1}
        alone = losses(make(options=options))
        weighted = rows()
        weighted[0]["loss_weights"] = [1.0] * LENGTHS[0]  # the others have none
        trainer = make(
            options=options | {"packing": True, "max_length": 40}, train_dataset=datasets.Dataset.from_list(weighted)
        )
        assert sorted(map(sum, trainer.train_dataset["seq_lengths"])) == [32, 40]
        close(losses(trainer), alone)

    def test_lora(self, make, tmp_path):
        peft = pytest.importorskip("peft")
        trainer = make(peft_config=peft.LoraConfig(target_modules=["q_proj"]), options={"max_steps": 1})
        expected = losses(make(options={"max_steps": 1}))
        close(losses(trainer), expected)
        trainer.save_model(tmp_path / "adapter")
        assert HSAConfig.from_pretrained(tmp_path / "adapter") == CONFIG

    def test_refused(self, make):
        with pytest.raises(
            ValueError, match="Row 1 of the train data has 31 tokens, but the trainer's max_length is 30"
        ):
            make(options={"max_length": 30})
        weighted = data().add_column("loss_weights", [[2.0] * length for length in LENGTHS])
        with pytest.raises(ValueError, match="weights other than 0 and 1, but `loss_type: dft` computes another loss"):
            make(options={"loss_type": "dft"}, train_dataset=weighted).train()
        with pytest.raises(ValueError, match="The train data have no column `semantic_ids`"):
            make(train_dataset=data().remove_columns("semantic_ids"))


class TestDPO:
    @pytest.fixture
    def make(self, tmp_path, tiny_tokenizer):
        trainer_class = hsa_trainer(trl_class("DPOTrainer"))

        def run(options=None, **given):
            args = trl_class("DPOConfig")(**arguments(tmp_path, learning_rate=1e-3, **options or {}))
            usual = {"model": model(), "train_dataset": pairs(), "processing_class": tiny_tokenizer}
            return trainer_class(args=args, **usual | given)

        return run

    def by_hand(self, net, reference, collator):
        """Return the mean of -log sigmoid(β · difference of the log ratios) over the first two pairs."""
        batch = collator([pairs()[index] for index in range(2)])
        mask = batch.pop("completion_mask")[:, 1:].bool()
        scores = []
        for one in (net, reference):
            with torch.no_grad():
                logs = one(**batch).logits[:, :-1].log_softmax(-1)
            scores.append((logs.gather(-1, batch["input_ids"][:, 1:, None])[..., 0] * mask).sum(-1))
        chosen, rejected = (scores[0] - scores[1]).chunk(2)
        return -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean().item()

    def test_the_first_loss_is_that_of_equal_models(self, make):
        moved = losses(make())
        for options in ({"padding_free": True}, {"precompute_ref_log_probs": True}):
            close(losses(make(options | {"max_steps": 1})), moved[:1])
        assert moved[0] == pytest.approx(0.693147, abs=1e-6)
        plain = losses(make(train_dataset=pairs(0)))
        assert abs(plain[1] - moved[1]) > 1e-4  # types matter in the gradient

    def test_the_reference_attends_as_the_model_did(self, make, tiny_tokenizer):
        """A reference with other weights: what TRL computes is what the definition says, with HSA in both."""
        reference, collator = enable_hsa(build("llama", seed=1), CONFIG), HSAPreferenceCollator(tiny_tokenizer)
        options = {"max_steps": 1, "lr_scheduler_type": "constant"}
        trainer = make(options, ref_model=reference, train_dataset=pairs().select(range(2)))
        assert losses(trainer)[0] == pytest.approx(self.by_hand(model(), reference, collator), abs=1e-5)
        without = self.by_hand(model(), disable_hsa(reference), collator)
        assert abs(without - self.by_hand(model(), enable_hsa(reference, CONFIG), collator)) > 1e-2
        assert get_state(make().ref_model).config == CONFIG
        with pytest.raises(ValueError, match="the reference model has no HSA"):
            make(ref_model=build("llama"))

    def test_lora(self, make):
        peft = pytest.importorskip("peft")
        trainer = make({"max_steps": 1}, peft_config=peft.LoraConfig(target_modules=["q_proj"]))
        assert trainer.ref_model is None and losses(trainer)[0] == pytest.approx(0.693147, abs=1e-6)

    def test_trls_own_class_is_refused(self, make):
        trainer = make()
        callback = HSATrainerCallback()
        with pytest.raises(ValueError, match=r"DPOTrainer hands no types.*hsa_trainer\(DPOTrainer\)"):
            callback.on_train_begin(trainer.args, None, None, model=trainer.model, train_dataloader=None)
        with pytest.raises(ValueError, match="DPOTrainer: the model has no HSA"):
            make(model=build("llama"))


class TestReward:
    @pytest.fixture
    def make(self, tmp_path, tiny_tokenizer):
        def run(kind=None, has_hsa=True, by_hand=False, **given):
            from transformers import AutoModelForSequenceClassification

            torch.manual_seed(0)
            config = tiny.tiny_config("llama", 1024, num_labels=1)
            net = AutoModelForSequenceClassification.from_config(config)
            trainer_class = trl_class("RewardTrainer")
            if by_hand:
                given |= {"data_collator": HSAPreferenceCollator(tiny_tokenizer, completion_mask=False)}
                given |= {"callbacks": [HSATrainerCallback()]}
            return (hsa_trainer(trainer_class) if has_hsa and not by_hand else trainer_class)(
                model=enable_hsa(net, CONFIG) if has_hsa else net,
                args=trl_class("RewardConfig")(**arguments(tmp_path)),
                train_dataset=pairs(kind),
                processing_class=tiny_tokenizer,
                **given,
            )

        return run

    def test_types_matter_and_all_global_is_plain_trl(self, make):
        found, every = losses(make()), losses(make(0))
        close(every, losses(make(0, has_hsa=False)))
        assert abs(found[0] - every[0]) > 1e-3
        close(losses(make(by_hand=True)), found)


class TestOtherTrainers:
    def test_refused_by_name(self, tmp_path):
        with pytest.raises(ValueError, match="GRPOTrainer cannot train a model with HSA: it has the model write"):
            refuse_trl_trainer("GRPOTrainer", True)
        with pytest.raises(ValueError, match="KTOTrainer cannot train .*it chooses which inputs.*RewardTrainer"):
            refuse_trl_trainer("KTOTrainer", True)
        with pytest.raises(ValueError, match="GRPOTrainer"):
            hsa_trainer(type("GRPOTrainer", (), {"__module__": "trl.trainer.grpo_trainer"}))
        grpo = type("GRPOConfig", (), {"__module__": "trl.trainer.grpo_config"})()
        with pytest.raises(ValueError, match="GRPOTrainer"):
            HSATrainerCallback().on_train_begin(grpo, None, None, model=model())

    def test_trl_is_imported_where_one_of_its_classes_is_given(self):
        import ast
        from pathlib import Path

        import hsa_factory.training

        for path in Path(hsa_factory.training.__file__).parent.glob("*.py"):
            for node in ast.parse(path.read_text("utf-8")).body:
                names = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [getattr(node, "module", "")]
                )
                assert not any((name or "").split(".")[0] == "trl" for name in names), path
