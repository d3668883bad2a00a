"""However a forward is told of documents, each gives what it gives alone; what cannot be honoured is refused by name."""

import pytest
import torch
from conversations import conversation, with_media_types
from helpers import HYBRID, LENGTH, MASK, PACKED, POSITIONS, VISION, close, differs, enabled, run, step, tokens, types
from transformers import DataCollatorWithFlattening, DynamicCache

from hsa_factory import HSAConfig
from hsa_factory.models import HSACache
from hsa_factory.models.transformers_versions import CACHE


ONES = torch.ones_like(MASK)
ENDS = torch.tensor([0, *torch.tensor(PACKED).cumsum(0)], dtype=torch.int32)
CUMULATIVE = {"cu_seq_lens_q": ENDS, "cu_seq_lens_k": ENDS, "max_length_q": max(PACKED), "max_length_k": max(PACKED)}
SEQUENCES = {"seq_idx": (MASK - 1).int()}
TEXT_POSITIONS, MROPE = {"position_ids": POSITIONS}, {"position_ids": POSITIONS.expand(3, 1, -1)}
WITH_TEXT_ROW = {"position_ids": POSITIONS.expand(4, 1, -1)}

FORMS = {
    "cumulative lengths": CUMULATIVE,
    "cumulative lengths of queries only": {"cu_seq_lens_q": ENDS},
    "cumulative lengths, filled up": {"cu_seq_lens_k": torch.cat([ENDS, ENDS[-1:], ENDS[-1:]])},
    "cumulative lengths and a mask": CUMULATIVE | {"attention_mask": ONES},
    "sequence numbers": SEQUENCES,
    "numbers in the mask": {"attention_mask": MASK},
    "numbers in a mask of floats": {"attention_mask": MASK.float()},
    "positions": TEXT_POSITIONS,
    "positions and a mask": TEXT_POSITIONS | {"attention_mask": ONES},
    "positions and a bool mask": TEXT_POSITIONS | {"attention_mask": ONES.bool()},
    "positions from 2 on": {"position_ids": POSITIONS + 2, "attention_mask": ONES},
    "all at once": TEXT_POSITIONS | CUMULATIVE | SEQUENCES | {"attention_mask": MASK, "document_ids": MASK},
}
MROPE_FORMS = {
    "three axes": MROPE,
    "three axes and a mask": MROPE | {"attention_mask": ONES},
    "three axes and lengths": MROPE | CUMULATIVE,
    "text and three axes": WITH_TEXT_ROW,
    "text and three axes, and a mask": WITH_TEXT_ROW | {"attention_mask": ONES},
    "text positions": TEXT_POSITIONS | {"attention_mask": ONES},
    "cumulative lengths": CUMULATIVE,
    "numbers in the mask": {"attention_mask": MASK},
    "sequence numbers": SEQUENCES,
}


def alone(model, ids, kinds, lengths=PACKED, **told):
    pairs = zip(ids.split(lengths, 1), kinds.split(lengths, 1))
    return torch.cat([run(model, part, semantic_ids=part_kinds, **told) for part, part_kinds in pairs], dim=1)


@pytest.fixture(scope="module")
def llama():
    return enabled("llama")


@pytest.fixture(scope="module")
def expected(llama):
    return alone(llama, tokens(1), types(1))


