"""A chat template rendered so that every character of the result knows its message.

The template is compiled by jinja itself, in an environment made after transformers' own, with three changes: output is
stamped with what is being written, every loop says which message it has come to, and filters keep account of texts.
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import jinja2
import numpy as np
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

from .traced_text import NOWHERE, TracedText, concat, current_block, join, plain, refuse, stamp
from .traced_values import Sources, TracedDict, TracedList, dump_json, fetched, trace_messages, trace_tools, write


class Rendering:
    """A rendered conversation.

    Args:
        text: All of it.
        sources: What its characters come from.

    Attributes:
        text: A plain `str`.
        leaves: (characters,) int32, number of the text that each was taken from; `NOWHERE`: the template wrote it.
        offsets: (characters,) int32, its place there.
        blocks: (characters,) int32, number of what was being written; `NOWHERE`: no loop over messages was running.
    """

    def __init__(self, text: TracedText, sources: Sources) -> None:
        self.text, self.sources = plain(text), sources
        lengths = np.array([run.length for run in text.runs], np.int64)
        table = np.array([(run.leaf, run.offset, run.step, run.block) for run in text.runs], np.int32).reshape(-1, 4)
        self.leaves, offsets, steps, self.blocks = np.repeat(table, lengths, axis=0).T
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        self.offsets = offsets + steps * (np.arange(len(self.text)) - starts)


def render(template: str, messages: list[Any], tools: Any, variables: Mapping[str, Any]) -> Rendering:
    """Render a conversation as `apply_chat_template` does, traced.

    Args:
        template: The jinja source.
        messages: The conversation.
        tools: JSON schemas; None: there are none.
        variables: All else that the template may use, special tokens included.

    Raises:
        UntraceableTemplate: If the template does what cannot be followed.
        jinja2.TemplateError: What the template raises itself.
    """
    sources = Sources()
    traced, traced_tools = trace_messages(messages, sources), trace_tools(tools, sources)
    compiled = _compile(template)
    known = _sources.set(sources)
    here, frames, asked = current_block.set(NOWHERE), _frames.set([]), fetched.set(_fetch)
    try:
        context = compiled.new_context({**variables, "messages": traced, "tools": traced_tools})
        pieces = [stamp(piece) for piece in compiled.root_render_func(context)]
        return Rendering(concat(pieces), sources)
    finally:
        current_block.reset(here)
        _frames.reset(frames)
        fetched.reset(asked)
        _sources.reset(known)


# -- what is being written -------------------------------------------------------------------------------------


_sources: ContextVar[Sources] = ContextVar("sources")
_frames: ContextVar[list[tuple[int, Any]]] = ContextVar("frames")  # of loops: the block before, the item at work


def _begin_loop() -> None:
    _frames.get().append((current_block.get(), None))


def _enter(item: Any) -> None:
    """Say what a loop has come to."""
    frames = _frames.get()
    frames[-1] = (frames[-1][0], item)
    block = getattr(item, "hsa_block", NOWHERE) if isinstance(item, TracedDict) else NOWHERE
    if block != NOWHERE:
        current_block.set(block)
    elif isinstance(item, int) and frames[-1][0] == NOWHERE:
        current_block.set(_sources.get().pending())


def _fetch(place: Any, message: Any) -> None:
    """Say that a loop over numbers has asked for the message of its number."""
    frames = _frames.get()
    if frames and isinstance(frames[-1][1], int) and frames[-1][1] == place and isinstance(message, TracedDict):
        _sources.get().settle(current_block.get(), message.hsa_block)
        current_block.set(message.hsa_block)


def _end_loop() -> None:
    before, _ = _frames.get().pop()
    current_block.set(before)


# -- the environment -------------------------------------------------------------------------------------------


class _Generator(CodeGenerator):
    """Writes output, and what joins texts, through functions that keep account."""

    def _output_const_repr(self, group: Any) -> str:
        return f"environment.hsa_output({''.join(group)!r})"

    def _output_child_pre(self, node: Any, frame: Any, finalize: Any) -> None:
        self.write("environment.hsa_output(")

    def _output_child_post(self, node: Any, frame: Any, finalize: Any) -> None:
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.hsa_concat((")
        for item in node.nodes:
            self.visit(item, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    concat = staticmethod(concat)
    intercepted_binops = frozenset("%")

    hsa_output = staticmethod(lambda value: stamp(write(value)))
    hsa_concat = staticmethod(lambda values: concat(map(write, values)))
    hsa_begin_loop = staticmethod(_begin_loop)
    hsa_enter = staticmethod(_enter)
    hsa_end_loop = staticmethod(_end_loop)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str) and _holds_traced((left, right)):
            refuse("%")
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        return wrapped and _checked(wrapped, "format")


def _holds_traced(values: Any) -> bool:
    """Whether one of some values is, or directly holds, a text of the conversation."""
    return any(
        isinstance(value, (TracedText, TracedDict, TracedList))
        or (isinstance(value, (tuple, list)) and any(isinstance(item, TracedText) for item in value))
        for value in values
    )


def _checked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a filter that refuses to make a plain text of a traced one."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if isinstance(result, str) and not isinstance(result, TracedText) and result:
            if _holds_traced(args) or _holds_traced(kwargs.values()):
                refuse(f"the filter {name}")
        return result

    if hasattr(function, "jinja_pass_arg"):
        vars(checked)["jinja_pass_arg"] = function.jinja_pass_arg
    return checked


@jinja2.pass_environment
def _join_filter(environment: Any, value: Any, d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(environment, attribute), value)
    return join(write(d), map(write, value))


def _indent_filter(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    indention = width if isinstance(width, str) else " " * width
    lines = (write(s) + "\n").splitlines()
    kept = [
        line if number == 0 and not first or not (line or blank) else concat((indention, line))
        for number, line in enumerate(lines)
    ]
    return join("\n", kept)


_FILTERS: dict[str, Callable[..., Any]] = {
    "tojson": dump_json,
    "join": _join_filter,
    "indent": _indent_filter,
    "string": write,
    "trim": lambda value, chars=None: write(value).strip(chars),
    "safe": lambda value: value if isinstance(value, str) else write(value),
}


@lru_cache(maxsize=64)
def _compile(template: str) -> jinja2.Template:
    official = chat_template_utils._compile_jinja_template(template).environment
    environment = _Environment(
        trim_blocks=official.trim_blocks,
        lstrip_blocks=official.lstrip_blocks,
        keep_trailing_newline=official.keep_trailing_newline,
        extensions=[type(extension) for extension in official.extensions.values()],
    )
    environment.globals.update(official.globals)
    environment.tests.update(official.tests)
    environment.filters = {name: _checked(function, name) for name, function in official.filters.items()} | _FILTERS
    tree = environment.parse(template)
    _mark_loops(tree)
    code = environment.compile(tree)
    return jinja2.Template.from_code(environment, code, environment.globals)


def _mark_loops(tree: nodes.Template) -> None:
    """Let every loop say what it has come to."""
    for node in [tree, *tree.find_all(nodes.Node)]:
        for field in ("body", "else_"):
            body = getattr(node, field, None)
            if isinstance(body, list):
                setattr(node, field, [marked for statement in body for marked in _marked(statement)])
    for loop in tree.find_all(nodes.For):
        if isinstance(loop.target, nodes.Name):
            loop.body.insert(0, _statement("hsa_enter", nodes.Name(loop.target.name, "load")))


def _marked(statement: nodes.Node) -> list[nodes.Node]:
    if isinstance(statement, nodes.For):
        return [_statement("hsa_begin_loop"), statement, _statement("hsa_end_loop")]
    return [statement]


def _statement(name: str, *args: nodes.Expr) -> nodes.Node:
    call = nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)
    return nodes.ExprStmt(call).set_lineno(1).set_environment(None)  # type: ignore[arg-type]
