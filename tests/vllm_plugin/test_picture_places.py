"""What is said of a picture's placeholder holds for all its tokens; needs no vLLM."""

from types import SimpleNamespace

import numpy as np
import pytest

from hsa_factory import HSAConfig
from hsa_factory.vllm.pictures import as_sent, places_sent, read_request, types_of_expanded
from hsa_factory.vllm.types import InvalidTypes


IDS = [5, 9, 9, 9, 6, 9, 9, 9, 9, 7]  # two pictures, of three and four tokens that stand beside text
SPANS = [(1, 3), (5, 4)]


def test_a_prompt_and_what_the_model_reads():
    assert places_sent(10, SPANS).tolist() == [0, 1, 1, 1, 2, 3, 3, 3, 3, 4]
    assert as_sent(IDS, SPANS) == [5, 9, 6, 9, 7] and as_sent(IDS, []) == IDS
    assert as_sent([9] * 5, [(0, 2), (2, 3)]) == [9, 9]  # one behind the other, with nothing between


def test_types_and_turns_spread():
    fields = {"hsa_types": "02120", "hsa_turns": "0*2,1*3"}
    prompt = types_of_expanded(fields, 10, SPANS, HSAConfig(noise_turns=1))
    assert prompt.types.tolist() == [0, 2, 2, 2, 1, 2, 2, 2, 2, 0]
    assert prompt.turns.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
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