class TestHonoured:
    @pytest.mark.parametrize("form", FORMS)
    def test_text_models(self, form, llama, expected):
        differs(run(llama, tokens(1), semantic_ids=types(1)), expected)
        close(run(llama, tokens(1), semantic_ids=types(1), **FORMS[form]), expected, 5e-5)

    @pytest.mark.parametrize("model_type", VISION)
    @pytest.mark.parametrize("form", MROPE_FORMS)
    def test_models_with_mrope(self, model_type, form):
        model, ids, kinds = enabled(model_type), tokens(1), types(1)
        close(run(model, ids, semantic_ids=kinds, **MROPE_FORMS[form]), alone(model, ids, kinds), 5e-5)

    def test_transformers_own_collator(self, llama, expected):
        """`return_position_ids=False, return_flash_attn_kwargs=True` says it by lengths alone."""
        features = [{"input_ids": part[0].tolist()} for part in tokens(1).split(PACKED, 1)]
        for options in (
            {"return_position_ids": False, "return_flash_attn_kwargs": True},
            {"return_position_ids": False, "return_seq_idx": True},
            {"return_flash_attn_kwargs": True, "return_seq_idx": True},
        ):
            batch = dict(DataCollatorWithFlattening(**options)(features))
            labels = batch.pop("labels")
            close(run(llama, batch.pop("input_ids"), semantic_ids=types(1), **batch), expected, 5e-5)
            with torch.no_grad():
                losses = [
                    llama(input_ids=tokens(1), semantic_ids=types(1), labels=labels, use_cache=False, **told).loss
                    for told in (batch, {"document_ids": MASK})
                ]
            assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)

    @pytest.mark.parametrize("counted", ["all tokens", "real tokens"])
    def test_lengths_of_padded_rows(self, counted, llama):
        """A row that ends in padding, and one that begins with it."""
        ids, kinds, mask = tokens(2, 40), types(2, 40), torch.ones(2, 40, dtype=torch.long)
        mask[0, 31:], mask[1, :7] = 0, 0
        places = [(0, 0, 11), (0, 11, 31), (1, 7, 20), (1, 20, 40)]
        ends = [0, 11, 40, 60, 80] if counted == "all tokens" else [0, 11, 31, 44, 64]
        together = run(llama, ids, semantic_ids=kinds, attention_mask=mask, cu_seq_lens_q=torch.tensor(ends))
        for row, start, stop in places:
            part = run(llama, ids[row : row + 1, start:stop], semantic_ids=kinds[row : row + 1, start:stop])
            close(together[row : row + 1, start:stop], part, 5e-5)

    def test_each_row_has_its_own_documents(self, llama):
        """Positions of padding are not read; a row without several documents stays whole."""
        ids, kinds, mask = tokens(2), types(2), torch.ones(2, LENGTH, dtype=torch.long)
        mask[1, :4] = 0
        positions = torch.cat([POSITIONS, torch.arange(LENGTH)[None] - 4])
        positions[1, :4] = 1
        together = run(llama, ids, semantic_ids=kinds, attention_mask=mask, position_ids=positions)
        close(together[:1], alone(llama, ids[:1], kinds[:1]), 5e-5)
        close(together[1:, 4:], run(llama, ids[1:, 4:], semantic_ids=kinds[1:, 4:]), 5e-5)

    @pytest.mark.parametrize("wrapped", ["plain", "gradient checkpointing", "adapter"])
    def test_training(self, wrapped):
        model, batch = enabled("llama"), {"semantic_ids": types(1)}
        if wrapped == "adapter":
            peft = pytest.importorskip("peft")
            model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        if wrapped == "gradient checkpointing":
            model.gradient_checkpointing_enable()
        loss, gradients = step(model, tokens(1), document_ids=MASK, **batch)
        again, others = step(model, tokens(1), **CUMULATIVE, **batch)
        assert again == pytest.approx(loss, abs=1e-6) and gradients
        for name, gradient in gradients.items():
            close(others[name], gradient, 1e-5)
        mixed, _ = step(model, tokens(1), **batch)
        assert abs(mixed - loss) > 1e-3

    @pytest.mark.parametrize("places", ["that begin anew", "with a leap"])
    @pytest.mark.parametrize("form", ["positions", "text and three axes"])
    def test_all_global_is_stock_where_stock_reads_the_positions(self, form, places):
        model = enabled(VISION[0] if form == "text and three axes" else "llama")
        ids = tokens(1)
        told = POSITIONS if places == "that begin anew" else torch.arange(LENGTH)[None] + 10 * (MASK > 1)
        told = {"position_ids": told.expand(4, 1, -1) if form == "text and three axes" else told}
        stock = run(model, ids, **told)
        close(run(model, ids, semantic_ids=torch.zeros_like(ids), **told), stock)
        differs(stock[:, 30:], run(model, ids)[:, 30:])


