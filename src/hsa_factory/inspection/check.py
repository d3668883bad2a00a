"""Inspection as a test of a pipeline: what is wrong with the data, one line a finding."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..amounts import amount
from .sight import describe_sight


NOTHING_TO_TRAIN = "nothing left to train"


def check_accounts(
    accounts: Mapping[str, Mapping[str, Any]], max_dropped: float | None = None, max_blind: float | None = None
) -> list[str]:
    """Find samples with nothing to train, markers that truncation took, too many samples dropped or replies blind.

    Args:
        accounts: What happened to each data set, as in ``hsa_report.json``.
        max_dropped: Largest share of samples, 0 to 1, that a data set may lose for whatever reason; None: any.
        max_blind: Largest share of a data set's replies, 0 to 1, that may see nothing of the message before them, or of its
            media or feedback marker; None: any.

    Returns:
        The findings; none if all is well.
    """
    findings = []
    for name, account in accounts.items():
        for reason, dropped in account["dropped"].items():
            if reason.startswith(NOTHING_TO_TRAIN):  # of pairs the reason names the side
                listed = _listed(account["dropped_samples"].get(reason, []), dropped)
                side = reason.removeprefix(NOTHING_TO_TRAIN)
                where = f"{side} of" if side else " in"
                findings.append(f"{name}: nothing is trained{where} {amount(dropped, 'sample')} ({listed})")
        untrained = account.get("untrained", 0)
        if untrained:
            findings.append(
                f"{name}: nothing is trained in {amount(untrained, 'sample')}, which {'stays' if untrained == 1 else 'stay'} as in plain LLaMA-Factory"
            )
        if account.get("prompts_cut"):
            findings.append(
                f"{name}: cutoff_len took the end of the prompt from {amount(account['prompts_cut'], 'sample')}"
            )
        cut = account["marker_cut"]
        if cut:
            listed = _listed(account["marker_cut_samples"], cut)
            findings.append(f"{name}: cutoff_len took the feedback marker from {amount(cut, 'sample')} ({listed})")
        if not account["kept"]:
            findings.append(f"{name}: no sample is left")

        lost = sum(account["dropped"].values())
        share = lost / max(account["samples"], 1)
        if max_dropped is not None and share > max_dropped:
            reasons = ", ".join(f"{reason}: {count:,}" for reason, count in account["dropped"].items())
            findings.append(
                f"{name}: {lost:,} of {account['samples']:,} samples are dropped ({share:.1%}, allowed {max_dropped:.1%}: "
                f"{reasons})"
            )
        if max_blind is not None and account["kept"]:
            findings += [f"{name}: {finding}" for finding in _check_sight(account, max_blind)]
    return findings


def _check_sight(account: Mapping[str, Any], max_blind: float) -> list[str]:
    sight = account["sight"]
    if not sight:
        return [
            "what its replies see is not known: it was tokenized with other rules. Remove tokenized_path to count it"
        ]
    share = sight["blind"] / max(sight["replies"], 1)
    if share <= max_blind:
        return []
    counts = f"{sight['blind']:,} of {sight['replies']:,} replies are blind ({share:.1%}, allowed {max_blind:.1%})"
    return [f"{counts}: {describe_sight(account)}"]


def check_rules(matches: Mapping[str, int]) -> list[str]:
    """Find labelling rules that never matched.

    Args:
        matches: How often each rule matched, by its name.
    """
    return [f"rule {name!r} never matched" for name, count in matches.items() if count == 0]


def _listed(samples: Sequence[int], count: int) -> str:
    more = f" and {count - len(samples):,} more" if count > len(samples) else ""
    return f"{'sample' if count == 1 else 'samples'} {', '.join(map(str, samples))}{more}"
