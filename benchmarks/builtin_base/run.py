"""Make the embedded base: tokenizer and shape, then weights from a finished pretraining run.

python benchmarks/builtin_base/run.py shape              tokenizer and config into the package
peftkit finetune recipes/pretrain/builtin-tiny.yaml      about half an hour on one CPU core
python benchmarks/builtin_base/run.py install runs/builtin-tiny
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
TINY = ROOT / "peftkit" / "base" / "tiny"
MATERIAL = ROOT.parent / "shared" / "material"
TEXT = (
    MATERIAL / "tinystories-sample" / "tinystories_sample.txt",
    MATERIAL / "wikitext2" / "valid.txt",
)
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
VOCABULARY = 2048
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_shape() -> None:
    """Write tokenizer and config of the embedded base, with no weights yet."""
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(TINY)
    (TINY / "chat_template.jinja").unlink(missing_ok=True)
    path = TINY / "tokenizer_config.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    kept.pop("backend", None)  # a newer name for the same class, unknown to older readers
    kept |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    path.write_text(json.dumps(kept, indent=2) + "\n")
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        dtype="bfloat16",
    )
    config.save_pretrained(TINY)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE over the pretraining text; every byte is in the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def documents() -> Iterator[str]:
    """The pretraining text, a document at a time."""
    for path in TEXT:
        yield from re.split(r"(?m)^<\|endoftext\|>$", path.read_text(encoding="utf-8"))


def install(run: Path) -> None:
    """Put the weights of a finished pretraining run into the package, as bfloat16."""
    weights = load_file(run / "adapter" / "delta.safetensors")
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in sorted(weights.items())}
    save_file(rounded, TINY / "model.safetensors", metadata={"format": "pt"})
    (TINY / "model.safetensors").chmod(0o644)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    samples = json.loads((run / "samples.json").read_text(encoding="utf-8"))
    measured = {
        "random": metrics["baselines"]["base"],
        "trained": metrics["validation"],
        "difference": metrics["difference"]["validation"],
        "speed": metrics["speed"],
        "plan": plan,
        "samples": samples,
    }
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from record import write_result

    print(write_result(Path(__file__).parent, measured))


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["shape", "install"])
    parser.add_argument("run", type=Path, nargs="?")
    given = parser.parse_args()
    make_shape() if given.part == "shape" else install(given.run)


if __name__ == "__main__":
    main()
