"""What one installed integration knows: the configurations, and what it found out along the way of a run."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ..attention.api import check_backend
from ..config import FeedbackConfig, HSAConfig
from ..loss_weights import LossWeightsConfig
from .data.report import DataReport
from .model.checkpoint import resolve_config
from .model.feedback_token import FeedbackToken, ensure_token


class Integration:
    """The state that all seams of one `integrate` block share.

    A run goes through four steps, and each needs what those before it left here:

    1. `resolve` settles the rules with those saved beside the checkpoints, before anything is loaded.
    2. `add_feedback_token` looks the feedback token up in the tokenizer, or adds it, once LLaMA-Factory's template has
       added what it needs: `feedback_token`.
    3. The data are prepared: `report`, `aligned`.
    4. The model is loaded: `feedback_token` gets its row, and HSA is switched on with `hsa_config`.

    A call of LLaMA-Factory may skip steps (`export` has no data); a step that is reached first does those that it needs.

    Attributes:
        hsa: The rules asked for; True: those of the checkpoint, or the defaults; `SAVED`: those of the checkpoint, or
            no HSA. False: no HSA; None: no HSA, and a checkpoint that has it is warned of.
        stage: Of the data that are being prepared.
        hsa_config: The rules of the run; before `resolve` what can be said without a checkpoint. None: no HSA.
        feedback_config: None: labels stay as they are.
        loss_weights: What labels of steps mean, and weights by role.
        context_parallel: How many consecutive processes share the tokens of each row in training.
        context_group: The process group of those that share rows with this one, once a run's processes are known; None: none do.
        loss_elsewhere: Why the run's loss is not computed from the logits of each token, as weights need it; empty: it is.
        has_weights: Whether the data set being tokenized has weights besides 0 and 1; None: not known, it is a stream.
        feedback_token: The feedback token in the run's tokenizer; None before it is known, and without Feedback.
        loading: LLaMA-Factory's attributes of the data set being loaded.
        cache_dir: Where data sets are cached; None: where `datasets` does.
        media: Types of the media columns of the data set being tokenized, by name.
        report: Counts per data set.
        aligned: The converted samples of each data set, by name.
        staying: Data sets whose samples stay though nothing of them is trained; see `data.untrained`.
        integrated: Installs the same in another process of the run, as Ray starts them; None: nobody has installed it.
        shows_example: Whether LLaMA-Factory prints an example of the prepared data, as it does in training.
    """

    def __init__(
        self,
        hsa: HSAConfig | bool | str | None,
        feedback: FeedbackConfig | None,
        loss_weights: LossWeightsConfig | None = None,
        context_parallel: int = 1,
    ) -> None:
        self.ask_for(hsa, feedback)
        self.context_parallel = context_parallel
        self.context_group: Any = None
        self.stage = "sft"
        self.loss_weights = LossWeightsConfig() if loss_weights is None else loss_weights
        self.loss_elsewhere = ""
        self.has_weights: bool | None = None
        self.loading: Any = None
        self.cache_dir: str | None = None
        self.media: dict[str, Any] = {}
        self.report = DataReport()
        self.aligned: dict[str, Any] = {}
        self.staying: frozenset[str] = frozenset()
        self.integrated: Callable[[], AbstractContextManager[Any]] | None = None
        self.shows_example = True

    def ask_for(self, hsa: HSAConfig | bool | str | None, feedback: FeedbackConfig | None) -> None:
        """Go by these from now on: LLaMA Board loads one model after another, each with rules of its own.

        Args:
            hsa: As the attribute.
            feedback: None: labels stay as they are.
        """
        self.hsa = hsa
        self.hsa_config = hsa if isinstance(hsa, HSAConfig) else (HSAConfig() if hsa is True else None)
        if self.hsa_config is not None:
            check_backend(self.hsa_config.backend)
        self.feedback_config = feedback
        self.feedback_token: FeedbackToken | None = None
        self._resolved_for: Any = None  # the model arguments that `hsa_config` holds for

    @property
    def typing_config(self) -> HSAConfig:
        """The configuration by which tokens are typed; types are recorded even when only Feedback is on."""
        return self.hsa_config or HSAConfig()

    def resolve(self, model_args: Any, training_args: Any = None) -> HSAConfig | None:
        """Settle the rules of a run with its checkpoints; done once for the same model arguments.

        Args:
            model_args: LLaMA-Factory's.
            training_args: LLaMA-Factory's; None outside training.

        Returns:
            The rules; None: no HSA.

        Raises:
            ValueError: If a checkpoint was made with other rules than the ones asked for.
        """
        if self._resolved_for is not model_args:
            self.hsa_config = resolve_config(self.hsa, model_args, training_args)
            self._resolved_for = model_args
        return self.hsa_config

    def add_feedback_token(self, tokenizer: Any, known_tokens: int) -> None:
        """Make sure a run's tokenizer has the feedback token; nothing happens without Feedback.

        Args:
            tokenizer: Changed in place.
            known_tokens: Number of tokens that the checkpoint's tokenizer has.

        Raises:
            ValueError: If the token already has another role, or is not one token.
        """
        if self.feedback_config is not None:
            self.feedback_token = ensure_token(tokenizer, self.feedback_config.token, known_tokens)
