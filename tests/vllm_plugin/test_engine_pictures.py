"""Vision-language models: a picture has the type of its placeholder, and leaves the cache when it is out of sight."""

import pytest
from pictures import Seen, as_read, ask, expected, random_picture, texts
from test_engine_adapters import make_adapter, merged
from test_engine_pool import FULL_SIGHT, holds_nothing
from vllm import SamplingParams

from hsa_factory import HSAConfig
from hsa_factory.vllm.offline import chat_request
from hsa_factory.vllm.server.renderer import _ids_of
from hsa_factory.vllm.types import InvalidTypes


FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SMALL = {"num_gpu_blocks_override": 40, "max_num_batched_tokens": 48, "max_model_len": 2048}
"""No request below fits into it as a whole, and most pictures are read in two steps or more."""


@pytest.fixture(params=FAMILIES)
def served(request, serve):
    return serve(request.param, config=FULL_SIGHT, **SMALL)


def test_pictures_that_leave_the_cache(served, rng):
    requests = [Seen.random(rng, served.tokenizer, pictures) for pictures in (14, 1, 6, 14)]
    right = [expected(served, request, 30) for request in requests]
    freed = served.scheduler.counts.freed
    answers = ask(served, requests, 30)
    assert texts(answers) == right
    assert [answer.prompt_token_ids for answer in answers] == [
        as_read(served, request)[0]["ids"].tolist() for request in requests
    ]
    assert len(answers[0].prompt_token_ids) > 640 and served.scheduler.counts.freed - freed > 40
    assert holds_nothing(served)
    blind = [Seen(request.ids, [0] * len(request.ids), request.pictures) for request in requests[1:3]]
    assert [expected(served, request, 30) for request in blind] != right[1:3]  # types matter


def test_a_conversation_finds_its_pictures_again(served, rng):
    request = Seen.random(rng, served.tokenizer, 8)
    for _ in range(4):
        (answer,) = ask(served, [request], 12)
        assert texts([answer]) == [expected(served, request, 12)]
        known = len(answer.prompt_token_ids)
        text = [min(token, 279) for token in answer.outputs[0].token_ids]  # it may have written a placeholder
        longer = request.then(text, [0] * 12, Seen.random(rng, served.tokenizer, 2))
        (again,) = ask(served, [longer], 12)
        assert texts([again]) == [expected(served, longer, 12)]
        assert again.num_cached_tokens > known - 32
        request = longer


def test_another_picture_and_another_type_are_not_found(served, rng):
    request = Seen.random(rng, served.tokenizer, 3, text=40)
    sizes = [picture.size[::-1] for picture in request.pictures]
    ask(served, [request], 8)
    other = Seen(request.ids, request.types, [*request.pictures[:1], *(random_picture(rng, s) for s in sizes[1:])])
    pad = request.ids.index(other.ids[13], 14)  # the second picture's placeholder
    typed = Seen(request.ids, request.types, request.pictures)
    typed.types[pad] = (typed.types[pad] + 1) % 3
    for changed in (other, typed):
        start = int((as_read(served, changed)[0]["ids"] == request.ids[13]).cumsum().searchsorted(0, "right"))
        (answer,) = ask(served, [changed], 24)
        assert texts([answer]) == [expected(served, changed, 24)]
        second = start + as_read(served, request)[1]["image_grid_thw"].prod(-1)[0].item() // 4
        assert answer.num_cached_tokens < second + 60


