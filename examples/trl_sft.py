"""TRL's SFTTrainer with HSA, on a tiny model: python examples/trl_sft.py [--lora] [--packing]."""

import sys
from tempfile import mkdtemp

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.training import HSADataCollator, HSATrainerCallback, encode_conversation, hsa_trainer


CONVERSATIONS = [
    [
        {"role": "user", "content": f"Bring the {thing} to the table."},
        {"role": "assistant", "content": "I open the fridge.", "semantic_type": "LANDMARK"},
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
    data = Dataset.from_list([encode_conversation(tokenizer, messages, config) for messages in CONVERSATIONS])
    arguments = SFTConfig(
        output_dir=mkdtemp(),
        max_steps=8,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=1,
        packing="--packing" in sys.argv,  # each conversation stays one document: none sees another
        bf16=False,
        report_to=[],
    )
    # Without packing, and weights in the data, TRL's own class does as well
    trainer = hsa_trainer(SFTTrainer)(
        model=model,
        args=arguments,
        train_dataset=data,
        processing_class=tokenizer,
        data_collator=HSADataCollator(tokenizer),
        callbacks=[HSATrainerCallback()],
        peft_config=LoraConfig(target_modules="all-linear") if "--lora" in sys.argv else None,
    )
    trainer.train()
    trainer.save_model()
    print("losses:", [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry])


if __name__ == "__main__":
    main()
