"""What typed rows must be, from plain LLaMA-Factory alone: each token's message, whatever was cut or packed."""

from itertools import accumulate
from typing import Any


class Places:
    """A template whose ids are the tokens' places in all samples: it tells what truncation and packing did to each.

    Attributes:
        samples: (pairs of real ids, all real ids) of each sample encoded.
    """

    STRIDE = 1_000_000  # the places of sample k start at (k + 1) · STRIDE, above every vocabulary

    def __init__(self, template: Any) -> None:
        self.__dict__.update(template.__dict__)
        self.template, self.samples = template, []

    def encode_multiturn(self, *args: Any) -> list[tuple[list[int], list[int]]]:
        pairs = self.template.encode_multiturn(*args)
        places, next_place = [], (len(self.samples) + 1) * self.STRIDE
        for prompt, response in pairs:
            middle, end = next_place + len(prompt), next_place + len(prompt) + len(response)
            places.append((list(range(next_place, middle)), list(range(middle, end))))
            next_place = end
        self.samples.append((pairs, [token for pair in pairs for side in pair for token in side]))
        return places


class Oracle:
    """What the typed rows must be, from plain LLaMA-Factory alone.

    Args:
        template: Any.
        tokenizer: The run's.
        data_args: The run's.
        samples: Each (messages with `semantic_type`, system prompt, its type, tools).
        feedback: None: labels stay as they are.
        processor: Of a vision-language model.

    Attributes:
        rows: `input_ids`, `attention_mask`, `labels`, `semantic_ids`, `loss_mask`, `turn_ids` of each row.
        kept: Numbers of the samples that are not dropped.
        dropped: Why each other sample is dropped.
        counts: What the report must say.
    """

    def __init__(self, template, tokenizer, data_args, samples, feedback=None, processor=None) -> None:
        from llamafactory.data.processor import PackedSupervisedDatasetProcessor, SupervisedDatasetProcessor

        parts = (tokenizer, processor, data_args)
        self.template, self.tokenizer, self.samples = template, tokenizer, samples
        self.marker = tokenizer.convert_tokens_to_ids(feedback.token) if feedback is not None else None
        self.feedback, self.train_on_prompt = feedback, data_args.train_on_prompt
        self.places = places = Places(template)
        alone = SupervisedDatasetProcessor(places, *parts)
        self.kept, self.dropped = [], {}
        counts = {"samples": len(samples), "with_marker": 0, "trained_tokens": 0, "text_truncated": 0, "marker_cut": 0}
        counts["tokens"] = {"GLOBAL": 0, "LANDMARK": 0, "NOISE": 0}
        for number, sample in enumerate(samples):
            ids, labels = alone._encode_data_example(*self._arguments(sample))
            sides = self._sides(number)
            counts["with_marker"] += self.marker is not None and self.marker in places.samples[number][1]
            row = self._row(ids, labels)
            first = (number + 1) * Places.STRIDE
            counts["marker_cut"] += any(first + place not in ids for place in self._deciding(number, sides))
            if sides is None:
                self.dropped[number] = "no feedback marker"
            elif all(label == -100 or not keep for label, keep in zip(row["labels"], row["loss_mask"])):
                self.dropped[number] = "nothing left to train"
            elif data_args.packing and len(ids) > data_args.cutoff_len:
                self.dropped[number] = "longer than cutoff_len"
            else:
                self.kept.append(number)
                counts["text_truncated"] += len(ids) - template.efficient_eos < len(places.samples[number][1])
                for kind, name in enumerate(counts["tokens"]):
                    counts["tokens"][name] += row["semantic_ids"].count(kind)
                counts["trained_tokens"] += sum(
                    label != -100 and keep for label, keep in zip(row["labels"], row["loss_mask"])
                )
        counts["kept"] = len(self.kept)
        self.counts = counts

        rows = (PackedSupervisedDatasetProcessor if data_args.packing else SupervisedDatasetProcessor)(
            _OnlyKept(places, self.kept), *parts
        ).preprocess_dataset(self.columns(samples, self.kept))
        sees_all = data_args.packing and not data_args.neat_packing  # what stands in a row is one document
        self.rows = [
            {**self._row(ids, labels), "attention_mask": mask, "turn_ids": self._turns(ids, labels, sees_all)}
            for ids, labels, mask in zip(rows["input_ids"], rows["labels"], rows["attention_mask"])
        ]

    @staticmethod
    def columns(samples, numbers=None) -> dict[str, list[Any]]:
        """Return a batch as the converters make it."""
        columns = {name: [] for name in ("_prompt", "_response", "_system", "_tools", "_images", "_videos", "_audios")}
        columns |= {name: [] for name in ("_hsa_index", "_hsa_dataset", "_hsa_system_type", "_hsa_typed_messages")}
        columns |= {name: [] for name in ("_hsa_system_spans", "_hsa_rules")}
        for index in range(len(samples)) if numbers is None else numbers:
            messages, system, system_type, tools = samples[index]
            values = (messages[:-1], messages[-1:], system, tools, None, None, None)
            values += (index, "data", int(system_type), len(messages), "", "")
            for column, value in zip(columns.values(), values):
                column.append(value)
        return columns

    @staticmethod
    def _arguments(sample) -> tuple:
        messages, system, _, tools = sample
        return messages[:-1], messages[-1:], system, tools, [], [], []

    def _sides(self, number) -> list[bool] | None:
        """Return, for each token of a whole sample, whether it may be trained; None if the sample is dropped."""
        pairs, ids = self.places.samples[number]
        messages = self.samples[number][0]
        ends = list(accumulate(len(side) for pair in pairs for side in pair))  # of each message
        owner = [k for k, side in enumerate(side for pair in pairs for side in pair) for _ in side]
        if self.template.efficient_eos and not self.train_on_prompt:
            for k in range(1, len(ends) - 1, 2):  # the EOS that ends a reply is the label of the first id after it
                if ends[k] < ends[k + 1]:
                    owner[ends[k]] = k
        counts = [k % 2 == 1 or self.train_on_prompt for k in owner]  # of prompts nothing is trained
        sides = [not count or messages[k].get("weight", 1) != 0 for k, count in zip(owner, counts)]
        feedback = self.feedback
        if feedback is not None:
            markers = [place for place, token in enumerate(ids) if token == self.marker]
            if not markers and feedback.missing != "train":
                return None
            for place, k in enumerate(owner) if markers else ():
                stop = ends[min(k + 1, len(ends) - 1)]
                if feedback.train == "recovery":
                    failed = k % 2 == 1 and any(ends[k] <= marker < stop for marker in markers)
                elif feedback.occurrence == "last":
                    failed = place <= markers[-1]
                else:
                    failed = place <= markers[0]
                    if feedback.occurrence == "every" and k % 2 == 1:
                        failed |= any(place <= marker < stop for marker in markers)
                sides[place] &= not failed
        return sides

    def _deciding(self, number, sides) -> list[int]:
        """Return the places of the markers by which something was masked."""
        markers = [place for place, token in enumerate(self.places.samples[number][1]) if token == self.marker]
        if self.feedback is None or not markers or all(sides):
            return []
        if self.feedback.train == "recovery" or self.feedback.occurrence == "every":
            return markers
        return [markers[0] if self.feedback.occurrence == "first" else markers[-1]]

    def types(self, number) -> list[int | None]:
        """Return, for each token of a whole sample, its type; None where a text has parts of several types."""
        from llamafactory.data.template import Llama2Template

        messages, system, system_type, tools = self.samples[number]
        own = [None if message.get("spans") else int(message["semantic_type"]) for message in messages]
        system_type = system_type if system else 0
        system = system or self.template.default_system
        expected = []
        for k, (prompt, response) in enumerate(self.places.samples[number][0]):
            prompt_types = [own[2 * k]] * len(prompt)
            if k == 0 and (system or tools):
                if isinstance(self.template, Llama2Template):
                    prompt_types = [None] * len(prompt)
                else:
                    tool_text = self.template.format_tools.apply(content=tools)[0] if tools else ""
                    if type(self.template).__name__ == "MossVLTemplate" and not system:  # LLaMA-Factory 0.9.6
                        tool_text = tool_text.lstrip("\n")
                    prefix = self.template.format_prefix.apply()
                    head = prefix + self.template.format_system.apply(content=system + tool_text)
                    start, length = (
                        len(self.template._convert_elements_to_ids(self.tokenizer, part)) for part in (prefix, head)
                    )
                    if start < length:  # else there is no system prompt, and the prefix goes with the message
                        prompt_types[:length] = [int(system_type)] * length
            expected += prompt_types + [own[2 * k + 1]] * len(response)
        return expected

    def _row(self, places, labels) -> dict[str, list[Any]]:
        """Turn a row of places into what the typed row must be."""
        row = {"input_ids": [], "labels": [], "semantic_ids": [], "loss_mask": []}
        whole = {}
        for place, label in zip(places, self._aligned(places, labels), strict=True):
            number, where = divmod(place, Places.STRIDE)
            if number == 0:  # not from a sample: an EOS at the end of the last one, or padding
                padding = label == -100
                before = row["semantic_ids"][-1] if row["semantic_ids"] else None
                kind, keep = (2, 0) if padding else (before, row["loss_mask"][-1] if row["loss_mask"] else 0)
                values = (place, label, kind, keep)
            else:
                if number not in whole:
                    sides = self._sides(number - 1)
                    ids = self.places.samples[number - 1][1]
                    whole[number] = (ids, self.types(number - 1), sides or [False] * len(ids))
                ids, types, sides = whole[number]
                label = label if label < Places.STRIDE else ids[label % Places.STRIDE]  # an EOS may stand for it
                values = (ids[where], label, types[where], int(sides[where]))
            for column, value in zip(row.values(), values):
                column.append(value)
        return row

    def _turns(self, places, labels, sees_all: bool) -> list[int]:
        """Return the turn of each token of a row: the number of its pair in the whole sample."""
        turns, before, last = [], 0, None
        for place, label in zip(places, self._aligned(places, labels), strict=True):
            number, where = divmod(place, Places.STRIDE)
            if (
                number == 0
            ):  # an EOS stands with the token before it; padding is turn 0, if it is not seen as one document
                turns.append(turns[-1] if label != -100 or sees_all else 0)
                continue
            ends = accumulate(len(prompt) + len(response) for prompt, response in self.places.samples[number - 1][0])
            turn = next(k for k, end in enumerate(ends) if where < end)
            if sees_all and last not in (None, number):
                before = turns[-1] + 1 - turn
            turns.append(turn + before)
            last = number
        return turns

    def _aligned(self, places, labels) -> list[int]:
        """Leave out each label that LLaMA-Factory puts at the start of a prompt without ids: it stands at none."""
        starts = set()
        for number, (pairs, _) in enumerate(self.places.samples):
            place = (number + 1) * Places.STRIDE
            for prompt, response in pairs:
                starts |= {place} if prompt else set()
                place += len(prompt) + len(response)
        aligned, rest, eos = [], iter(labels), self.tokenizer.eos_token_id
        for place in places:
            label = next(rest)
            while label == eos and place >= Places.STRIDE and place not in starts:
                label = next(rest)
            aligned.append(label)
        return aligned


