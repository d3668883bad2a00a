"""Types of a conversation that a model is asked to continue: given ones, then rules, then what the roles say."""

from collections.abc import Sequence

from ..semantics import SemanticType
from ..typed.text import TypedText
from .matching import Message, label_messages
from .rule_set import RuleSet


def type_conversation(
    messages: Sequence[Message],
    rules: RuleSet | None,
    default_type: SemanticType,
    generated_type: SemanticType | None = None,
) -> list[TypedText]:
    """Type the messages of a conversation to be continued.

    For each character, what comes first decides: a type given with the message, the first rule that matches, the role.
    By role, the system message and the first user message are GLOBAL, what the model wrote (`assistant`, `function`)
    has `generated_type`, all else `default_type`.

    Args:
        messages: In order, the system message (if any) included.
        rules: None: there are none.
        default_type: As in `HSAConfig`.
        generated_type: As in `HSAConfig`; None: `default_type`.

    Returns:
        The text of each message, typed.

    Raises:
        PatternTimeout: As `label_messages`.
    """
    first_user = next((index for index, message in enumerate(messages) if message.role == "user"), None)
    texts = []
    for index, (message, typing) in enumerate(zip(messages, label_messages(messages, rules))):
        if typing.semantic_type is not None:
            base = SemanticType(typing.semantic_type)
        elif message.role == "system" or index == first_user:
            base = SemanticType.GLOBAL
        elif message.role in ("assistant", "function") and generated_type is not None:
            base = generated_type
        else:
            base = default_type
        texts.append(TypedText(str(message.text), base, typing.spans))
    return texts
