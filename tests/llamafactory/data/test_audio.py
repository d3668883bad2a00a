"""Audio clips (Qwen2-Audio): every token of a clip has the type of its message, and HSA keeps the sound in its sight."""

import wave

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor, WhisperFeatureExtractor

from hsa_factory import FeedbackConfig, HSAConfig, SemanticType, enable_hsa, tiny


HSA = HSAConfig(noise_window=0)
AUDIO = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")


@pytest.fixture
def model_dir(lf, tmp_path):
    """A tiny model that hears at most a second."""
    tokenizer = lf.new_tokenizer(*AUDIO)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    tower = {"num_mel_bins": 32, "d_model": 32, "encoder_layers": 2, "max_source_positions": 50}
    tower |= {"encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    config = AutoConfig.for_model(
        "qwen2_audio",
        text_config={**tiny.COMMON, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        audio_config=tower,
        audio_token_index=tokenizer.convert_tokens_to_ids(AUDIO[0]),
        **ids,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2AudioForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    hearing = WhisperFeatureExtractor(feature_size=32, chunk_length=1)
    Qwen2AudioProcessor(feature_extractor=hearing, tokenizer=tokenizer).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def args(lf, model_dir, tmp_path, monkeypatch):
    """Two turns, with a clip in each: one that is soon forgotten, and one that is kept."""
    # torchaudio itself reads files with TorchCodec, which needs FFmpeg
    monkeypatch.setattr("llamafactory.data.mm_plugin.torchaudio.load", lambda path: (_read(path), 16000))
    clips = [_write(tmp_path / f"{number}.wav", 6000 + 4000 * number) for number in range(2)]
    messages = [
        {"role": "system", "content": "<m0>", "semantic_type": "GLOBAL"},
        {"role": "user", "content": "<m1><audio>", "semantic_type": "NOISE"},
        {"role": "assistant", "content": "<m2>", "semantic_type": "LANDMARK"},
        {"role": "user", "content": "<audio><m3>", "semantic_type": "LANDMARK"},
        {"role": "assistant", "content": "<|feedback|><m4>", "semantic_type": "LANDMARK"},
    ]
    entry = {"formatting": "sharegpt", "columns": {"messages": "messages", "audios": "audios"}, "tags": lf.TAGS}
    data = lf.write_data(tmp_path / "data", clips=(entry, [{"messages": messages, "audios": clips}] * 2))
    return lf.args(data, "clips", model_dir, template="qwen2_audio")


def _write(path, samples):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, samples, "NONE", ""))
        noise = torch.randint(
            -9000, 9000, (samples,), dtype=torch.int16, generator=torch.Generator().manual_seed(samples)
        )
        file.writeframes(noise.numpy().tobytes())
    return str(path)


def _read(path):
    with wave.open(path, "rb") as file:
        sound = torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)
    return sound[None].float() / 2**15


def test_tokens_of_a_clip_have_the_type_of_their_message(lf, args):
    prepared = lf.prepare(args, HSA, FeedbackConfig())
    row = prepared.rows()[0]
    numbers = prepared.tokenizer.convert_tokens_to_ids(AUDIO)
    clips = [type_ for number, type_ in zip(row["input_ids"], row["semantic_ids"], strict=True) if number in numbers]
    first = clips.index(SemanticType.LANDMARK)
    assert first > 5 and len(clips) - first > first  # the second clip is longer
    assert set(clips[:first]) == {SemanticType.NOISE} and set(clips[first:]) == {SemanticType.LANDMARK}


def test_what_is_heard_of_a_clip_out_of_sight(lf, args):
    prepared = lf.prepare(args, HSA, FeedbackConfig())
    _, model = lf.load(args, HSA, FeedbackConfig())
    batch = lf.collator(prepared, HSA, FeedbackConfig(), model)([dict(prepared.rows()[0])])
    model.eval()

    def moved(clip):
        features = batch["input_features"].clone()
        features[clip] += torch.randn(features[clip].shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            one, other = (
                model(**{**batch, "input_features": f}).logits[0, -12:] for f in (batch["input_features"], features)
            )
        return (one - other).abs().max()

    assert moved(0) < 1e-6 and moved(1) > 1e-3


def test_it_trains(lf, args):
    losses = lf.train(args, HSA, FeedbackConfig())
    assert all(0 < loss < 20 for loss in losses) and losses != lf.train({**args, "overwrite_cache": True})


def test_an_adapter_around_it_is_refused(lf, args):
    """PEFT calls the model past its hooks, if it knows the task: types would be lost, in inference without a word."""
    with pytest.raises(ValueError, match="PEFT calls Qwen2AudioForConditionalGeneration past its hooks"):
        lf.load({**args, "finetuning_type": "lora"}, HSA, FeedbackConfig())

    model = Qwen2AudioForConditionalGeneration.from_pretrained(args["model_name_or_path"])
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"])).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        plain = adapted(input_ids=ids).logits
        found = enable_hsa(adapted, HSA)(input_ids=ids, semantic_ids=torch.full_like(ids, SemanticType.NOISE)).logits
    assert (found - plain).abs().max() > 1e-3
