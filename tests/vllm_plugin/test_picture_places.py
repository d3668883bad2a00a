"""What is said of a picture's placeholder holds for all its tokens; needs no vLLM."""

from types import SimpleNamespace

import numpy as np
import pytest

from hsa_factory import HSAConfig
from hsa_factory.vllm.pictures import as_sent, places_sent, read_request, sent_with_pictures, types_of_expanded
from hsa_factory.vllm.types import InvalidTypes


IDS = [5, 9, 9, 9, 6, 9, 9, 9, 9, 7]  # two pictures, of three and four tokens that stand beside text
SPANS = [(1, 3), (5, 4)]


def test_a_prompt_and_what_the_model_reads():
    assert places_sent(10, SPANS).tolist() == [0, 1, 1, 1, 2, 3, 3, 3, 3, 4]
    assert as_sent(IDS, SPANS) == [5, 9, 6, 9, 7] and as_sent(IDS, []) == IDS
    assert as_sent([9] * 5, [(0, 2), (2, 3)]) == [9, 9]  # one behind the other, with nothing between


def test_types_and_turns_spread():
    fields = {"hsa_types": "02120", "hsa_turns": "0*2,1*3", "hsa_roles": "user"}
    rules = [{"role": "user", "turn": 0, "type": "GLOBAL"}]
    prompt = types_of_expanded(fields, 10, SPANS, HSAConfig(noise_turns=1, rules=rules))
    assert prompt.types.tolist() == [0, 2, 2, 2, 1, 2, 2, 2, 2, 0]
    assert prompt.turns.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1] and prompt.roles == ("user",)
    with pytest.raises(
        InvalidTypes, match="10 digits, but the prompt has 5 tokens: one digit a token, and one for a pict"
    ):
        types_of_expanded({"hsa_types": "0" * 10}, 10, SPANS, HSAConfig())


def request(fields, kind="image"):
    features = [
        SimpleNamespace(modality=kind, mm_position=SimpleNamespace(offset=start, length=number))
        for start, number in SPANS
    ]
    return SimpleNamespace(
        prompt_token_ids=IDS, mm_features=features, sampling_params=SimpleNamespace(extra_args=fields)
    )


def test_choices_that_share_their_parameters():
    first, second = request({"hsa_types": "02120", "x": 1}), request({})
    second.sampling_params = shared = first.sampling_params
    for one in (first, second):
        assert np.array_equal(read_request(one, HSAConfig()).types, [0, 2, 2, 2, 1, 2, 2, 2, 2, 0])
        assert one.sampling_params.extra_args == {"hsa_types": "0222122220", "x": 1}
    assert shared.extra_args == {"hsa_types": "02120", "x": 1}


def test_what_is_no_picture():
    with pytest.raises(InvalidTypes, match="^video: "):
        read_request(request(None, "video"), HSAConfig())


def test_tokens_of_a_request_with_pictures():
    """What `/inference/v1/generate` is sent; what is malformed is vLLM's to refuse."""
    places = [{"offset": start, "length": number} for start, number in SPANS]
    assert sent_with_pictures({"token_ids": IDS, "features": {"mm_placeholders": {"image": places}}}) == as_sent(
        IDS, SPANS
    )
    files = [{"type": "image_url", "url": "x"}]
    assert sent_with_pictures({"token_ids": [5, 9, 6], "content_parts": files}) == [5, 9, 6]
    for body in ({"token_ids": IDS}, {"features": {}}, None, [], {"token_ids": 5, "features": {"mm_placeholders": {"image": places}}},
                 {"token_ids": IDS, "features": {"mm_placeholders": {"image": [{"offset": "0", "length": None}]}}},
                 {"token_ids": IDS, "features": [1]}, {"token_ids": IDS, "content_parts": [{}]}):  # fmt: skip
        assert sent_with_pictures(body) is None
    for kind in ({"content_parts": [{"type": "video_url"}]}, {"features": {"mm_placeholders": {"audio": places}}}):
        with pytest.raises(InvalidTypes, match="served with HSA on vLLM are text and pictures"):
            sent_with_pictures({"token_ids": IDS, **kind})
