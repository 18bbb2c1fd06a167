"""Every model that the frozen-head loss is not for is refused, and hears why."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import AdaLoraConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tiny_models import SHAPE, batch_of, build, found_head
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from peftkit.fast.head import check_head, find_head


def made(kind: str, loader: Any = AutoModelForCausalLM, **changed: Any) -> Any:
    config = AutoConfig.for_model(kind, **SHAPE | changed)
    return loader.from_config(config).requires_grad_(requires_grad=False)


def with_trained_head(model: Any) -> Any:
    model.lm_head.requires_grad_(requires_grad=True)
    return model


def with_replaced_forward(model: Any) -> Any:
    model.forward = model.forward
    return model


def with_hook(model: Any) -> Any:
    model.lm_head.register_forward_hook(lambda *_: None)
    return model


def with_odd_head(model: Any) -> Any:
    class OddLinear(torch.nn.Linear):
        """What a quantized layer is to its type."""

    model.lm_head = OddLinear(32, 101).requires_grad_(requires_grad=False)
    return model


class NestedNames(LlamaForCausalLM):
    """Its forward pass mentions the unknown inside another function only."""

    def forward(self, *places: Any, **named: Any) -> Any:
        def change(outputs: Any) -> Any:
            return outputs.unheard_of

        return change(self.model(*places, **named))


def with_lora(**settings: Any) -> Any:
    return get_peft_model(build(), LoraConfig(r=2, task_type="CAUSAL_LM", **settings))


T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
BART = {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32}
MOE = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
EVERY = ["q_proj", "lm_head"]
VIRTUAL = {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a head that trains": (lambda: with_trained_head(build()), "its head trains"),
    "embeddings that train, tied": (
        lambda: with_trained_head(build("llama, tied")),
        "its head trains",
    ),
    "LoRA on the head": (lambda: with_lora(target_modules=EVERY), "an adapter sits on its head"),
    "a saved head": (
        lambda: with_lora(target_modules=["q_proj"], modules_to_save=["lm_head"]),
        "an adapter sits on its head",
    ),
    "AdaLoRA": (
        lambda: get_peft_model(
            build(), AdaLoraConfig(total_step=9, target_modules=["q_proj"], task_type="CAUSAL_LM")
        ),
        "its adapter wraps the whole forward pass (AdaLoraModel)",
    ),
    "activated LoRA": (
        lambda: with_lora(target_modules=["q_proj"], alora_invocation_tokens=[5]),
        "invocation tokens",
    ),
    "prompt tuning": (
        lambda: get_peft_model(build(), PromptTuningConfig(**VIRTUAL)),
        "virtual tokens before the text (PROMPT_TUNING)",
    ),
    "prefix tuning": (
        lambda: get_peft_model(build(), PrefixTuningConfig(**VIRTUAL)),
        "virtual tokens before the text (PREFIX_TUNING)",
    ),
    "an encoder-decoder": (lambda: made("t5", AutoModelForSeq2SeqLM, **T5), "an encoder and a"),
    "a masked-language head": (lambda: made("roberta", is_decoder=True), "just a backbone and a"),
    "an unknown forward pass": (lambda: made("opt", **OPT), "its forward pass mentions `decoder`"),
    "an unknown name in an inner function": (
        lambda: NestedNames(LlamaConfig(**SHAPE)).requires_grad_(requires_grad=False),
        "`unheard_of`",
    ),
    "a backbone of another kind": (
        lambda: made("bart", is_decoder=True, is_encoder_decoder=False, **BART),
        "its backbone does not say that it returns",
    ),
    "a quantized head": (lambda: with_odd_head(build()), "its head is a OddLinear, not a plain"),
    "a router's loss": (
        lambda: made("qwen2_moe", **MOE, output_router_logits=True),
        "its router has a loss of its own",
    ),
    "tuples": (lambda: made("llama", return_dict=False), "its outputs are tuples"),
    "a classifier": (
        lambda: made("llama", AutoModelForSequenceClassification),
        "it has no language-modeling head",
    ),
    "something else": (lambda: torch.nn.Linear(2, 2), "a Linear is not a model of transformers"),
    "a wrapper": (lambda: torch.nn.DataParallel(build()), "a DataParallel is not a model of"),
    "a replaced forward pass": (lambda: with_replaced_forward(build()), "has been replaced"),
    "a hook": (lambda: with_hook(build()), "a hook watches its Linear"),
    "float64": (lambda: build().double(), "the weight of its head is 2-dimensional torch.float64"),
    "no memory": (lambda: build().to("meta"), "sharded or offloaded"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_is_not_for_is_refused_with_the_reason(case: str) -> None:
    make, reason = REFUSED[case]
    answer = find_head(make())
    assert isinstance(answer, str)
    assert reason in answer
    assert answer[-1] != "."


def test_experts_without_a_loss_of_their_own_are_accepted() -> None:
    model = made("qwen2_moe", **MOE).eval()
    assert check_head(model, batch_of(), found_head(model)) < 1e-5


def test_a_model_that_accelerate_has_placed_is_accepted() -> None:
    """Its hooks replace `forward` to move tensors between devices, and change nothing else."""
    model = add_hook_to_module(build(), ModelHook())
    assert "forward" in vars(model)
    assert check_head(model, batch_of(), found_head(model)) < 1e-5
