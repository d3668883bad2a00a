"""What happened to the data: counts per data set, carried through caches and workers, shown before the first step."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...amounts import amount
from ...inspection.sight import describe_sight
from ...semantics import SemanticType
from ...visible_text import show_hidden_line
from ...whole_files import write_whole


REPORT_NAME = "hsa_report.json"
_MAX_LISTED = 20
_TYPE_NAMES = tuple(kind.name for kind in SemanticType)


@dataclass
class DatasetAccount:
    """Counts of one data set.

    Attributes:
        samples: Samples read.
        with_marker: Samples that hold the feedback marker.
        kept: Samples that are trained.
        dropped: Samples left out, by reason.
        dropped_samples: Numbers of the first of them, by reason.
        text_truncated: Kept samples whose end LLaMA-Factory cut at `cutoff_len`.
        turns_removed: Kept samples that lost whole turns because the cut would have fallen inside media.
        prompts_cut: Kept pairs of which `cutoff_len` took the end of the prompt: what the replies answer.
        marker_cut: Samples, dropped ones included, of which truncation took a feedback marker that decides what is trained.
        marker_cut_samples: Numbers of the first of them.
        messages: Messages of the samples read.
        typed_messages: Messages that came with a type of their own.
        ruled_messages: Other messages that a rule of `hsa.rules` typed.
        guessed_messages: Messages of kept samples whose parts have several types and whose text was changed on the way, so
            that parts of it took the type among several that remembers most.
        lost_call_parts: Parts of tool calls of kept samples that have a type of their own, but whose text was not found again
            in the call as the template writes it, or not in one place only: it has the type of the message.
        filled_tokens: Tokens of kept samples, before truncation, that LLaMA-Factory added itself (a BOS, an empty thinking
            block, an EOS, pictures in front): each has the type of the token before it in its message, or else the next.
        without_reply: Kept samples without a reply that says anything, counted where the rules have turns: these hide nothing
            in them.
        untrained: Kept samples of which nothing is trained: the data set stays as it is in plain LLaMA-Factory.
        untrained_stops: Replies of kept samples whose stop token is not trained: it is the label of the next turn's first
            token, and that turn has none.
        rules: How often each rule decided, by name: messages and parts of messages.
        notes: What was changed or left out to make samples readable, by what it is.
        tokens: Tokens kept, by semantic type.
        trained_tokens: Tokens kept that the loss counts.
        weighed_tokens: Tokens among them whose loss is multiplied by a weight other than 1.
        sum_of_weights: What the weights of all tokens that the loss counts add up to.
        sight: What replies of kept samples, trained or not, see of the message before them (empty without HSA): `replies`;
            `blind`: those whose first token sees nothing of it, or of its media, or of its feedback marker; `hidden`: those
            from which the option `hide` keeps a part of it. And for each of
            `message`, `media` and `marker`: replies before which one stands, and how many of them see nothing
            (`message_unseen_at_start`) or a part (`message_partly_seen_at_start`) of it at their first token, or at
            their last (`…_at_end`).
        windows_needed: The window of each type that would show everything to the end of every reply.
    """

    samples: int = 0
    with_marker: int = 0
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)
    dropped_samples: dict[str, list[int]] = field(default_factory=dict)
    text_truncated: int = 0
    turns_removed: int = 0
    prompts_cut: int = 0
    marker_cut: int = 0
    marker_cut_samples: list[int] = field(default_factory=list)
    messages: int = 0
    typed_messages: int = 0
    ruled_messages: int = 0
    guessed_messages: int = 0
    lost_call_parts: int = 0
    filled_tokens: int = 0
    without_reply: int = 0
    untrained: int = 0
    untrained_stops: int = 0
    rules: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)
    tokens: Counter = field(default_factory=Counter)
    trained_tokens: int = 0
    weighed_tokens: int = 0
    sum_of_weights: float = 0.0
    sight: Counter = field(default_factory=Counter)
    windows_needed: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, index: int) -> None:
        """Count a sample that is left out."""
        self.dropped[reason] += 1
        listed = self.dropped_samples.setdefault(reason, [])
        if len(listed) < _MAX_LISTED:
            listed.append(index)

    def keep(self, semantic_ids: bytes, trained: int, weighed: int = 0, weights: float = 0.0) -> None:
        """Count a sample that is kept.

        Args:
            semantic_ids: The types of its tokens, a byte each.
            trained: How many of them are trained.
            weighed: How many of these have a weight other than 1.
            weights: What those weights add up to.
        """
        self.kept += 1
        self.trained_tokens += trained
        self.weighed_tokens += weighed
        self.sum_of_weights += trained - weighed + weights
        for kind, name in enumerate(_TYPE_NAMES):
            self.tokens[name] += semantic_ids.count(kind)

    def add_sight(self, counts: Mapping[str, int], windows: Mapping[str, int]) -> None:
        """Count what replies see of what they answer, and take in the windows that would show it."""
        self.sight.update(counts)
        for kind, window in windows.items():
            self.windows_needed[kind] = max(window, self.windows_needed.get(kind, 0))

    def add_rules(self, serialized: str) -> None:
        """Add what the rules did to one sample, and what was changed to read it, as the converters write it."""
        if serialized:
            ruled, matches, notes = _read_rules(serialized)
            self.ruled_messages += ruled
            self.rules.update(matches)
            self.notes.update(notes)

    def cut_marker(self, index: int) -> None:
        """Count a sample that has lost a feedback marker."""
        self.marker_cut += 1
        if len(self.marker_cut_samples) < _MAX_LISTED:
            self.marker_cut_samples.append(index)

    def add(self, other: dict[str, Any]) -> None:
        """Add the counts of another account, given as `to_dict` makes it."""
        self.add_sight(other.get("sight", {}), other.get("windows_needed", {}))
        for item in fields(self):
            if item.name not in other or item.name in ("sight", "windows_needed"):  # a report of an earlier version
                continue
            value = other[item.name]
            if isinstance(value, list):
                listed = getattr(self, item.name)
                listed += value[: _MAX_LISTED - len(listed)]
            elif item.name == "dropped_samples":
                for reason, indices in value.items():
                    listed = self.dropped_samples.setdefault(reason, [])
                    listed += indices[: _MAX_LISTED - len(listed)]
            elif isinstance(value, dict):
                if value:
                    getattr(self, item.name).update(value)
            else:
                setattr(self, item.name, getattr(self, item.name) + value)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with the totals that readers want."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values |= {name: dict(getattr(self, name)) for name in _COUNTS}
        values["tokens"] = {name: self.tokens.get(name, 0) for name in _TYPE_NAMES}
        total = sum(self.tokens.values())
        values["total_tokens"] = total
        values["trained_share"] = round(self.trained_tokens / total, 6) if total else 0.0
        return values


_COUNTS = ("dropped", "rules", "notes", "sight", "windows_needed")
_read_rules = lru_cache(maxsize=256)(json.loads)  # many samples say the same


class DataReport:
    """The accounts of a run.

    Attributes:
        train: Accounts of the training data by data set.
        eval: Accounts of the evaluation data.
        note: What a reader must know about the counts, such as that they cover the start of a stream only.
    """

    def __init__(self) -> None:
        self.train: dict[str, DatasetAccount] = {}
        self.eval: dict[str, DatasetAccount] = {}
        self.note = ""

    def add(self, serialized: str, is_eval: bool = False) -> None:
        """Add the accounts of one batch, as `serialize_accounts` wrote them."""
        accounts = self.eval if is_eval else self.train
        for name, values in json.loads(serialized).items():
            accounts.setdefault(name, DatasetAccount()).add(values)

    def forget_sight(self) -> None:
        """Leave out what replies see: the run has other rules than those that it was counted with."""
        for account in (*self.train.values(), *self.eval.values()):
            account.sight.clear()
            account.windows_needed.clear()

    def without_replies(self) -> list[str]:
        """Return the names of the data sets in which no sample has a reply, where that was counted."""
        accounts = {**self.eval, **self.train}
        return [name for name, account in accounts.items() if 0 < account.kept == account.without_reply]

    def unmatched_rules(self) -> list[str]:
        """Return the names of the rules that decided nothing in any data set."""
        matches: Counter = Counter()
        for account in (*self.train.values(), *self.eval.values()):
            matches.update(account.rules)
        return [name for name, count in matches.items() if count == 0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: ``datasets``, and ``eval_datasets``, ``unmatched_rules``, ``note`` if there are any."""
        values: dict[str, Any] = {"datasets": {name: account.to_dict() for name, account in self.train.items()}}
        if self.eval:
            values["eval_datasets"] = {name: account.to_dict() for name, account in self.eval.items()}
        if unmatched := self.unmatched_rules():
            values["unmatched_rules"] = unmatched
        if self.note:
            values["note"] = self.note
        return values

    @staticmethod
    def load_values(path: str | Path) -> dict[str, Any]:
        """Read a saved report."""
        return json.loads(Path(path).read_text(encoding="utf-8"))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DataReport":
        """Read back what `to_dict` returned."""
        report = cls()
        report.note = values.get("note", "")
        for accounts, key in ((report.train, "datasets"), (report.eval, "eval_datasets")):
            for name, account in values.get(key, {}).items():
                accounts.setdefault(name, DatasetAccount()).add(account)
        return report

    def save(self, directory: str | Path, extra: dict[str, Any]) -> Path:
        """Write ``hsa_report.json``, whole or not at all."""
        path = Path(directory) / REPORT_NAME
        write_whole(path, json.dumps({**extra, **self.to_dict()}, indent=2, ensure_ascii=False) + "\n")
        return path

    def print(self, console: Console | None = None) -> None:
        """Print the table, and below it what needs a second look."""
        console = console or wide_console()
        values = self.to_dict()
        rows = list(values["datasets"].items())
        rows += [(f"{name} (eval)", account) for name, account in values.get("eval_datasets", {}).items()]
        console.print(report_table(rows))

        def say(line: str) -> None:
            console.print(Text(show_hidden_line(line)))

        for name, account in rows:
            for reason, count in account["dropped"].items():
                listed = _listed(account["dropped_samples"].get(reason, []), count)
                say(f"  {name}: {count} dropped, {reason} ({listed})")
            if account["messages"] and not account["typed_messages"] and not account["ruled_messages"]:
                say(
                    f"  {name}: no message has a type of its own{' or by a rule' if account['rules'] else ''}, all take "
                    "the default type"
                )
            if account["guessed_messages"]:
                say(
                    f"  {name}: {amount(account['guessed_messages'], 'message')} with parts of several types {_were(account['guessed_messages'])} changed by the "
                    "template, a processor or a tokenizer without offsets; what is not found again took the type that "
                    "remembers most"
                )
            if account.get("without_reply"):
                say(
                    f"  {name}: {account['without_reply']} {'has' if account['without_reply'] == 1 else 'have'} no reply, so that all their tokens are turn 0 and turns hide "
                    "nothing in them"
                )
            if account.get("untrained"):
                say(
                    f"  {name}: nothing is trained of {account['untrained']} that {'stays' if account['untrained'] == 1 else 'stay'} all the same, as in plain LLaMA-Factory: "
                    "neither feedback nor types are asked for"
                )
            if account["untrained_stops"]:
                say(
                    f"  {name}: the stop tokens of {_replies(account['untrained_stops'])} are not trained, because the turn "
                    "that follows is empty and the template has no place for them"
                )
            if account["lost_call_parts"]:
                console.print(
                    f"  {name}: types of {amount(account['lost_call_parts'], 'part')} of tool calls not kept: their text is not found "
                    "again, or not in one place only, in the calls as the template writes them",
                    highlight=False,
                )
            for note, count in account.get("notes", {}).items():
                if count:
                    console.print(f"  {name}: {note}: {count}", highlight=False, markup=False)
            if account["weighed_tokens"]:
                say(
                    f"  {name}: {account['weighed_tokens']} of {account['trained_tokens']} trained tokens have a weight other "
                    f"than 1; all weights add up to {account['sum_of_weights']:.6g}"
                )
            if account["marker_cut"]:
                listed = _listed(account["marker_cut_samples"], account["marker_cut"])
                say(f"  {name}: {account['marker_cut']} lost the feedback marker to cutoff_len ({listed})")
            if account.get("prompts_cut"):
                say(
                    f"  {name}: {account['prompts_cut']} lost the end of their prompt to cutoff_len: what the replies answer is "
                    "not all there. Raise cutoff_len, or leave them out"
                )
            if account["turns_removed"]:
                say(
                    f"  {name}: {account['turns_removed']} lost whole turns, because cutoff_len fell inside an image "
                    "or other media"
                )
            if blind := describe_sight(account):
                say(f"  {name}: {blind}")
        unmatched = self.unmatched_rules()
        if unmatched:
            listed = ", ".join(map(repr, unmatched))
            say(f"  warning: these rules of hsa.rules never matched: {listed}")
        if self.note:
            say(f"  {self.note}")


