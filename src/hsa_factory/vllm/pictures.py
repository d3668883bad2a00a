"""Pictures in a prompt: vLLM puts their tokens in the place of one, and what is known of that one holds for all.

A client knows its prompt as it was sent, with one token for each picture; how many it becomes is known when vLLM has read it.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import HSAConfig
from .types import InvalidTypes, PromptTypes, fields_of, types_of


Span = tuple[int, int]
"""Where the tokens of a picture begin in the prompt as the model reads it, and how many they are."""


PICTURE = "image"
"""What vLLM calls a picture."""


def refuse_media(kinds: Iterable[str]) -> None:
    """Refuse what is no picture.

    Args:
        kinds: Of what is in a prompt, as vLLM calls them.

    Raises:
        InvalidTypes: It names them.
    """
    others = sorted({*kinds} - {PICTURE})
    if others:
        raise InvalidTypes(f"{', '.join(others)}: served with HSA on vLLM are text and pictures.")


def places_sent(length: int, spans: Sequence[Span]) -> NDArray[np.int64]:
    """Return, for each token that the model reads, which token of the prompt as it was sent it comes from, ascending.

    Args:
        length: L, of the tokens that the model reads.
        spans: Of the pictures; each was one token.

    Returns:
        (L,) places.
    """
    is_first = np.ones(length, np.int64)
    for start, number in spans:
        is_first[start + 1 : start + number] = 0
    return np.cumsum(is_first) - 1


def as_sent(ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
    """Return a prompt as it was before pictures were put in.

    Args:
        ids: The tokens that the model reads.
        spans: Of the pictures, each of which repeats its placeholder.
    """
    is_first = np.diff(places_sent(len(ids), spans), prepend=-1) > 0
    return [token for token, is_kept in zip(ids, is_first.tolist()) if is_kept]


def sent_with_pictures(body: Any) -> list[int] | None:
    """Return the tokens of a request to `/inference/v1/generate` as they were sent, one for each picture.

    Args:
        body: The request, as JSON.

    Returns:
        None: it has no pictures, or is malformed, which vLLM will say.

    Raises:
        InvalidTypes: For what is no picture.
    """
    try:
        ids, parts, features = body["token_ids"], body.get("content_parts"), body.get("features")
        if parts:  # files, which vLLM puts in the places of their placeholders
            refuse_media(str(part["type"]).removesuffix("_url") for part in parts)
            return list(ids)
        if not features:
            return None
        places = features["mm_placeholders"]
        refuse_media(places)
        return as_sent(ids, [(place["offset"], place["length"]) for place in places.get(PICTURE, ())])
    except (AttributeError, LookupError, TypeError):
        return None


def types_of_expanded(
    fields: Mapping[str, Any] | None, length: int, spans: Sequence[Span], config: HSAConfig
) -> PromptTypes:
    """Read what a request says of its prompt as it was sent, for the tokens that the model reads.

    Args:
        fields: The request's ``extra_args``.
        length: L, of the tokens that the model reads.
        spans: Of the pictures.
        config: The rules of the model that is served.

    Returns:
        Of L tokens.

    Raises:
        InvalidTypes: As `types_of`.
    """
    if not spans:
        return types_of(fields, length, config)
    places = places_sent(length, spans)
    sent = types_of(fields, int(places[-1]) + 1, config)
    return PromptTypes(sent.types[places], None if sent.turns is None else sent.turns[places], sent.roles)


def read_request(request: Any, config: HSAConfig) -> PromptTypes:
    """Read what a request in the scheduler says of its prompt; the workers are told of each token that the model reads.

    Args:
        request: vLLM's, with the ids that the model reads.
        config: The rules of the model that is served.

    Raises:
        InvalidTypes: As `types_of`, and for what is no picture.
    """
    refuse_media(feature.modality for feature in request.mm_features)
    spans = [(feature.mm_position.offset, feature.mm_position.length) for feature in request.mm_features]
    params = request.sampling_params
    prompt = types_of_expanded(params.extra_args, len(request.prompt_token_ids), spans, config)
    if spans:
        request.sampling_params = copy(params)  # several choices of one request share it
        known = fields_of(prompt.types, prompt.turns, prompt.roles)
        request.sampling_params.extra_args = {**(params.extra_args or {}), **known}
    return prompt
