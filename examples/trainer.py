"""transformers' Trainer with HSA and weights of messages, on a tiny model: python examples/trainer.py."""

from tempfile import mkdtemp

from transformers import Trainer, TrainingArguments

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.training import HSADataCollator, HSATrainerCallback, encode_conversation, hsa_trainer


CONVERSATIONS = [
    [
        {"role": "user", "content": f"Bring the {thing} to the table."},
        {"role": "assistant", "content": "I open the fridge.", "semantic_type": "LANDMARK", "weight": 0.5},
        {"role": "user", "content": f"You see milk, eggs and a {thing}.", "semantic_type": "NOISE"},
        {"role": "assistant", "content": f"I take the {thing} to the table.", "semantic_type": "LANDMARK"},
    ]
    for thing in ("apple", "bread", "cup", "pear")
]


def main() -> None:
    # in your run: AutoTokenizer.from_pretrained(...) and AutoModelForCausalLM.from_pretrained(...)
    tokenizer = tiny.build_tokenizer(message["content"] for messages in CONVERSATIONS for message in messages)
    model = tiny.build_model("qwen3", tokenizer)

    config = HSAConfig(noise_window=20)
    enable_hsa(model, config)
    rows = [encode_conversation(tokenizer, messages, config) for messages in CONVERSATIONS]

    # Without weights in the data, transformers' own Trainer does as well
    trainer = hsa_trainer(Trainer)(
        model=model,
        args=TrainingArguments(
            output_dir=mkdtemp(),
            max_steps=8,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            logging_steps=1,
            report_to=[],
        ),
        train_dataset=rows,
        data_collator=HSADataCollator(tokenizer),
        callbacks=[HSATrainerCallback()],
    )
    trainer.train()
    trainer.save_model()  # hsa_config.json lies beside the weights
    print("losses:", [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry])


if __name__ == "__main__":
    main()
