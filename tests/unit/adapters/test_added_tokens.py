"""New tokens: rows that start from their pieces, train alone, and come along with the adapter."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftkit.adapters.attach import attach, base_only, trainable
from peftkit.adapters.store import add_adapter, load_adapter, save_adapter
from peftkit.adapters.tokens import added_tokens, token_rows
from peftkit.base.load import Base, load_base, load_tokenizer, shape_of
from peftkit.base.locate import locate
from peftkit.base.tokens import added_rows
from peftkit.errors import InputError, RecipeError
from peftkit.pipeline.target import open_target
from peftkit.recipe.sections.adapter import Ia3Section, LoraSection
from peftkit.recipe.sections.base import BaseSection

TOKENS = ("<call>", "zyzzyva")
TEXT = "a <call> zyzzyva b <call>"
DELTA = "token_adapter.trainable_tokens_delta.default"


@pytest.fixture(params=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A base whose head is its embedding, and one whose head has rows of its own."""
    source = locate(BaseSection(model="builtin:tiny")).folder
    made = Path(shutil.copytree(source, tmp_path / "base"))
    if request.param == "untied":
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, tie_word_embeddings=False
        )
        with torch.no_grad():
            model.lm_head.weight.copy_(model.get_input_embeddings().weight.flip(0))
        model.save_pretrained(made)
        assert json.loads((made / "config.json").read_text())["tie_word_embeddings"] is False
    return made


def load(folder: Path, tokens: tuple[str, ...] = TOKENS, dtype: Any = "float32") -> Base:
    section = BaseSection(model=str(folder), add_tokens=tokens, dtype=dtype)
    return load_base(section, device=torch.device("cpu"))


def logits(model: Any, tokenizer: Any, text: str = TEXT) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(torch.tensor([tokenizer.encode(text)])).logits.clone()  # type: ignore[no-any-return]


def trained(base: Base) -> Any:
    model = attach(base.model, LoraSection(rank=2), seed=0)
    ids = torch.tensor([base.tokenizer.encode(TEXT)])
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(ids, labels=ids).loss.backward()
        optimizer.step()
    return model.eval()


def save(model: Any, base: Base, folder: Path) -> Path:
    save_adapter(model, folder, base.origin, method="lora", tokenizer=base.tokenizer)
    return folder


def test_a_row_starts_at_the_mean_of_its_pieces(folder: Path) -> None:
    plain, grown = load(folder, ()), load(folder)
    rows = added_rows(grown.model)
    assert rows == [2048, 2049]
    assert grown.tokenizer.convert_ids_to_tokens(rows) == list(TOKENS)
    for token, row in zip(TOKENS, rows, strict=True):
        pieces = plain.tokenizer.encode(token, add_special_tokens=False)
        assert len(pieces) > 1
        assert grown.tokenizer.encode(token, add_special_tokens=False) == [row]
        for name in ("get_input_embeddings", "get_output_embeddings"):
            before, after = (getattr(base.model, name)().weight for base in (plain, grown))
            assert torch.equal(after[row], before[pieces].mean(0))
            assert torch.equal(after[:2048], before)
    told = logits(grown.model, grown.tokenizer, "a cup of tea")[..., :2048]
    assert torch.allclose(told, logits(plain.model, plain.tokenizer, "a cup of tea"), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_the_new_rows_train_beside_the_adapter(folder: Path, dtype: str) -> None:
    base = load(folder, dtype=dtype)
    before = logits(base.model, base.tokenizer)
    own = not base.model.config.tie_word_embeddings
    frozen = base.model.model.embed_tokens.weight.clone()
    fresh = attach(base.model, LoraSection(rank=2), seed=0)
    assert torch.equal(logits(fresh, base.tokenizer), before)
    rows = {n: p.detach().clone() for n, p in trainable(fresh).items() if n.endswith(DELTA)}
    assert [tuple(row.shape) for row in rows.values()] == [(2, 128)] * (2 if own else 1)
    assert all(row.dtype == torch.float32 for row in rows.values())
    base = load(folder, dtype=dtype)
    model = trained(base)
    after = {n: p for n, p in trainable(model).items() if n.endswith(DELTA)}
    assert all(bool((after[name] != row).any(dim=1).all()) for name, row in rows.items())
    held = model.get_base_model().get_input_embeddings().token_adapter.base_layer.weight
    assert torch.equal(held, frozen)
    assert not torch.equal(logits(model, base.tokenizer), before)
    with base_only(model):
        assert torch.equal(logits(model, base.tokenizer), before)


def test_what_was_saved_is_what_is_loaded(folder: Path, tmp_path: Path) -> None:
    base = load(folder)
    model = trained(base)
    wanted = logits(model, base.tokenizer)
    saved = save(model, base, tmp_path / "adapter")
    again = load(folder)
    assert torch.equal(logits(load_adapter(again.model, saved), again.tokenizer), wanted)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert tokenizer.encode(TEXT) == base.tokenizer.encode(TEXT)
    theirs.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    assert torch.equal(logits(PeftModel.from_pretrained(theirs, str(saved)), tokenizer), wanted)


def test_an_adapter_folder_alone_says_which_tokens_the_base_lacks(
    folder: Path, tmp_path: Path
) -> None:
    base = load(folder)
    saved = save(trained(base), base, tmp_path / "adapter")
    assert token_rows(saved) == [2048, 2049]
    assert added_tokens(saved, BaseSection(model=str(folder))) == TOKENS
    target = open_target(str(saved))
    assert added_rows(target.base.model) == [2048, 2049]
    assert target.base.tokenizer.encode(TEXT) == base.tokenizer.encode(TEXT)
    plain = save_plain(folder, tmp_path / "plain")
    assert added_tokens(plain, BaseSection(model=str(folder))) == ()


def save_plain(folder: Path, into: Path) -> Path:
    base = load(folder, ())
    model = attach(base.model, LoraSection(rank=2), seed=0)
    save_adapter(model, into, base.origin, method="lora")
    assert not (into / "tokenizer.json").exists()
    return into


def test_an_adapter_that_does_not_fit_its_base_is_refused(folder: Path, tmp_path: Path) -> None:
    base = load(folder)
    saved = save(trained(base), base, tmp_path / "adapter")
    with pytest.raises(InputError) as refusal:
        load_adapter(load(folder, ()).model, saved)
    assert "trainable_token_indices: the base has 2048 tokens" in refusal.value.problems
    plain = save_plain(folder, tmp_path / "plain")
    with pytest.raises(InputError, match="no rows for the tokens that were added"):
        load_adapter(load(folder).model, plain)
    with pytest.raises(InputError, match="rows of tokens of its own"):
        add_adapter(load_adapter(load(folder).model, saved), saved, 1)


def test_a_row_that_nothing_names_is_refused(folder: Path, tmp_path: Path) -> None:
    base = load(folder)
    saved = save(trained(base), base, tmp_path / "adapter")
    path = saved / "tokenizer.json"
    values = json.loads(path.read_text())
    values["added_tokens"] = [e for e in values["added_tokens"] if e["content"] != "zyzzyva"]
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="a row for token 2049, which neither"):
        added_tokens(saved, BaseSection(model=str(folder)))
    path.write_text("no JSON")
    with pytest.raises(InputError, match="is not JSON"):
        added_tokens(saved, BaseSection(model=str(folder)))


