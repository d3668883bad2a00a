"""What the Board says of HSA and Feedback: in English and Chinese; its other languages see the English."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llamafactory.webui.locales import LOCALES

from .fields import FIELDS, LIKE_DEFAULT, TYPES


_LANGUAGES = tuple(LOCALES["lang"])


def _of(en: str, zh: str, info: tuple[str, str] | None = None, attribute: str = "label") -> dict[str, dict[str, Any]]:
    texts = {"en": {attribute: en}, "zh": {attribute: zh}}
    if info is not None:
        texts["en"]["info"], texts["zh"]["info"] = info
    return texts


_TEXTS: dict[str, dict[str, dict[str, Any]]] = {
    "hsa_tab": _of("HSA & Feedback", "HSA 与 Feedback"),
    "hsa_mode": {
        "en": {
            "label": "HSA",
            "info": "As saved: the rules saved with the model or checkpoint, if any. On: the rules below.",
            "choices": [("As saved", "saved"), ("On", "on"), ("Off", "off")],
        },
        "zh": {
            "label": "HSA",
            "info": "随检查点：使用与模型或检查点一起保存的规则（如果有）。开启：使用下面的规则。",
            "choices": [("随检查点", "saved"), ("开启", "on"), ("关闭", "off")],
        },
    },
    "feedback_on": _of(
        "Feedback",
        "Feedback",
        (
            "Train only what stands after the feedback token.",
            "只训练反馈标记之后的内容。",
        ),
    ),
    "hsa_rules": _of(
        "Rules",
        "类型规则",
        (
            "Types of messages that have none: a preset, or the path of a YAML file. Empty: no rules.",
            "为没有类型的消息定类型：预设名称，或 YAML 文件路径。留空：没有规则。",
        ),
    ),
    "hsa_default_type": _of("Default type", "默认类型", ("Of messages without a type.", "没有类型的消息使用的类型。")),
    "hsa_generated_type": {
        "en": {
            "label": "Generated type",
            "info": "Of tokens that the model writes and no rule types.",
            "choices": [("as the default type", LIKE_DEFAULT), *((name, name) for name in TYPES)],
        },
        "zh": {
            "label": "生成内容的类型",
            "info": "模型生成且没有规则匹配的词元的类型。",
            "choices": [("与默认类型相同", LIKE_DEFAULT), *((name, name) for name in TYPES)],
        },
    },
    "hsa_options": _of(
        "Other options",
        "其他选项",
        (
            'More options of the hsa block as JSON, such as {"hide": [["GLOBAL", "NOISE"]], "backend": "flex"}.',
            'hsa 块的其他选项，JSON 格式，例如 {"hide": [["GLOBAL", "NOISE"]], "backend": "flex"}。',
        ),
    ),
    "feedback_token": _of(
        "Feedback token",
        "反馈标记",
        (
            "One special token; it is added to the tokenizer if it is missing.",
            "一个特殊词元；分词器里没有时会自动添加。",
        ),
    ),
    "feedback_occurrence": _of(
        "Occurrence",
        "以哪个标记为准",
        ("Which token counts where there are several.", "一个样本有多个标记时以哪一个为准。"),
    ),
    "feedback_missing": _of(
        "Missing", "没有标记时", ("What happens to a sample without the token.", "样本中没有该标记时怎么办。")
    ),
    "feedback_empty": _of(
        "Empty", "无可训练时", ("What happens where nothing is left to train.", "样本中没有可训练内容时怎么办。")
    ),
    "feedback_scope": _of(
        "Scope",
        "标记所在角色",
        ("Role of the messages in which the token counts.", "只有该角色的消息中的标记才算数。"),
    ),
    "feedback_train": _of(
        "Train",
        "训练范围",
        (
            "after: what follows the token. recovery: every reply but those answered with a token.",
            "after：标记之后的内容。recovery：除了被反馈标记回应的回复之外的所有回复。",
        ),
    ),
    "semantic_type": {
        "en": {
            "label": "Semantic type",
            "info": "Of the messages that you send.",
            "choices": [("by rules", "rules"), *((name, name) for name in TYPES)],
        },
        "zh": {
            "label": "语义类型",
            "info": "您发送的消息的类型。",
            "choices": [("按规则", "rules"), *((name, name) for name in TYPES)],
        },
    },
    "samples_btn": _of("Types and labels", "查看类型与标签", attribute="value"),
    "samples_view": _of("Types and labels", "类型与标签"),
}

_LIMITS = {
    "decay": (("decay", "衰减"), ("Logits per token, a number ≥ 0.", "每个词元的 logit 衰减，≥ 0 的数。")),
    "window": (("window", "窗口"), ("Tokens, a whole number ≥ 0, or none.", "词元数，≥ 0 的整数，或 none。")),
    "turns": (("turns", "轮数"), ("Turns, a whole number ≥ 0, or none.", "轮数，≥ 0 的整数，或 none。")),
}
for _field in FIELDS:
    if _field.is_number:
        _kind, _limit = _field.option.split("_")
        (_en, _zh), _info = _LIMITS[_limit]
        _TEXTS[_field.name] = _of(f"{_kind.upper()} {_en}", f"{_kind.upper()} {_zh}", _info)

_MESSAGES = {
    "decay": ("{field}: {value!r} is not allowed: a number ≥ 0.", "{field}：{value!r} 无效，应为 ≥ 0 的数。"),
    "limit": (
        "{field}: {value!r} is not allowed: a whole number ≥ 0, or none.",
        "{field}：{value!r} 无效，应为 ≥ 0 的整数，或 none。",
    ),
    "choice": (
        "{field}: {value!r} is not allowed: choose one of the list.",
        "{field}：{value!r} 无效，请从列表中选择。",
    ),
    "json": ("{field}: expected a JSON object. {reason}", "{field}：应为 JSON 对象。{reason}"),
    "twice": (
        "`{what}` is given twice: in its field, and in “{place}”. Remove one.",
        "“{what}”给了两次：在它的输入框里，也在“{place}”里。请删去一个。",
    ),
    "refused": ("HSA & Feedback: {reason}", "HSA 与 Feedback：{reason}"),
    "arguments": ("A value cannot be read: {reason}", "有的值无法读取：{reason}"),
    "failed": ("It failed: {reason}", "失败：{reason}"),
    "no_hsa": (
        "The model has no HSA: the type {value} is not used.",
        "该模型没有 HSA：类型 {value} 不起作用。",
    ),
    "preparing": ("Preparing the samples …", "正在准备样本……"),
    "samples_failed": ("These samples cannot be shown: {reason}", "无法显示这些样本：{reason}"),
}


def label_of(name: str, lang: str) -> str:
    """Return what a field is called, ours or LLaMA-Factory's."""
    texts = _TEXTS.get(name) or LOCALES[name]
    return texts.get(lang, texts["en"])["label"]


def message(key: str, lang: str, **values: Any) -> str:
    """Return a message in the Board's language."""
    english, chinese = _MESSAGES[key]
    return (chinese if lang == "zh" else english).format(**values)


@contextmanager
def texts_registered() -> Iterator[None]:
    """Let LLaMA Board know the texts of our elements, for the duration of a `with` block.

    Raises:
        RuntimeError: Before anything is changed, if it has elements of these names.
    """
    known = _TEXTS.keys() & LOCALES.keys()
    if known:
        raise RuntimeError(f"LLaMA Board has elements that hsa-factory adds: {', '.join(sorted(known))}.")
    LOCALES.update(
        {name: {lang: texts.get(lang, texts["en"]) for lang in _LANGUAGES} for name, texts in _TEXTS.items()}
    )
    try:
        yield
    finally:
        for name in _TEXTS:
            del LOCALES[name]