class TestImages:
    """In an image M-RoPE's axes repeat and fall; in a long video time runs ahead of the text behind it."""

    @pytest.mark.parametrize("told", ["by positions", "by positions, with a mask", "by lengths"])
    @pytest.mark.parametrize("model_type", VISION)
    def test_conversations_packed_and_alone(self, model_type, told):
        model, parts = enabled(model_type), []
        for turns in (2, 1, 2):
            ids, media = conversation(model, turns)
            media = with_media_types(model, ids, media)
            known = {name: media[name] for name in ("image_grid_thw", "mm_token_type_ids")}
            if "mm_token_type_ids" not in model.model.get_rope_index.__code__.co_varnames:
                known.pop("mm_token_type_ids")
            places = model.model.get_rope_index(ids, attention_mask=torch.ones_like(ids), **known)[0]
            parts.append((ids, types(1, ids.shape[1]), places, media))
        ids, kinds, places = (torch.cat([part[index] for part in parts], dim=-1) for index in range(3))
        media = {name: torch.cat([part[3][name] for part in parts]) for name in ("pixel_values", "image_grid_thw")}
        lengths = [part[0].shape[1] for part in parts]
        ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0)])
        extra = {
            "by positions, with a mask": {"attention_mask": torch.ones_like(ids)},
            "by lengths": {"cu_seq_lens_q": ends},
        }
        together = run(model, ids, semantic_ids=kinds, position_ids=places, **media, **extra.get(told, {}))
        for part, (part_ids, part_kinds, _, part_media) in zip(together.split(lengths, 1), parts):
            close(part, run(model, part_ids, semantic_ids=part_kinds, **part_media), 5e-5)

    @pytest.mark.parametrize(
        "places",
        [
            [[0, 1, 1, 1, 1, 3, 4], [0, 1, 1, 2, 2, 3, 4], [0, 1, 2, 1, 2, 3, 4]],  # an image
            [[0, 1, 2, 3, 4, 2, 3], [0, 1, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 2, 3]],  # time falls behind a long video
            [[0, 0, 1, 1, 2, 3, 4], [0, 0, 0, 0, 2, 3, 4], [0, 1, 0, 1, 2, 3, 4]],  # a video at the beginning
        ],
    )
    @pytest.mark.parametrize("has_mask", [False, True])
    def test_one_document_stays_whole(self, places, has_mask):
        model, ids, kinds, places = enabled(VISION[0]), tokens(1, 7), types(1, 7), torch.tensor(places)[:, None]
        mask = {"attention_mask": torch.ones_like(ids)} if has_mask else {}
        whole = run(model, ids, semantic_ids=kinds, position_ids=places, document_ids=torch.ones_like(ids))
        assert torch.equal(run(model, ids, semantic_ids=kinds, position_ids=places, **mask), whole)

    def test_a_copy_of_the_time_axis_is_no_text(self):
        """LLaMA-Factory puts one before M-RoPE's axes; transformers, the text's positions."""
        axes = torch.tensor([[0, 1, 1, 1, 1, 3, 4], [0, 1, 1, 2, 2, 3, 4], [0, 1, 2, 1, 2, 3, 4]])[:, None]
        model, ids, kinds = enabled(VISION[0]), tokens(1, 14), types(1, 14)
        axes = torch.cat([axes, axes], dim=2)
        expected = alone(model, ids, kinds, (7, 7), position_ids=axes[..., :7])
        for first in (axes[:1], torch.arange(7).repeat(2)[None, None]):
            for mask in ({}, {"attention_mask": torch.ones_like(ids)}):
                told = {"position_ids": torch.cat([first, axes]), **mask}
                close(run(model, ids, semantic_ids=kinds, **told), expected)


def fallen(*places):
    return {"position_ids": torch.tensor([places])}


REFUSED = [
    (
        {"cu_seq_lens_q": ENDS, **fallen(*range(40), *range(30))},
        "position_ids begin anew at row 0, token 40, inside a document of cu_",
    ),
    (
        {"cu_seq_lens_q": ENDS[[0, 4]], **TEXT_POSITIONS},
        "position_ids and cu_seq_lens_q disagree on where documents begin",
    ),
    (
        {"attention_mask": MASK, **fallen(*range(31), *range(39))},
        "disagree on where documents begin.*go on at token 30",
    ),
    (
        {"attention_mask": MASK, "cu_seq_lens_q": ENDS[[0, 1, 4]]},
        "the numbers in attention_mask and cu_seq_lens_q disagree",
    ),
    ({"document_ids": MASK, "seq_idx": (MASK > 1).int()}, "document_ids and seq_idx disagree .*: at row 0, token 31"),
    ({"document_ids": ONES, "attention_mask": MASK}, "document_ids and the numbers in attention_mask disagree"),
    ({"cu_seq_lens_q": ENDS, "cu_seq_lens_k": ENDS[[0, 1, 4]]}, "cu_seq_lens_q and cu_seq_lens_k disagree"),
    ({"cu_seq_lens_q": ENDS[:-1]}, r"cu_seq_lens_q ends at 56, but the input has \(batch, length\) = \(1, 70\)"),
    ({"cu_seq_lens_q": ENDS[1:]}, "cu_seq_lens_q must go up from 0"),
    ({"cu_seq_lens_q": ENDS.flip(0)}, "cu_seq_lens_q must go up from 0"),
    ({"cu_seq_lens_q": ENDS[None]}, "cu_seq_lens_q must be whole numbers of shape"),
    ({"cu_seq_lens_q": ENDS.tolist()}, "cu_seq_lens_q must be whole numbers of shape .* got list"),
    ({**CUMULATIVE, "max_length_k": 20}, "max_length_k = 20, but the longest document of cu_seq_lens_q has 30 tokens"),
    ({"max_length_q": 30}, "max_length_q = 30 says that rows of 70 tokens hold several documents, but not where"),
    ({"seq_idx": MASK[0]}, "seq_idx must be a tensor of shape"),
    ({"seq_idx": torch.arange(LENGTH)[None] % 2}, "seq_idx has the number 0 again at row 0, token 2"),
    (
        {"attention_mask": ONES, **fallen(*range(40), *range(10, 40))},
        "position_ids do not go up at row 0, token 40.*number the documents in document_ids",
    ),
    ({"position_ids": POSITIONS.expand(2, 1, -1)}, r"position_ids of shape \(2, 1, 70\) fall"),
]


