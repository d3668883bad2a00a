"""transformers' Trainer with HSA: columns, checks before the first step, saved rules, weighted losses."""

import datasets
import pytest
import torch
import transformers
from helpers import build, enabled
from runs import CONFIG, arguments, close, data, losses, model, row, rows

from hsa_factory import HSAConfig
from hsa_factory.training import HSADataCollator, HSATrainerCallback, hsa_trainer


pytest.importorskip("accelerate")
WEIGHTS = (0.5, 3.0, 1.0, 0.125)


@pytest.fixture
def make(tmp_path, tiny_tokenizer):
    def run(trainer_class=transformers.Trainer, callback=True, collator=None, options=None, **given):
        usual = {
            "model": model(),
            "train_dataset": data(),
            "data_collator": collator or HSADataCollator(tiny_tokenizer),
        }
        if callback:
            usual["callbacks"] = [HSATrainerCallback()]
        return trainer_class(
            args=transformers.TrainingArguments(**arguments(tmp_path, **options or {})), **usual | given
        )

    return run


def without_types(features):
    batch = transformers.default_data_collator([{k: f[k] for k in ("input_ids", "labels")} for f in features])
    return dict(batch)


def weighted_rows():
    """Rows of which one has no weights, and others have one a row and a token."""
    made = rows()
    for one, weight in zip(made[1:], WEIGHTS[1:], strict=True):
        one["loss_weights"] = [weight * (1 + place % 2) for place in range(len(one["input_ids"]))]
    return made


def by_hand(net, made, collator):
    """Return the weighted mean over all rows, token by token."""
    total, parts = 0.0, 0.0
    for one in made:
        batch = collator([one])
        weights = batch.pop("loss_weights", torch.ones_like(batch["labels"]).float())[0, 1:]
        with torch.no_grad():
            logs = net(**{**batch, "labels": None}).logits[0, :-1].double().log_softmax(-1)
        for place, label in enumerate(batch["labels"][0, 1:].tolist()):
            if label != -100:
                parts -= weights[place].item() * logs[place, label].item()
                total += weights[place].item()
    return parts / total


