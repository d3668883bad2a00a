"""What is replaced in LLaMA Board while it runs under `hsa-factory`, as one table."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import llamafactory.webui.chatter as chatter
import llamafactory.webui.components.eval as eval_tab
import llamafactory.webui.components.export as export_tab
import llamafactory.webui.components.infer as infer_tab
import llamafactory.webui.components.train as train_tab
import llamafactory.webui.interface as interface
import llamafactory.webui.manager as manager
import llamafactory.webui.runner as runner

from ..seams import Seam, installed
from ..state import Integration
from . import chat, elements, export, runs, samples
from .rules_in_force import RulesInForce
from .texts import texts_registered


def board_seams(state: Integration) -> list[Seam]:
    """Return what is replaced in LLaMA Board.

    Args:
        state: The integration of the process, for the models that the Board loads itself.
    """
    rules = RulesInForce(state)
    return [
        # the fields, and who reads them
        Seam(interface, "create_top", elements.top_with_options),
        Seam(manager.Manager, "get_base_elems", elements.base_elements),
        # runs
        Seam(runner.Runner, "_initialize", runs.check_first),
        Seam(runner.Runner, "_parse_train_args", runs.parse_with_blocks),
        Seam(runner.Runner, "_parse_eval_args", runs.parse_with_blocks),
        Seam(runner.Runner, "_build_config_dict", runs.saved_config),
        Seam(runner.Runner, "load_args", runs.loaded_config),
        Seam(runner.Runner, "check_output_dir", runs.loaded_config),
        Seam(runner, "gen_cmd", runs.preview),
        Seam(runner, "Popen", runs.start),
        Seam(runner, "get_trainer_info", runs.with_table),
        # the preview of a data set
        Seam(train_tab, "create_preview_box", samples.preview_box_with_types),
        Seam(eval_tab, "create_preview_box", samples.preview_box_with_types),
        Seam(interface, "create_train_tab", partial(samples.tab_with_samples, True)),
        Seam(interface, "create_eval_tab", partial(samples.tab_with_samples, False)),
        # models that the Board loads itself
        Seam(export_tab, "save_model", partial(export.save_model, rules)),
        Seam(interface, "create_export_tab", export.export_tab_with_options),
        Seam(chatter.WebChatModel, "load_model", partial(chat.load_model, rules)),
        Seam(chatter.WebChatModel, "append", chat.append_typed),
        Seam(chatter.WebChatModel, "stream", chat.stream_typed),
        Seam(interface, "create_chat_box", chat.chat_box_with_type),  # of `webchat`
        Seam(infer_tab, "create_chat_box", chat.chat_box_with_type),
    ]


@contextmanager
def board(state: Integration) -> Iterator[None]:
    """Let LLaMA Board know HSA and Feedback, for the duration of a `with` block.

    Args:
        state: The integration of the process.

    Raises:
        RuntimeError: Before anything is replaced, if LLaMA Board is not as we know it.
    """
    with installed(board_seams(state)), texts_registered():
        yield
