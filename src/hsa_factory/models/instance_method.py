"""Methods that HSA puts on single objects (`generate`, `save_pretrained`), and how they are taken off again."""

from typing import Any


def put_back(owner: Any, name: str, kind: type) -> None:
    """Take a method of ours off an object; what somebody else had put there before it comes back.

    Args:
        owner: The object; nothing happens if the method on it is not ours, or there is none.
        name: Of the method.
        kind: The class of ours; `replaced` is what stood there before. None: only the class's own method.
    """
    installed = vars(owner).get(name)
    if isinstance(installed, kind):
        delattr(owner, name)
        replaced = getattr(installed, "replaced", None)
        if replaced is not None:
            setattr(owner, name, replaced)