def wide_console() -> Console:
    """Return a console as wide as the terminal; in a log file wide enough for a table."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 120))


def report_table(rows: list[tuple[str, dict[str, Any]]]) -> Table:
    """Lay out accounts (as `DatasetAccount.to_dict` gives them) one data set a row."""
    table = Table(title="Training data with HSA / Feedback", title_justify="left")
    table.add_column("dataset", overflow="fold")
    headings = ("samples", "marker", "dropped", "cut", "tokens", *_TYPE_NAMES, "trained", "blind")
    for heading in headings:
        table.add_column(heading, justify="right")

    for name, account in rows:
        total = max(account["total_tokens"], 1)
        shares = [f"{account['tokens'][kind] / total:.1%}" for kind in _TYPE_NAMES]
        dropped = sum(account["dropped"].values())
        cut = account["text_truncated"] + account["turns_removed"]
        table.add_row(
            Text(show_hidden_line(name)),
            f"{account['samples']:,}",
            f"{account['with_marker']:,}",
            f"{dropped:,}",
            f"{cut:,}",
            f"{account['total_tokens']:,}",
            *shares,
            f"{account['trained_share']:.1%}",
            f"{account['sight']['blind']:,}/{account['sight']['replies']:,}"
            if account["sight"].get("replies")
            else "",
        )

    return table


def serialize_accounts(accounts: dict[str, DatasetAccount]) -> str:
    """Write accounts so that they can travel as a column of the processed data, through workers and caches."""
    return json.dumps({name: account.to_dict() for name, account in accounts.items()}, ensure_ascii=False)


def _listed(samples: Sequence[int], count: int) -> str:
    """Name the first samples of some."""
    more = ", …" if count > len(samples) else ""
    return f"{'sample' if count == 1 else 'samples'} {', '.join(map(str, samples))}{more}"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _replies(count: int) -> str:
    return "1 reply" if count == 1 else f"{count:,} replies"