class TestColumns:
    def test_they_are_kept_and_types_matter(self, make):
        trainer = make()
        found = losses(trainer)
        assert trainer.args.remove_unused_columns is False
        close(losses(make(hsa_trainer(transformers.Trainer), callback=False, train_dataset=rows())), found)
        others = [{**one, "semantic_ids": [0] * len(one["semantic_ids"])} for one in rows()]
        every = losses(make(train_dataset=others))
        assert abs(every[0] - found[0]) > 1e-3
        plain = [{k: v for k, v in one.items() if k != "semantic_ids"} for one in rows()]
        collator = transformers.DataCollatorForSeq2Seq(make().data_collator.tokenizer)
        stock = losses(make(model=build("llama"), train_dataset=plain, collator=collator, callback=False))
        close(every, stock)

    def test_a_callback_that_comes_late_says_what_to_do(self, make):
        trainer = make(callback=False)
        trainer.add_callback(HSATrainerCallback())
        with pytest.raises(ValueError, match="Row 0 .*has no `semantic_ids`.*remove_unused_columns=False"):
            trainer.train()

    def test_another_collator_is_refused_before_the_first_step(self, make):
        trainer = make(collator=without_types)
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        with pytest.raises(
            ValueError, match="A batch of the training data has no `semantic_ids`: without_types leaves it out"
        ):
            trainer.train()
        assert trainer.state.global_step == 0
        assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())

    def test_turns_that_the_rules_need(self, make):
        with pytest.raises(ValueError, match="has no `turn_ids`"):
            make(model=enabled("llama", HSAConfig(noise_turns=1))).train()
        numbered = [{**one, "turn_ids": [place // 5 for place in range(len(one["input_ids"]))]} for one in rows()]
        assert len(losses(make(model=enabled("llama", HSAConfig(noise_turns=1)), train_dataset=numbered))) == 2

    def test_a_model_without_hsa(self, make):
        with pytest.raises(ValueError, match="LlamaForCausalLM has no HSA. Call enable_hsa"):
            make(model=build("llama")).train()

    def test_the_order_of_rows_stays(self, make):
        seen = []

        def collator(features):
            seen.append([one["input_ids"][0] for one in features])
            return kept(features)

        kept = make().data_collator
        orders = []
        for callback in (True, False):
            seen.clear()
            options = {"remove_unused_columns": False, "max_steps": 1}
            make(collator=collator, callback=callback, options=options).train()
            orders.append(seen[1:] if callback else seen[:])  # the first is the callback's look ahead
        assert orders[0] == orders[1]


class TestEvaluation:
    OPTIONS = {"eval_strategy": "steps", "eval_steps": 1}

    def test_it_is_looked_at_before_the_first_step(self, make):
        bad = data().remove_columns("semantic_ids")
        for evaluated in (bad, {"good": data(), "bad": bad}):
            trainer = make(hsa_trainer(transformers.Trainer), eval_dataset=evaluated, options=self.OPTIONS)
            with pytest.raises(ValueError, match="has no `semantic_ids`"):
                trainer.train()
            assert trainer.state.global_step == 0

    def test_at_its_first_batch_where_the_trainer_is_not_known(self, make):
        def forgets(features):
            return kept(features) if "semantic_ids" in features[0] else without_types(features)

        kept = make().data_collator
        trainer = make(collator=forgets, eval_dataset=[row(9)] * 2)
        trainer.evaluate()
        del trainer.eval_dataset[0]["semantic_ids"]
        with pytest.raises(ValueError, match="A batch of the evaluation data has no `semantic_ids`"):
            trainer.evaluate()


class TestWeights:
    def test_however_a_step_is_cut_up(self, make):
        collator, expected = make().data_collator, by_hand(model(), weighted_rows(), make().data_collator)
        trainer_class, found = hsa_trainer(transformers.Trainer), []
        as_table = datasets.Dataset.from_list(weighted_rows()[::-1])  # its first row tells the columns
        for made, size in ((as_table, 4), (weighted_rows(), 1)):
            options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
            found.append(losses(make(trainer_class, train_dataset=made, options=options)))
        flat = HSADataCollator(collator.tokenizer, padding_free=True)
        options = {"per_device_train_batch_size": 4}
        found.append(losses(make(trainer_class, train_dataset=weighted_rows(), collator=flat, options=options)))
        for pair in found:
            close(pair[0], expected, 2e-6)
            close(pair, found[0], 1e-5)
        plain = losses(make(trainer_class, train_dataset=rows(), options=options))
        assert abs(plain[0] - expected) > 1e-3
        stock = losses(make(train_dataset=rows(), options=options))
        close(plain, stock)

    def test_a_loss_that_leaves_them_out_is_refused(self, make):
        for made in (weighted_rows(), weighted_rows()[::-1]):
            trainer = make(train_dataset=made)
            with pytest.raises(ValueError, match="hsa_trainer"):
                trainer.train()
            assert trainer.state.global_step == 0

    def test_the_model_refuses_them_too(self, make):
        batch = make().data_collator(weighted_rows())
        with pytest.raises(ValueError, match="was given `loss_weights`, which its loss leaves out"):
            model()(**batch)

    def test_another_loss_is_named(self, make):
        trainer_class = hsa_trainer(transformers.Trainer)
        trainer = make(trainer_class, train_dataset=weighted_rows(), compute_loss_func=lambda *args, **options: 0)
        with pytest.raises(ValueError, match="a loss of its own"):
            trainer.train()


class TestSaving:
    def test_checkpoints_and_the_end(self, make, tmp_path):
        trainer = make(options={"save_strategy": "steps", "save_steps": 1})
        del trainer.model.save_pretrained  # as a wrapper would that saves the weights alone
        trainer.train()
        for place in (tmp_path / "checkpoint-1", tmp_path / "checkpoint-2", tmp_path):
            assert HSAConfig.from_pretrained(place) == CONFIG


def test_arguments_by_place_and_subclasses(tmp_path, tiny_tokenizer):
    class Mine(transformers.Trainer):
        def __init__(self, *args, mark=0, **kwargs):
            super().__init__(*args, **kwargs)
            self.mark = mark

    made = hsa_trainer(Mine)
    assert hsa_trainer(Mine) is made and issubclass(made, Mine) and made.__name__ == "Mine"
    args = transformers.TrainingArguments(**arguments(tmp_path, max_steps=1))
    trainer = made(model(), args, HSADataCollator(tiny_tokenizer), data(), callbacks=[HSATrainerCallback()])
    assert len(losses(trainer)) == 1
    trainer = made(model=model(), args=args, processing_class=tiny_tokenizer, mark=3)
    assert trainer.data_collator == HSADataCollator(tiny_tokenizer) and trainer.mark == 3
    assert sum(isinstance(one, HSATrainerCallback) for one in trainer.callback_handler.callbacks) == 1


def test_a_run_goes_on_by_the_rules_of_its_checkpoint(make, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1}
    make(options=options | {"max_steps": 1}).train()
    make(options=options).train(resume_from_checkpoint=True)
    other = enabled("llama", HSAConfig(noise_window=9))
    with pytest.raises(ValueError, match="checkpoint-1 was made with other rules of attention"):
        make(options=options, model=other).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
