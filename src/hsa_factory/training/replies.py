"""Where each reply begins: behind all that the model gets to read before it writes.

That is the generation prompt, as the template writes it for the conversation up to the reply. It is found without tags in the
template: the text up to the reply is rendered with a generation prompt, and compared with the whole.
"""

from os.path import commonprefix

from .chat_template import ChatTemplate
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
        self._settled: set[str] = set()  # roles for which it was found to be the same again

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
        if tail is None or (not written.startswith(tail) and kind not in self._settled):
            exact = self._tail(reply)
            if exact == tail:
                self._settled.add(kind)
            tail = self._tails[kind] = exact
        begin = anchor + len(commonprefix([written, tail]))
        if begin < start:
            raise ValueError(
                f"{self.template.name} writes another text before turn {reply} where it is the next to be generated, so that "
                f"nobody can tell where the reply begins ({tail[-40:]!r}, not {written[-40:]!r})."
            )
        return begin

    def _tail(self, reply: int) -> str:
        """Return what stands between the last content before a reply and the reply, when it is to be generated."""
        before = self.conversation.messages[:reply]
        prompt = Layout(self.template.trace(before, add_generation_prompt=True))
        tail = prompt.text[prompt.last_own() :]
        if self.template.trace(before).text != prompt.text:
            return tail
        return tail + self._plain_header(reply, tail)

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
        whole = self.layout.text
        prompted = self.template.trace(self.conversation.messages, add_generation_prompt=True).text
        prompt = prompted[len(whole) :] if prompted.startswith(whole) else ""
        front = whole[start : self.layout.first_own(0)]
        place = front.find(prompt) if prompt else -1
        return start + place + len(prompt) if place >= 0 else start + len(front)
