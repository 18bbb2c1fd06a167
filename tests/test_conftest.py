"""The ground the other tests stand on."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def test_other_machines_are_refused() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"reached for `192\.0\.2\.1`"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(pytest.fail.Exception, match=r"reached for `example\.invalid`"):
        socket.getaddrinfo("example.invalid", 80)


def test_this_machine_is_not() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=60) as client,
        server.accept()[0] as accepted,
    ):
        assert accepted.getpeername() == client.getsockname()


def test_torch_has_one_thread_and_the_hub_is_off() -> None:
    assert torch.get_num_threads() == 1
    script = (
        "import torch, huggingface_hub.constants as hub;"
        "print(torch.get_num_threads(), hub.HF_HUB_OFFLINE, hub.HF_HOME)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True", os.environ["HF_HOME"]]


def test_tiny_llama_loads_and_answers(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    rows = tokenizer(["a b", "müde 🙂"], return_tensors="pt", padding=True)
    assert model(**rows).logits.shape == (2, 11, len(tokenizer))  # a token a byte, and `<|bos|>`
    assert tokenizer.batch_decode(rows["input_ids"], skip_special_tokens=True) == ["a b", "müde 🙂"]
    assert model.config.num_hidden_layers == 2
    assert model.config.hidden_size == 32


def test_tiny_llama_has_a_chat_template_with_a_stop_token(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|bos|><|user|>hi<|end|><|assistant|>yo<|end|>"
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 9
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