def test_a_model_without_memory_grows_the_same(folder: Path) -> None:
    base = load(folder)
    section = BaseSection(model=str(folder), add_tokens=TOKENS)
    shape = shape_of(section, base.origin).requires_grad_(requires_grad=False)
    with torch.device("meta"):
        planned = trainable(attach(shape, LoraSection(rank=2), seed=0))
    made = trainable(attach(base.model, LoraSection(rank=2), seed=0))
    assert {n: p.shape for n, p in planned.items()} == {n: p.shape for n, p in made.items()}


def test_rows_that_a_padded_vocabulary_leaves_are_used(folder: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.resize_token_embeddings(2112, mean_resizing=False)
    model.save_pretrained(folder)
    grown = load(folder)
    assert added_rows(grown.model) == [2048, 2049]
    assert grown.model.get_input_embeddings().weight.shape[0] == 2112


@pytest.mark.parametrize("token", ["<|end|>", "e"])
def test_what_is_a_token_already_is_told(folder: Path, token: str) -> None:
    section = BaseSection(model=str(folder))
    with pytest.raises(RecipeError, match="is one token of this base already"):
        load_tokenizer(locate(section), (token,))


def test_emoji_of_several_code_points_are_one_token_each(folder: Path) -> None:
    emoji = ("\U0001f44d", "\U0001f44d\U0001f3fd", "\u2764\ufe0f", "\U0001f468\u200d\U0001f469")
    plain, grown = load(folder, ()), load(folder, emoji)
    ids = grown.tokenizer.encode(f"fine {''.join(emoji)} !", add_special_tokens=False)
    assert [row for row in ids if row >= 2048] == [2048, 2049, 2050, 2051]
    assert grown.tokenizer.decode(ids) == f"fine {''.join(emoji)} !"
    weights = [base.model.get_input_embeddings().weight for base in (plain, grown)]
    for row, each in enumerate(emoji, 2048):
        pieces = plain.tokenizer.encode(each, add_special_tokens=False)
        assert torch.equal(weights[1][row], weights[0][pieces].mean(0))


def test_other_methods_say_that_they_train_no_rows(folder: Path) -> None:
    with pytest.raises(RecipeError, match="ia3 trains no rows for new tokens"):
        attach(load(folder).model, Ia3Section(method="ia3"), seed=0)


@pytest.mark.parametrize("tokens", [["a", "a"], [""], [" "], "abc", [3]])
def test_a_list_of_tokens_holds_texts_once(tokens: Any) -> None:
    with pytest.raises(ValueError, match="add_tokens"):
        BaseSection(model="builtin:tiny", add_tokens=tokens)
