"""Which keys a query sees, and how they fade: what `LayerRules` says, as a processor's loops."""

import numpy as np
from numba import njit

from .records import KEYS


HIDDEN = np.float32(-1e30)
"""A logit: finite, as nothing but such ones may come first, and infinite ones have no difference."""


@njit
def is_seen(place, query, kind, sight, turns):
    """Whether a query sees a key at a place that is not behind it."""
    if len(turns) == 0:
        return query - place <= sight.windows[kind]
    is_near = query - place <= sight.windows[kind] or turns[query] - turns[place] <= sight.turns[kind]
    return is_near and query - place <= sight.sliding


@njit
def first_seen(places, number, query, kind, sight, turns):
    """Return the first key of a type that a query, or one behind it, sees: of all from there on the same holds."""
    low, high = 0, number
    while low < high:
        middle = (low + high) >> 1
        if places[middle] >= query or is_seen(places[middle], query, kind, sight, turns):
            high = middle
        else:
            low = middle + 1
    return low


@njit
def number_until(places, number, query):
    """Return how many keys are not behind a query."""
    low, high = 0, number
    while low < high:
        middle = (low + high) >> 1
        if places[middle] <= query:
            low = middle + 1
        else:
            high = middle
    return low


@njit
def limit(logits, query, places, last, decays):
    """Fade and hide keys, of which each is seen up to a position."""
    for key in range(KEYS):
        logit = logits[key] - decays[key] * np.float32(query - places[key])
        logits[key] = logit if (places[key] <= query) & (query <= last[key]) else HIDDEN


@njit
def limit_with_turns(logits, query, turn, places, last, last_turn, sliding, decays):
    for key in range(KEYS):
        distance = query - places[key]
        logit = logits[key] - decays[key] * np.float32(distance)
        is_near = (query <= last[key]) | (turn <= last_turn[key])
        logits[key] = logit if (places[key] <= query) & is_near & (distance <= sliding) else HIDDEN


@njit
def hide(logits, query, query_type, places, kinds, hides):
    for key in range(KEYS):
        if (hides >> (3 * query_type + kinds[key])) & 1 and places[key] != query:
            logits[key] = HIDDEN
