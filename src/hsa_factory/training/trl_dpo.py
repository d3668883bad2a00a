"""TRL's DPOTrainer with rows of `pair_rows`: types reach the model and its reference, whatever TRL makes of the batch."""

import copy
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ..models.enable import get_state
from ..semantics import SemanticType
from .columns import MEDIA_COLUMNS, SEMANTIC_COLUMN, TURN_COLUMN
from .encoded_data import check_encoded
from .preference import SIDES, HSAPreferenceCollator


_EARLIER = "This version of TRL's DPOTrainer"

_Trainer: Any = object  # TRL's own class stands behind the mixin


class DPOMixin(_Trainer):
    """Trains encoded pairs, by a reference that attends as the model did before."""

    def __init__(
        self,
        *,
        model: Any,
        args: Any = None,
        ref_model: Any = None,
        data_collator: Any = None,
        processing_class: Any = None,
        **given: Any,
    ) -> None:
        if isinstance(model, str) or get_state(model) is None:
            raise ValueError(
                "DPOTrainer: the model has no HSA. Call enable_hsa(model, config) before the trainer is made."
            )
        if ref_model is None:
            ref_model = _reference(model, args, given)
        elif isinstance(ref_model, str) or get_state(ref_model) is None:
            raise ValueError(
                "DPOTrainer: the reference model has no HSA, so it would not be what the model was before. Load it, call "
                "enable_hsa(ref_model, config), and give it as ref_model; or give none, and it becomes a copy of the model."
            )
        if not hasattr(model, "warnings_issued"):  # earlier TRL writes into it, and transformers 5 has it no more
            model.warnings_issued = {}
        if data_collator is None:
            if processing_class is None:
                raise ValueError("DPOTrainer: give processing_class, the tokenizer that encoded the rows.")
            data_collator = HSAPreferenceCollator(processing_class, getattr(args, "pad_to_multiple_of", None))
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            data_collator=data_collator,
            processing_class=processing_class,
            **given,
        )

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Check encoded pairs; nothing is tokenized."""
        return check_encoded(dataset, dataset_name, args.max_length, tuple(f"{side}_" for side in SIDES))

    def concatenated_forward(self, model: Any, batch: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """Give TRL the batch in parts, as its earlier versions want it, and the model the types of the rows made of them.

        Later versions have no such method: they hand the batch to the model as it is.
        """
        typed = {column: batch[column] for column in (SEMANTIC_COLUMN, TURN_COLUMN) if column in batch}
        forward = _WithTypes(model, batch["input_ids"], used_tokens(batch), typed)
        return super().concatenated_forward(forward, split_batch(batch), *args, **kwargs)


class _WithTypes:
    """A model that is called with TRL's rows, which begin on the left and may be shorter, or stand all in one.

    Args:
        model: With HSA.
        input_ids: (2·B, L) of the batch.
        mask: (2·B, L) bool, True at the tokens that TRL gets.
        typed: (2·B, L) types, and turn numbers if the batch has them.
    """

    def __init__(
        self, model: Any, input_ids: torch.Tensor, mask: torch.Tensor, typed: dict[str, torch.Tensor]
    ) -> None:
        self.model, self.input_ids, self.mask, self.typed = model, input_ids, mask, typed

    def __call__(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        theirs = kwargs.get("attention_mask")
        theirs = torch.ones_like(input_ids, dtype=torch.bool) if theirs is None else theirs.bool()
        if not torch.equal(input_ids[theirs], self.input_ids[self.mask]):
            raise ValueError(
                "DPOTrainer has cut the rows (max_length): encode them with a max_length and set it to None."
            )
        fillers = {SEMANTIC_COLUMN: int(SemanticType.NOISE), TURN_COLUMN: 0}
        for column, values in self.typed.items():
            kwargs[column] = torch.full_like(input_ids, fillers[column]).masked_scatter(theirs, values[self.mask])
        return self.model(input_ids, **kwargs)


def used_tokens(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return (2·B, L) bool, True up to each row's last trained token: what follows cannot move its loss."""
    is_followed = batch["completion_mask"].flip(1).cumsum(1).flip(1) > 0
    return batch["attention_mask"].bool() & is_followed


def split_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return prompts, chosen and rejected answers, each padded on its own: the batch that earlier versions of TRL take.

    Args:
        batch: Of `HSAPreferenceCollator`.

    Raises:
        ValueError: If an answer has untrained tokens within, the prompts of a pair differ, or there are images.
    """
    media = [column for column in MEDIA_COLUMNS if column in batch]
    if media:
        raise ValueError(f"{_EARLIER} has no place for {', '.join(media)} with types: update trl.")
    prompts, answers = [], []
    for ids, used, mask in zip(batch["input_ids"], used_tokens(batch), batch["completion_mask"], strict=True):
        tokens, trained = ids[used], mask[used]
        start = int(trained.argmax())
        if not bool(trained[start:].all()):
            raise ValueError(
                f"{_EARLIER} trains all that follows the prompt, but a row has tokens between its trained ones that are not "
                "(a tool's answer between two replies). Update trl, or let pairs differ in their last reply only."
            )
        prompts.append(tokens[:start])
        answers.append(tokens[start:])
    half = len(prompts) // 2
    if not all(torch.equal(*pair) for pair in zip(prompts[:half], prompts[half:], strict=True)):
        raise ValueError(
            f"{_EARLIER} needs one prompt for both answers of a pair, but those of a row differ: update trl."
        )
    parts: dict[str, dict[str, torch.Tensor]] = {"prompt": _padded(prompts[:half], "left")}
    parts |= {"chosen": _padded(answers[:half], "right"), "rejected": _padded(answers[half:], "right")}
    return {f"{name}_{key}": value for name, part in parts.items() for key, value in part.items()}


def _padded(rows: list[torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    masks = [torch.ones_like(row) for row in rows]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_side=side),
        "attention_mask": pad_sequence(masks, batch_first=True, padding_side=side),
    }


def _reference(model: Any, args: Any, given: dict[str, Any]) -> Any:
    """Return a copy of the model, with its HSA; None: TRL takes the model itself, without its adapter or beforehand."""
    has_adapter = given.get("peft_config") is not None or hasattr(model, "peft_config")
    if has_adapter or (getattr(args, "precompute_ref_log_probs", False) and not getattr(args, "fsdp", None)):
        return None
    return copy.deepcopy(model).eval().requires_grad_(False)