def test_choices_and_turns(serve, rng):
    config = HSAConfig(noise_turns=1, noise_window=0, noise_decay=0)
    served = serve("qwen2_5_vl", config=config, **SMALL)
    request = Seen.random(rng, served.tokenizer, 6)
    request.turns = [place // 30 for place in range(len(request.ids))]
    params = SamplingParams(n=2, temperature=1, top_k=1, max_tokens=20, ignore_eos=True, extra_args=request.fields())
    (answer,) = served.llm.generate([request.prompt()], params, use_tqdm=False)
    assert [list(choice.token_ids) for choice in answer.outputs] == [expected(served, request, 20)] * 2


def test_preempted_pictures(serve, rng, preempted):
    served = serve("qwen2_5_vl", config=FULL_SIGHT, **{**SMALL, "num_gpu_blocks_override": 30})
    seen = preempted(served.scheduler)
    requests = [Seen.random(rng, served.tokenizer, 2, text=20) for _ in range(4)]
    for request in requests[:3]:
        request.types = [min(kind, 1) for kind in request.types]  # so that little is given back
    answers = ask(served, requests, 60)
    assert seen and holds_nothing(served)
    assert texts(answers) == [expected(served, request, 60) for request in requests]


def test_pictures_with_adapters(serve, rng, tmp_path):
    served = serve("qwen2_5_vl", config=FULL_SIGHT, enable_lora=True, max_lora_rank=8, **SMALL)
    adapter, added = make_adapter(tmp_path / "adapter", served.model, 1, FULL_SIGHT)
    requests = [Seen.random(rng, served.tokenizer, pictures) for pictures in (3, 6)]
    plain = [expected(served, request, 20) for request in requests]
    with merged(served.model, added):
        adapted = [expected(served, request, 20) for request in requests]
    assert plain[0] != adapted[0] and plain[1] != adapted[1]
    adapters = [None, None, adapter, adapter]
    for _ in range(2):  # the second time from the cache, where each has its own
        assert texts(ask(served, requests * 2, 20, adapters=adapters)) == plain + adapted


def test_digits_count_a_picture_once(serve, rng, caplog):
    served = serve("qwen2_5_vl", config=FULL_SIGHT, **SMALL)
    request = Seen.random(rng, served.tokenizer, 2)
    wrong = Seen(request.ids, as_read(served, request)[0]["types"].tolist(), request.pictures)
    first, second = ask(served, [wrong, request], 8)
    assert first.outputs[0].finish_reason == "error" and not first.outputs[0].token_ids
    assert texts([second]) == [expected(served, request, 8)]


def test_text_alone_and_default_types(serve, rng):
    served = serve("qwen3_vl", config=FULL_SIGHT, **SMALL)
    request = Seen.random(rng, served.tokenizer, 3)
    default = Seen(request.ids, [0] * len(request.ids), request.pictures)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    answers = served.llm.generate([request.prompt()], params, use_tqdm=False)
    assert texts(answers) == [expected(served, default, 12)]
    ids, types = request.ids[:12], [0] * 6 + [2] * 6
    assert served.ask([(ids, types)], 12) == served.expected([(ids, types)], 12)


def test_videos_are_refused_and_the_engine_goes_on(serve, rng):
    served = serve("qwen2_5_vl", config=FULL_SIGHT, **SMALL)
    film = {"prompt": "<|vision_start|><|video_pad|><|vision_end|>", "multi_modal_data": {}}
    film["multi_modal_data"]["video"] = [
        (rng.integers(0, 256, (2, 56, 56, 3), dtype="uint8"), {"fps": 2.0, "duration": 1.0, "total_num_frames": 2})
    ]
    request = Seen.random(rng, served.tokenizer, 1)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    (answer,) = served.llm.generate([film], params, use_tqdm=False)
    assert answer.outputs[0].finish_reason == "error" and not answer.outputs[0].token_ids
    with pytest.raises(InvalidTypes, match="^video: served with HSA on vLLM are text and pictures"):
        _ids_of({"type": "multimodal", "prompt_token_ids": [1], "mm_placeholders": {"video": [], "image": []}})
    assert texts(ask(served, [request], 8)) == [expected(served, request, 8)]


def test_chat_messages_without_a_server(serve, rng):
    served = serve("qwen3_vl", config=FULL_SIGHT, **SMALL)
    content = [{"type": "image"}, {"type": "text", "text": "You see a fridge.", "semantic_type": "LANDMARK"}]
    messages = [{"role": "user", "semantic_type": "NOISE", "content": content}]
    prompt, types = chat_request(served.tokenizer, messages, FULL_SIGHT)
    pictures = [random_picture(rng)]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, extra_args=types)
    request = {**prompt, "multi_modal_data": {"image": pictures}}
    same = Seen(prompt["prompt_token_ids"], map(int, types["hsa_types"]), pictures)
    pad = served.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert same.types[same.ids.index(pad)] == 2 and 1 in same.types
    answers = served.llm.generate([request], params, use_tqdm=False)
    assert texts(answers) == [expected(served, same, 20)]
