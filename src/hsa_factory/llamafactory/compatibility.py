"""What hsa-factory counts on in LLaMA-Factory, by name and parameters, and which version has it.

`python -m hsa_factory.llamafactory.compatibility` says what is otherwise in the version installed: the first thing to run
with a new one. A name stands here with the parameters in their order; without them it is a class, or taken as it is.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from packaging.specifiers import SpecifierSet

from ..hosts import LLAMAFACTORY_RANGE


REPLACED = """
data.parser.DatasetAttr.join(self, attr)
data.loader.get_dataset_list(dataset_names, dataset_dir)
data.loader._load_single_dataset(dataset_attr, model_args, data_args, training_args)
data.loader.load_dataset
data.loader.align_dataset(dataset, dataset_attr, data_args, training_args)
data.loader.merge_dataset(all_datasets, data_args, seed)
data.loader._get_dataset_processor(data_args, stage, template, tokenizer, processor, do_generate)
data.loader._get_preprocessed_dataset(dataset, data_args, training_args, stage, template, tokenizer, processor, is_eval)
data.template.Template.fix_special_tokens(self, tokenizer)
model.loader.patch_model(model, tokenizer, model_args, is_trainable, add_valuehead)
cli.main()
launcher.launch()
train.tuner.Worker
train.tuner._ray_training_function(ray_args, config)
train.tuner.get_train_args(args)
train.tuner.load_model(tokenizer, model_args, finetuning_args, is_trainable, add_valuehead)
train.sft.workflow.get_dataset(template, model_args, data_args, training_args, stage, tokenizer, processor)
train.sft.workflow.load_model(tokenizer, model_args, finetuning_args, is_trainable, add_valuehead)
train.sft.workflow.SFTDataCollatorWith4DAttentionMask
train.sft.workflow.CustomSeq2SeqTrainer
train.sft.workflow.create_modelcard_and_push(trainer, model_args, data_args, training_args, finetuning_args)
train.sft.trainer.CustomSeq2SeqTrainer.prediction_step(self, model, inputs, prediction_loss_only, ignore_keys, gen_kwargs)
train.dpo.workflow.get_dataset(template, model_args, data_args, training_args, stage, tokenizer, processor)
train.dpo.workflow.load_model(tokenizer, model_args, finetuning_args, is_trainable, add_valuehead)
train.dpo.workflow.PairwiseDataCollatorWithPadding
train.dpo.workflow.create_modelcard_and_push(trainer, model_args, data_args, training_args, finetuning_args)
train.kto.workflow.get_dataset(template, model_args, data_args, training_args, stage, tokenizer, processor)
train.kto.workflow.load_model(tokenizer, model_args, finetuning_args, is_trainable, add_valuehead)
train.kto.workflow.KTODataCollatorWithPadding
train.kto.workflow.create_modelcard_and_push(trainer, model_args, data_args, training_args, finetuning_args)
train.kto.trainer.CustomKTOTrainer.forward(self, model, batch, prefix)
train.pt.workflow.get_dataset(template, model_args, data_args, training_args, stage, tokenizer, processor)
train.pt.workflow.load_model(tokenizer, model_args, finetuning_args, is_trainable, add_valuehead)
train.pt.workflow.DataCollatorForLanguageModeling
train.pt.workflow.CustomTrainer
train.pt.workflow.create_modelcard_and_push(trainer, model_args, data_args, training_args, finetuning_args)
train.rm.workflow.get_dataset(template, model_args, data_args, training_args, stage, tokenizer, processor)
train.rm.workflow.load_model(tokenizer, model_args, finetuning_args, is_trainable, add_valuehead)
train.rm.workflow.PairwiseDataCollatorWithPadding
train.rm.workflow.PairwiseTrainer
train.rm.workflow.create_modelcard_and_push(trainer, model_args, data_args, training_args, finetuning_args)
train.trainer_utils.load_model(tokenizer, model_args, finetuning_args, is_trainable, add_valuehead)
chat.chat_model.get_infer_args(args)
chat.chat_model.run_chat()
chat.chat_model.ChatModel.stream_chat(self, messages, system, tools, images, videos, audios, input_kwargs)
chat.hf_engine.load_model(tokenizer, model_args, finetuning_args, is_trainable, add_valuehead)
chat.hf_engine.HuggingfaceEngine._process_args(model, tokenizer, processor, template, generating_args, messages, system, tools, \
images, videos, audios, input_kwargs)
chat.hf_engine.HuggingfaceEngine._stream_chat(model, tokenizer, processor, template, generating_args, messages, system, tools, \
images, videos, audios, input_kwargs)
chat.hf_engine.HuggingfaceEngine.stream_chat(self, messages, system, tools, images, videos, audios, input_kwargs)
chat.hf_engine.HuggingfaceEngine._get_scores(model, tokenizer, batch_input, input_kwargs)
chat.hf_engine.Thread
api.app.ChatCompletionRequest
api.app.ScoreEvaluationRequest
api.app.create_app(chat_model)
api.app.create_chat_completion_response(request, chat_model)
api.app.create_stream_chat_completion_response(request, chat_model)
api.app.create_score_evaluation_response(request, chat_model)
api.chat._process_request(request)
webui.chatter.WebChatModel.append(chatbot, messages, role, query, escape_html)
webui.chatter.WebChatModel.load_model(self, data)
webui.chatter.WebChatModel.stream(self, chatbot, messages, lang, system, tools, image, video, audio, max_new_tokens, top_p, \
temperature, skip_special_tokens, escape_html, enable_thinking) [<0.9.6.dev0]
webui.chatter.WebChatModel.stream(self, chatbot, messages, lang, system, tools, image, video, audio, max_new_tokens, top_p, \
temperature, seed, skip_special_tokens, escape_html, enable_thinking) [>=0.9.6.dev0]
webui.components.eval.create_preview_box(dataset_dir, dataset)
webui.components.export.save_model
webui.components.infer.create_chat_box(engine, visible)
webui.components.train.create_preview_box(dataset_dir, dataset)
webui.interface.create_chat_box(engine, visible)
webui.interface.create_eval_tab(engine)
webui.interface.create_export_tab(engine)
webui.interface.create_top()
webui.interface.create_train_tab(engine)
webui.manager.Manager.get_base_elems(self)
webui.runner.Popen
webui.runner.gen_cmd(args)
webui.runner.get_trainer_info(lang, output_path, do_train)
webui.runner.Runner._build_config_dict(self, data)
webui.runner.Runner._initialize(self, data, do_train, from_preview)
webui.runner.Runner._parse_eval_args(self, data)
webui.runner.Runner._parse_train_args(self, data)
webui.runner.Runner.check_output_dir(self, lang, model_name, finetuning_type, output_dir)
webui.runner.Runner.load_args(self, lang, config_path)
"""
"""The seams: what is replaced while an integration, or the Board with it, is there."""

EXTENDED = """
data.converter.DatasetConverter._find_medias(self, medias)
data.converter.SharegptDatasetConverter.__call__(self, example)
data.template.Template._encode(self, tokenizer, messages, system, tools)
data.template.Template._convert_elements_to_ids(self, tokenizer, elements)
data.template.Template.encode_oneturn(self, tokenizer, messages, system, tools)
data.template.Template.encode_multiturn(self, tokenizer, messages, system, tools, discarding_history_cot)
data.template.Template.remove_thought(self, content)
data.processor.supervised.SupervisedDatasetProcessor._encode_data_example(self, prompt, response, system, tools, images, videos, \
audios)
data.processor.supervised.SupervisedDatasetProcessor.preprocess_dataset(self, examples)
data.processor.processor_utils.infer_seqlen(source_len, target_len, cutoff_len)
data.collator.SFTDataCollatorWith4DAttentionMask.__call__(self, features)
data.collator.MultiModalDataCollatorForSeq2Seq._compute_rope_position_ids_with_packing
hparams.parser._parse_infer_args(args)
hparams.parser.read_args(args)
"""
"""What classes of ours extend, or functions of ours call, though it is nobody's public interface."""

