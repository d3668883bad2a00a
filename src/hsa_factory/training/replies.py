"""Where each reply begins: behind all that the model gets to read before it writes.

That is the generation prompt, as the template writes it for the conversation up to the reply. It is found without tags in the
template: the text up to the reply is rendered with a generation prompt, and compared with the whole.
"""

from os.path import commonprefix

from .chat_template import ChatTemplate, added_tokens
from .layout import Layout
from .messages import Conversation


class ReplyStarts:
    """Finds where replies begin.

    Args:
        template: The chat template.
        conversation: The whole conversation.
        layout: The same, rendered.
    """

    def __init__(self, template: ChatTemplate, conversation: Conversation, layout: Layout) -> None:
        self.template, self.conversation, self.layout = template, conversation, layout
        self._tails: dict[str, str] = {}  # role of the message before → what stands before a reply
        self._tokens = added_tokens(template.tokenizer)
        self._prompts: set[str] = set()  # generation prompts by themselves
        self._settled: set[str] = set()  # roles for which it was found to be the same again

    def find_all(self) -> dict[int, int]:
        """Return where each reply begins that the template has not left out.

        Raises:
            ValueError: As `find`.
        """
        replies = [number for number, facts in enumerate(self.conversation.facts) if facts.is_reply]
        replies.sort(key=lambda reply: reply == 0)  # the first one has nothing before it: the others tell more
        begins = {reply: self.find(reply) for reply in replies}
        return {reply: begin for reply, begin in begins.items() if begin is not None}

    def find(self, reply: int) -> int | None:
        """Return the place of a reply's first trained character; None: the template has left the reply out.

        Raises:
            ValueError: If it cannot be told.
        """
        layout = self.layout
        start = layout.first(reply)
        if start is None:
            return None
        if reply == 0:
            return self._find_first(start)
        anchor = layout.last_own(start)
        written = layout.text[anchor : layout.first_own(reply)]
        kind = self.conversation.facts[reply - 1].role
        tail = self._tails.get(kind)
        fits = tail is not None and written.startswith(tail) and anchor + len(tail) >= start
        if tail is None or not (fits or (kind in self._settled and anchor + self._common(written, tail) >= start)):
            try:
                exact = self._tail(reply)
            except ValueError:  # the template refuses a conversation that ends here (Qwen3.5 without a user's turn)
                begin = self._behind_prompt(layout.text[start : layout.first_own(reply)])
                if begin is None:
                    raise
                return start + begin
            if exact == tail:
                self._settled.add(kind)
            tail = self._tails[kind] = exact
        begin = anchor + max([self._common(written, tail), *(_end_of(prompt, written) for prompt in self._prompts)])
        if begin < start:
            raise ValueError(
                f"{self.template.name} writes another text before turn {reply} where it is the next to be generated, so that "
                f"nobody can tell where the reply begins ({tail[-40:]!r}, not {written[-40:]!r})."
            )
        return begin

    def _common(self, written: str, tail: str) -> int:
        """Return how far two texts are the same; a special token is the same as a whole or not at all."""
        common = len(commonprefix([written, tail]))
        for token in self._tokens.finditer(tail):
            if token.start() < common < token.end():
                return token.start()
        return common

    def _tail(self, reply: int) -> str:
        """Return what stands between the last content before a reply and the reply, when it is to be generated."""
        before = self.conversation.messages[:reply]
        prompt = Layout(self.template.trace(before, add_generation_prompt=True))
        tail = prompt.text[prompt.last_own() :]
        bare = self.template.trace(before).text
        if bare == prompt.text:
            return tail + self._plain_header(reply, tail)
        own = prompt.text[len(bare) :] if prompt.text.startswith(bare) else ""
        self._prompts.update([own] if own.strip() else [])
        return tail

    def _plain_header(self, reply: int, tail: str) -> str:
        """Return what a template without a generation prompt writes before the text of any reply."""
        message = self.conversation.messages[reply]
        text = "y"
        content = [{"type": "text", "text": text}] if isinstance(message.get("content"), list) else text
        probe = Layout(
            self.template.trace([*self.conversation.messages[:reply], {"role": message["role"], "content": content}])
        )
        start = probe.first(reply)
        if start is None:
            return ""
        header = probe.text[probe.last_own(start) : probe.first_own(reply)][len(tail) :]
        return header if header.strip() else ""

    def _find_first(self, start: int) -> int:
        """Find where a conversation that begins with a reply begins to be trained."""
        front = self.layout.text[start : self.layout.first_own(0)]
        begin = self._behind_prompt(front)
        return start + (len(front) if begin is None else begin)

    def _behind_prompt(self, front: str) -> int | None:
        """Return where the generation prompt of the whole conversation ends in what is written before a reply's content.

        A reply may part from the prompt within it: of a thought that the template leaves out, the prompt has the beginning.

        Args:
            front: What is written.

        Returns:
            The place; None: the prompt is not in it.
        """
        whole = self.layout.text
        prompted = self.template.trace(self.conversation.messages, add_generation_prompt=True).text
        prompt = prompted[len(whole) :] if prompted.startswith(whole) else ""
        for prompt in [prompt] if prompt.strip() else self._prompts:
            common, place = max(
                ((self._common(front[place:], prompt), place) for place in range(len(front))), default=(0, 0)
            )
            opening = self._tokens.search(prompt)
            if common >= (opening.end() if opening else len(prompt) // 2 + 1):
                return place + common
        return None


def _end_of(prompt: str, written: str) -> int:
    """Return where a generation prompt ends in what a template writes before a reply; 0: it is not in it."""
    place = written.rfind(prompt)
    return place + len(prompt) if place >= 0 else 0
