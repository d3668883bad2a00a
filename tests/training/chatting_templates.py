"""Templates, a tiny tokenizer that knows their tokens, and conversations that each template takes."""

from pathlib import Path

from hsa_factory import tiny


TEMPLATES = {
    path.stem: path.read_text("utf-8") for path in sorted(Path(__file__).with_name("templates").glob("*.jinja"))
}
SPECIAL = (
    "<|User|> <|Assistant|> <|calls_begin|> <|call_begin|> <|sep|> <|call_end|> <|calls_end|> <|eos|> <|outputs_begin|> "
    "<|output_begin|> <|output_end|> <|outputs_end|> <|start|> <|message|> <|end|> <|channel|> <|call|> <|return|> [gMASK] "
    "<sop> <|system|> <|user|> <|assistant|> <|observation|> <|tool|> <|/tool|> <start_of_turn> <end_of_turn> "
    "<start_of_image> [INST] [/INST] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] "
    "<|start_header_id|> <|end_header_id|> <|eot_id|> <bos> <|feedback|>"
).split()
NO_SYSTEM = {"gemma2"}
NO_TOOLS = {"gemma2", "gemma3", "phi3", "phi4", "qwen2_vl"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "toolword",
            "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
        },
    }
]


def new_tokenizer(name):
    """Return a tokenizer of bytes with a chat template."""
    tokenizer = tiny.build_tokenizer([], 1024, SPECIAL)
    tokenizer.bos_token = "<bos>"
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def call(name, text):
    """Return a message that calls a tool, in the form that a template reads."""
    arguments = f'{{"at": "{text}"}}' if name == "deepseek" else {"at": text}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "id": "abcdefghi", "function": {"name": "look", "arguments": arguments}}],
    }


def result(text):
    """Return what a tool answers."""
    return {"role": "tool", "content": text, "tool_call_id": "abcdefghi"}


def show(row, tokenizer):
    """Return a row in one line a run: type, whether trained, turn, text."""
    lines, before = [], None
    turns = row.get("turn_ids") or [0] * len(row["labels"])
    for token, kind, label, turn in zip(row["input_ids"], row["semantic_ids"], row["labels"], turns):
        facts = f"{'GLN'[kind]}{'*' if label != -100 else ' '}{turn} "
        if facts != before:
            lines.append((facts, []))
            before = facts
        lines[-1][1].append(token)
    return [facts + tokenizer.decode(tokens) for facts, tokens in lines]
