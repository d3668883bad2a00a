"""Tiny HSA checkpoints as a server gets them, and prompts for them."""

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.serving_checkpoint import write_serving_architecture


def save_checkpoint(directory, tokenizer, model_type="qwen3", config=None, **overrides):
    """Save a tiny model with HSA and its tokenizer, its architecture named HSA…, and return the model."""
    options = {"num_hidden_layers": 3, **overrides}
    model = tiny.build_model(model_type, tokenizer, **options)
    enable_hsa(model, config or HSAConfig())
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if model_type in tiny.VISION_MODELS:
        tiny.build_processor(model_type, tokenizer).save_pretrained(directory)
    write_serving_architecture(directory)
    return model