class TestRefused:
    @pytest.mark.parametrize(("told", "message"), REFUSED)
    def test_statements_that_disagree_or_say_too_little(self, told, message, llama):
        with pytest.raises(ValueError, match=message):
            run(llama, tokens(1), semantic_ids=types(1), **told)

    def test_a_document_over_the_end_of_a_row(self, llama):
        with pytest.raises(ValueError, match="a document goes on from row 0 into row 1"):
            run(llama, tokens(2), semantic_ids=types(2), cu_seq_lens_q=torch.tensor([0, 30, 100, 140]))

    def test_axes_against_the_row_of_text_positions(self):
        positions = POSITIONS.expand(4, 1, -1).clone()
        positions[0] = torch.arange(LENGTH)
        with pytest.raises(
            ValueError, match="position_ids begin anew at row 0, token 30, inside a document of the first row"
        ):
            run(enabled(VISION[0]), tokens(1), semantic_ids=types(1), position_ids=positions)

    def test_axes_that_fall_together(self):
        positions = torch.cat([torch.arange(40), torch.arange(10, 40)]).expand(3, 1, -1)
        model, ids, kinds = enabled(VISION[0]), tokens(1), types(1)
        with pytest.raises(ValueError, match="position_ids do not go up at row 0, token 40"):
            run(model, ids, semantic_ids=kinds, position_ids=positions)
        documents = (torch.arange(LENGTH) >= 40).long()[None]
        told = run(model, ids, semantic_ids=kinds, position_ids=positions, document_ids=documents)
        close(told, alone(model, ids, kinds, (40, 30)), 5e-5)

    @pytest.mark.parametrize("told", [CUMULATIVE, SEQUENCES, TEXT_POSITIONS | {"attention_mask": ONES}])
    @pytest.mark.parametrize("model_type", HYBRID)
    def test_models_with_states(self, model_type, told):
        with pytest.raises(ValueError, match="samples would see each other"):
            run(enabled(model_type), tokens(1), semantic_ids=types(1), **told)

    @pytest.mark.parametrize("told", [CUMULATIVE, SEQUENCES, TEXT_POSITIONS, {"attention_mask": MASK}])
    @pytest.mark.parametrize("seen", [0, 5])
    def test_in_a_cache(self, seen, told, llama):
        """Neither in its first tokens nor in later ones; the cache is as it was."""
        cache, ids, kinds = HSACache(HSAConfig()), tokens(1, seen + LENGTH), types(1, seen + LENGTH)
        if seen:
            run(llama, ids[:, :seen], semantic_ids=kinds[:, :seen], use_cache=True, **{CACHE: cache})
        told = {
            name: torch.cat([value[:, :1].expand(1, seen), value], 1) if name == "attention_mask" else value
            for name, value in told.items()
        }
        with pytest.raises(ValueError, match=r"A packed row \(.*\) cannot be cached"):
            run(llama, ids[:, seen:], semantic_ids=kinds[:, seen:], use_cache=True, **{CACHE: cache}, **told)
        assert cache.get_seq_length() == seen
        run(llama, ids[:, seen:], semantic_ids=kinds[:, seen:], use_cache=True, **{CACHE: cache})
        assert cache.get_seq_length() == seen + LENGTH

    @pytest.mark.parametrize("told", [CUMULATIVE, SEQUENCES, TEXT_POSITIONS])
    def test_after_a_cache_of_transformers_own(self, told, llama):
        cache, ids, kinds = DynamicCache(config=llama.config), tokens(1, 5 + LENGTH), types(1, 5 + LENGTH)
        run(llama, ids[:, :5], semantic_ids=kinds[:, :5], use_cache=True, **{CACHE: cache})
        with pytest.raises(ValueError, match="cannot be cached"):
            run(llama, ids[:, 5:], semantic_ids=kinds, use_cache=True, **{CACHE: cache}, **told)

    @pytest.mark.parametrize("told", [{"attention_mask": MASK}, {"document_ids": MASK}, CUMULATIVE, SEQUENCES])
    def test_in_generate(self, told, llama):
        with pytest.raises(
            ValueError, match="packed row.* cannot be cached: generate from its documents on their own"
        ):
            llama.generate(tokens(1), semantic_ids=types(1), max_new_tokens=2, **told)