_ROOT = "llamafactory"
_LINE = re.compile(r"(?P<name>[\w.]+)(?:\((?P<parameters>[^)]*)\))?(?: \[(?P<versions>[^\]]+)\])?")


@dataclass(frozen=True)
class Point:
    """One thing of LLaMA-Factory that is counted on.

    Attributes:
        name: Full name.
        parameters: Names in their order; None: it is a class, or taken as it is.
        versions: Which versions have it so.
    """

    name: str
    parameters: tuple[str, ...] | None
    versions: str = LLAMAFACTORY_RANGE

    def holds_in(self, version: str) -> bool:
        """Whether a version should have it so; one that is not known yet, as the newest that is."""
        return self.versions == LLAMAFACTORY_RANGE or SpecifierSet(self.versions).contains(version, prereleases=True)


def points() -> Iterator[Point]:
    """Yield all that is counted on."""
    for line in f"{REPLACED}{EXTENDED}".split("\n"):
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        parameters = match["parameters"]
        names = None if parameters is None else tuple(filter(None, parameters.split(", ")))
        yield Point(f"{_ROOT}.{match['name']}", names, match["versions"] or LLAMAFACTORY_RANGE)


def find_moved(version: str) -> list[str]:
    """Return what is otherwise in the LLaMA-Factory installed, one line a name; modules that need a package more are passed over.

    Args:
        version: That LLaMA-Factory's.
    """
    return [problem for point in points() if point.holds_in(version) and (problem := _problem(point))]


def _problem(point: Point) -> str:
    try:
        found = _find(point.name)
    except AttributeError:
        return f"{point.name} is gone"
    except ModuleNotFoundError as error:
        return f"{point.name} is gone, with its module" if str(error.name).startswith(_ROOT) else ""
    except ImportError:
        return ""
    if point.parameters is None:
        return ""
    parameters = tuple(inspect.signature(found).parameters)
    if parameters == point.parameters:
        return ""
    return f"{point.name} takes ({', '.join(parameters)}), not ({', '.join(point.parameters)})"


def _find(name: str) -> Any:
    """Return a module's attribute, or a class's as it stands in it.

    Raises:
        AttributeError: If the module or the class has no such thing.
        ImportError: If the module cannot be imported.
    """
    parts = name.split(".")
    place = next(k for k, part in enumerate(parts) if part[:1].isupper() or k == len(parts) - 1)
    found = importlib.import_module(".".join(parts[:place]))
    for part in parts[place:]:
        found = getattr(found, part)
    return found


def main() -> int:
    """Print what is otherwise in the LLaMA-Factory installed; return 1 if anything is."""
    from llamafactory.extras.env import VERSION

    moved = find_moved(VERSION)
    for problem in moved:
        print(problem)
    print(
        f"LLaMA-Factory {VERSION}: {len(moved)} of {len(list(points()))} things that hsa-factory counts on are otherwise"
    )
    return int(bool(moved))


if __name__ == "__main__":
    sys.exit(main())