class _OnlyKept:
    """`Places` that hands out again what it made for the samples that are kept."""

    def __init__(self, places: Places, kept: list[int]) -> None:
        self.__dict__.update(places.template.__dict__)
        self.places, self.kept = places, iter(kept)

    def encode_multiturn(self, *args: Any) -> list[tuple[list[int], list[int]]]:
        again = Places(self.places.template)
        again.samples = [None] * next(self.kept)
        return again.encode_multiturn(*args)


def prompt_types(template: Any, tokenizer: Any, sample: tuple) -> list[int | None]:
    """Return, for each token of a prompt without its reply, its type; see `Oracle.types`."""
    messages, system, _, tools = sample
    lengths = []

    def encode(*args: Any) -> list[list[int]]:
        encoded = template._encode(*args)
        lengths.extend(map(len, encoded))
        return encoded

    recording = object.__new__(type(template))
    recording.__dict__.update(template.__dict__, _encode=encode)
    prompt_ids, _ = recording.encode_oneturn(tokenizer, messages, system, tools)
    oracle = object.__new__(Oracle)
    oracle.template, oracle.tokenizer, oracle.samples, oracle.places = template, tokenizer, [sample], Places(template)
    bounds = list(accumulate(lengths[:-1], initial=0))
    bounds[-1] = len(prompt_ids)  # an empty thinking block stands behind the last message
    sides = [prompt_ids[start:stop] for start, stop in zip(bounds, bounds[1:])] + [[]]
    oracle.places.samples.append((list(zip(sides[::2], sides[1::2])), prompt_ids))
    return oracle.types(0)


def types_by_mark(lf, prepared):
    """Return the types of each mark's tokens in all rows."""
    marks, kinds = lf.mark_ids(prepared.tokenizer), {}
    for row in prepared.rows():
        for token, kind in zip(row["input_ids"], row["semantic_ids"], strict=True):
            if token in marks:
                kinds.setdefault(marks[token], set()).add(kind)
    return {mark: kinds[mark].pop() if len(kinds[mark]) == 1 else kinds[mark] for mark in sorted(kinds)}
