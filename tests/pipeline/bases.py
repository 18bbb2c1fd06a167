"""Random bases of two layers that read a dozen words, for runs that are to be quick."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

COLORS = ("red", "green", "blue", "white")
WORDS = ("the", "paint", "is", "wall", "of", "a", "old", "house", *COLORS)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_base(folder: Path, kind: str) -> Path:
    """A random base of two layers, with a token for each word."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]" if kind == "bert" else "$A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1" if kind == "bert" else "$A $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "cls", "sep", "mask")},
        eos_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    size = {"vocab_size": len(vocabulary), "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _write_model(folder, kind, size)
    return folder


def _write_model(folder: Path, kind: str, size: dict[str, int]) -> None:
    if kind == "bert":
        config = BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, **size
        )
        BertForMaskedLM(config).save_pretrained(folder)
    else:
        config = T5Config(
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            eos_token_id=3,
            decoder_start_token_id=0,
            **size,
        )
        T5ForConditionalGeneration(config).save_pretrained(folder)
