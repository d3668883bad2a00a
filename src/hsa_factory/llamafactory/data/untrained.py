"""Data sets in which nothing is left to train: where nobody asked for feedback or types, plain LLaMA-Factory's way holds."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from llamafactory.extras import logging

from ...config import FeedbackConfig, HSAConfig
from ...semantics import SemanticType
from .report import DataReport, DatasetAccount
from .sample_errors import NOTHING_TO_TRAIN


logger = logging.get_logger(__name__)


def is_left_alone(account: Mapping[str, Any], config: HSAConfig, feedback: FeedbackConfig | None) -> bool:
    """Whether nobody has asked for feedback or types in a data set, so that it is trained as without the integration.

    Args:
        account: Of the data set, as plain values.
        config: The one by which its tokens are typed.
        feedback: None: no feedback.
    """
    if feedback is not None or config.rules is not None or config.default != SemanticType.GLOBAL:
        return False
    return not account["typed_messages"] and not account["ruled_messages"]


def staying(accounts: Iterable[str], config: HSAConfig, feedback: FeedbackConfig | None) -> frozenset[str]:
    """Return the data sets whose samples stay though nothing of them is trained, as LLaMA-Factory itself keeps them.

    Where something else of a data set is trained, such samples are left out of it: their loss would not be a number.

    Args:
        accounts: Of a data set as it was prepared without those samples, as `serialize_accounts` wrote them.
        config: The one by which its tokens are typed.
        feedback: None: no feedback.
    """
    report = DataReport()
    for serialized in accounts:
        report.add(serialized)
    return frozenset(
        name
        for name, account in report.train.items()
        if not account.kept
        and any(reason.startswith(NOTHING_TO_TRAIN) for reason in account.dropped)  # of pairs, with the side
        and is_left_alone(account.to_dict(), config, feedback)
    )


def check_trained(report: DataReport, config: HSAConfig, feedback: FeedbackConfig | None) -> list[str]:
    """Return the data sets that a run cannot go on with, since nothing of them is left; warn of those that it can.

    Args:
        report: Of the run.
        config: The one by which tokens are typed.
        feedback: None: no feedback.
    """
    untrainable = []
    for accounts in (report.eval, report.train):
        is_any_left = any(account.kept for account in accounts.values())
        for name, account in accounts.items():
            if not account.kept and not (is_any_left and is_left_alone(account.to_dict(), config, feedback)):
                untrainable.append(name)
            elif not account.kept or account.untrained == account.kept:
                _warn(name, account)
    return untrainable


def _warn(name: str, account: DatasetAccount) -> None:
    way_out = "Look at `cutoff_len`, `mask_history` and the data."
    if account.kept:
        logger.warning_rank0(
            f"Nothing is left to train in {name!r}: all labels of its {account.kept} samples are masked. They stay, as "
            f"without hsa-factory, since neither feedback nor types are asked for; their loss is not a number. {way_out}"
        )
    else:
        reasons = json.dumps(dict(account.dropped), ensure_ascii=False)
        logger.warning_rank0(f"Nothing is left of {name!r} ({reasons}); the run goes on with the others. {way_out}")
