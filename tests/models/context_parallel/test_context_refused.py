"""What a model whose rows are shared cannot do is an error that names it, on every rank alike."""

import copy
import logging
import pickle

import pytest
import torch
import torch.distributed as dist
from helpers import tokens, types
from ranks import joined, on_ranks

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.models import disable_hsa
from hsa_factory.models.enable import get_state
from hsa_factory.training.context_parallel import refuse_trl


def batch(seed=0):
    ids = tokens(1, 12, seed)
    return {"input_ids": ids, "labels": ids, "semantic_ids": types(1, 12)}


def refused(rank, ranks, meeting):
    """In a child: everything that is refused, then a step that is not."""
    group = joined(rank, ranks, meeting)
    model = enable_hsa(tiny.build_model("qwen3"), HSAConfig(), context_parallel=group)
    model.train()
    with pytest.raises(ValueError, match=r"2 ranks of a group were given different rows \(batch×length 1×12, 1×12\)"):
        model(**batch(seed=rank))
    with pytest.raises(ValueError, match=r"different rows \(batch×length 1×11, 1×12\)"):
        model(**{name: values[:, : 11 + rank] for name, values in batch().items()})
    for name, values in (("labels", tokens(1, 12, rank)), ("position_ids", torch.arange(12)[None] + rank)):
        with pytest.raises(ValueError, match="different rows"):
            model(**batch() | {name: values})
    for labels in ({} if rank else {"labels": tokens(1, 12)}, {"shift_labels": tokens(1, 12, rank)}):
        with pytest.raises(ValueError, match="different rows"):
            model(**{name: values for name, values in batch().items() if name != "labels"}, **labels)
    with pytest.raises(ValueError, match="different rows"):
        model(
            inputs_embeds=torch.randn(1, 12, 64).to((torch.float32, torch.bfloat16)[rank]), semantic_ids=types(1, 12)
        )
    with pytest.raises(ValueError, match="context_parallel.*needs `semantic_ids`"):
        model.eval()(input_ids=tokens(1, 5))
    with pytest.raises(ValueError, match="context_parallel"):
        model.generate(input_ids=tokens(1, 5), semantic_ids=types(1, 5), max_new_tokens=2)
    with pytest.raises(ValueError, match="logits_to_keep"):
        model(**batch(), logits_to_keep=3)
    with pytest.raises(ValueError, match="output_attentions"):
        model(**batch(), output_attentions=True)
    with pytest.raises(ValueError, match="Qwen3_5.*without softmax attention.*context_parallel"):
        enable_hsa(tiny.build_model("qwen3_5_text"), HSAConfig(), context_parallel=group)
    shared_out = tiny.build_model("qwen3")
    shared_out._tp_size = 2
    with pytest.raises(ValueError, match="Qwen3ForCausalLM is cut up by tensor parallelism"):
        enable_hsa(shared_out, HSAConfig(), context_parallel=group)
    with pytest.raises(ValueError, match="must be a torch.distributed process group, got int"):
        enable_hsa(model, HSAConfig(), context_parallel=2)
    experts = enable_hsa(tiny.build_model("qwen3_moe"), HSAConfig(), context_parallel=group)
    with pytest.raises(ValueError, match="loss of its router"):
        experts(**batch(), output_router_logits=True)
    model.loss_function.former = lambda *args, **kwargs: None
    with pytest.raises(ValueError, match="a loss of its own"):
        model(**batch())

    for copied in (copy.deepcopy(experts), pickle.loads(pickle.dumps(experts))):
        assert get_state(copied).context is None and copied(**batch()).logits.shape[1] == 12
    whole = enable_hsa(tiny.build_model("qwen3_moe"), HSAConfig())(**batch()).loss
    loss = experts(**batch()).loss
    torch.testing.assert_close(loss, whole)
    enable_hsa(experts, HSAConfig())
    torch.testing.assert_close(experts(**batch()).loss, whole)
    assert experts(**batch()).logits.shape[1] == 12
    enable_hsa(experts, HSAConfig(), context_parallel=group)
    stock = tiny.build_model("qwen3_moe")
    disable_hsa(experts)
    assert experts.loss_function is stock.loss_function and "_loss_function" not in vars(experts)
    alone = dist.new_group([0]), dist.new_group([1])
    with pytest.raises(ValueError, match="one rank only"):
        enable_hsa(experts, HSAConfig(), context_parallel=alone[rank])
    dist.destroy_process_group()
    return 0


def told(rank, ranks, meeting):
    """In a child: an encoder that draws at random is no reason to stop; what is compared takes one collective a forward."""
    group = joined(rank, ranks, meeting)
    model = enable_hsa(tiny.build_model("qwen3"), HSAConfig(), context_parallel=group)
    warnings, gathered = [], []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("hsa_factory.models.context_parallel.group").addHandler(handler)
    gather = dist.all_gather
    dist.all_gather = lambda *args, **kwargs: gathered.append(1) or gather(*args, **kwargs)
    embeddings = model.get_input_embeddings()(tokens(1, 12)).detach()
    rest = {"semantic_ids": types(1, 12), "labels": tokens(1, 12)}
    model(inputs_embeds=embeddings, **rest)
    assert not warnings and len(gathered) == 1
    for step in range(2):
        loss = model(inputs_embeds=embeddings * (1 + 0.1 * torch.rand_like(embeddings) * (rank + 1)), **rest).loss
        assert loss.isfinite()
    (warning,) = warnings
    assert "inputs_embeds differ between the 2 ranks of a group, tokens do not" in warning
    assert get_state(model).context.given is None
    dist.destroy_process_group()
    return 0


def test_embeddings_may_differ(tmp_path):
    on_ranks(2, tmp_path, told)


def test_refused(tmp_path):
    on_ranks(2, tmp_path, refused)


def test_trainers_of_trl_are_refused():
    theirs = type("DPOTrainer", (), {"__module__": "trl.trainer.dpo_trainer"})
    with pytest.raises(ValueError, match="TRL's DPOTrainer computes .* cannot be combined with context_parallel"):
        refuse_trl(type("DPOTrainer", (theirs,), {}))
    refuse_trl(type("SFTTrainer", (), {"__module__": "trl.trainer.sft_trainer"}))
    refuse_trl(type("Trainer", (), {"__module__": "transformers.trainer"}))
