"""A probe for silence: does HSA reach a model's attention, whatever is wrapped around it?

A token that nothing trained or answered can see, through all layers, may be changed without anything moving; one that it
can see may not. What can be seen is worked out here from the rules alone, not by the package's own masks.
"""

import torch

from hsa_factory import HSAConfig
from hsa_factory.models.enable import get_state


NEAR = 1e-5  # what moves less stands still: other tokens of a batch change the order of sums in experts
FAR = 1e-3


def visible(config, types, documents, sliding_window=None, has_hsa=True):
    """Return (L, L) bool: which query sees which key in one layer."""
    windows = (config.global_window, config.landmark_window, config.noise_window)
    number, seen = len(types), torch.zeros(len(types), len(types), dtype=torch.bool)
    place = [sum(other == document for other in documents[:index]) for index, document in enumerate(documents)]
    for query in range(number):
        for key in range(query + 1):
            distance = place[query] - place[key]
            window = windows[types[key]] if has_hsa else None
            is_far = window is not None and distance > window
            is_far |= sliding_window is not None and distance >= sliding_window
            is_hidden = has_hsa and (types[query], types[key]) in config.hide
            same = documents[query] == documents[key] != 0
            seen[query, key] = query == key or (same and not is_far and not is_hidden)
    return seen


def reached(config, windows, types, documents):
    """Return (L, L) float: whether a token reaches a query through all layers. `windows`: those of the layers."""
    reach = torch.eye(len(types))
    for layer, window in windows.items():
        has_hsa = config.layers is None or layer in config.layers
        reach = (visible(config, types, documents, window, has_hsa).float() @ reach > 0).float()
    return reach


def probed_positions(labels, documents):
    """Return the positions whose logits count: those that predict a trained label, and each document's last token."""
    last = [index for index, number in enumerate(documents) if number and number not in documents[index + 1 :]]
    trained = [] if labels is None else [index - 1 for index, label in enumerate(labels) if index and label != -100]
    return sorted({index for index in (*last, *trained) if documents[index]})


def assert_hsa_reaches(model, batch, config=None, windows=None, forward=None):
    """Change one hidden and one visible token of a batch's first row, and look at what moves.

    Args:
        model: With HSA, wrapped or not, in training mode or not.
        batch: `input_ids`, `semantic_ids` and, if the model gets them, `attention_mask` (numbered if packed), `labels` …
        config: The rules that must hold; None: those on the model.
        windows: The model's own sliding window of each softmax layer; None: those on the model.
        forward: Called with a batch, returns logits (B, L, V); None: the model itself.
    """
    state = get_state(model) if config is None or windows is None else None
    config, windows = config or state.config, windows or state.windows
    assert isinstance(config, HSAConfig)
    ids, types = batch["input_ids"], batch["semantic_ids"][0].tolist()
    documents = batch["attention_mask"][0].long().tolist() if "attention_mask" in batch else [1] * len(types)
    labels = batch["labels"][0].tolist() if "labels" in batch else None
    positions = probed_positions(labels, documents)
    reach = reached(config, windows, types, documents)[positions].sum(0)
    real = torch.tensor(documents) != 0
    hidden, seen = ((real & (reach == 0)).nonzero().flatten(), (real & (reach > 0)).nonzero().flatten())
    hidden, seen = hidden[hidden > 0], seen[(seen > 0) & ~torch.isin(seen, torch.tensor(positions))]
    assert len(hidden) and len(seen), "this batch has no token to probe with"

    def logits(changed=None):
        inputs = {**batch, "input_ids": ids.clone()}
        if changed is not None:
            other = next(number for number in (11, 12) if number != int(ids[0, changed]))
            inputs["input_ids"][0, changed] = other
            assert labels is None or labels[changed] == -100 or forward is not None
        with torch.set_grad_enabled(model.training):
            output = forward(inputs) if forward is not None else model(**inputs, use_cache=False).logits
        return output[0, positions].detach().float()

    before = logits()
    size = max(1.0, before.abs().max().item())
    for index in (hidden[0], hidden[-1]):
        moved = (logits(int(index)) - before).abs().max().item()
        assert moved <= NEAR * size, f"token {index} is out of sight, but changing it moves logits by {moved:.2e}"
    moved = max((logits(int(index)) - before).abs().max().item() for index in (seen[0], seen[-1]))
    assert moved > FAR * size, f"tokens {seen[0]} and {seen[-1]} are in sight, but changing them moves nothing"


def probe_batch(length=96, layers=2, window=3, rows=2, labels=True, packed=False):
    """Return a batch with tokens of every kind: a task, NOISE that nobody remembers, key events, an answer.

    Args:
        length: L.
        layers: Of the model.
        window: `noise_window` of its rules.
        rows: B.
        labels: Whether the last tokens are trained; else the last one is looked at.
        packed: Two documents a row, numbered in `attention_mask`.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, 300, (rows, length), generator=generator)
    types = torch.full((rows, length), 2)
    starts = [0, length // 2] if packed else [0]
    for start in starts:
        types[:, start : start + 4] = 0
    gap = layers * window + 2  # what stands before it is handed on by nobody
    types[:, -(gap + 8) : -gap] = 1
    assert length // len(starts) > 2 * gap + 20
    batch = {"input_ids": ids, "semantic_ids": types, "attention_mask": torch.ones_like(ids)}
    if packed:
        batch["attention_mask"][:, length // 2 :] = 2
    if labels:
        batch["labels"] = torch.full_like(ids, -100)
        batch["labels"][:, -4:] = ids[:, -4:]
    return batch
