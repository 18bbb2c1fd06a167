"""An adapter from anyone: what peft writes passes, and nothing that peft should not load does."""

import copy
import json
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from peftkit.adapters.config_fields import COMMON, FIELDS
from peftkit.adapters.expected import OWN_TYPES
from peftkit.adapters.verify import check_adapter_name, module_shapes, verify_adapter
from peftkit.disk.weights_header import DamagedFileError, parse_json, read_header
from peftkit.errors import InputError, RecipeError

CAUSAL = "CAUSAL_LM"
Shapes = dict[str, tuple[int, ...]]


def save(model: Any, config: peft.PeftConfig, folder: Path) -> Path:
    peft.get_peft_model(model, config).save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def base(tiny_llama: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def shapes(base: Any) -> Shapes:
    return module_shapes(base)


@pytest.fixture(scope="module")
def honest(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type=CAUSAL)
    return save(copy.deepcopy(base), config, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def adapter(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "adapter"))


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def reasons(folder: Path, shapes: Shapes | None = None, **rest: Any) -> list[str]:
    with pytest.raises(InputError) as refusal:
        verify_adapter(folder, shapes, **rest)
    assert refusal.value.exit_code == 65
    assert refusal.value.hint
    return list(refusal.value.problems)


CONFIGS = {
    "lora": peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type=CAUSAL),
    "all-linear": peft.LoraConfig(
        r=4, target_modules="all-linear", use_rslora=True, rank_pattern={"k_proj": 2}
    ),
    "dora": peft.LoraConfig(r=4, target_modules=["v_proj"], use_dora=True, lora_alpha=0.5),
    "upper-half": peft.LoraConfig(r=4, target_modules=["o_proj"], layers_to_transform=[1]),
    "head": peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "embedding": peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]),
    "tokens": peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 5]),
    "ia3": peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=3),
    "p-tuning": peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8),
    "vera": peft.VeraConfig(r=4, target_modules=["q_proj", "k_proj"]),
    "oft": peft.OFTConfig(oft_block_size=8, target_modules=["q_proj", "up_proj"]),
    "layernorm": peft.LNTuningConfig(target_modules=["input_layernorm"]),
}


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
@pytest.mark.parametrize("name", CONFIGS)
def test_what_peft_writes_passes(name: str, base: Any, shapes: Shapes, tmp_path: Path) -> None:
    config = copy.deepcopy(CONFIGS[name])
    config.task_type = CAUSAL
    save(copy.deepcopy(base), config, tmp_path)
    facts = verify_adapter(tmp_path, shapes)
    assert verify_adapter(tmp_path) == facts
    assert facts.peft_type == config.peft_type
    assert facts.tensors == len(load_file(tmp_path / "adapter_model.safetensors"))


def test_what_peft_writes_for_transposed_layers_passes(tmp_path: Path) -> None:
    plain = GPT2Config(
        vocab_size=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    base = GPT2LMHeadModel(plain)
    shapes = module_shapes(base)
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type=CAUSAL)
    save(base, config, tmp_path)
    assert verify_adapter(tmp_path, shapes).tensors == 4
    change_config(
        tmp_path, fan_in_fan_out=False
    )  # which peft puts right, as the layer knows better
    assert verify_adapter(tmp_path, shapes).tensors == 4
    plainly = {name: tuple(shape) for name, shape in shapes.items()}
    assert any("expected (4, 48), found (4, 16)" in reason for reason in reasons(tmp_path, plainly))


def test_the_facts_of_an_adapter(honest: Path) -> None:
    facts = verify_adapter(honest)
    assert (facts.peft_type, facts.rank, facts.tensors) == ("LORA", 4, 8)
    assert facts.targets == ("q_proj", "up_proj")
    assert facts.bytes == (honest / "adapter_model.safetensors").stat().st_size
    assert len(facts.sha256) == 64


def test_parameters_by_name_serve_as_shapes(honest: Path, base: Any) -> None:
    parameters = {name: tuple(value.shape) for name, value in base.named_parameters()}
    assert verify_adapter(honest, parameters) == verify_adapter(honest)


def test_shapes_are_the_base_whatever_is_wrapped_around_it(base: Any, shapes: Shapes) -> None:
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type=CAUSAL
    )
    assert module_shapes(peft.get_peft_model(copy.deepcopy(base), config)) == shapes


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.layers.0.self_attn.k_proj.weight", "model.norm.weight"]
)
@pytest.mark.parametrize("with_base", [True, False])
def test_tensors_named_like_base_weights_are_refused(
    adapter: Path, shapes: Shapes, name: str, *, with_base: bool
) -> None:
    change_tensors(adapter, lambda t: t.update({f"base_model.model.{name}": torch.zeros(32, 32)}))
    found = reasons(adapter, shapes if with_base else None)
    assert found == [
        f"tensor `base_model.model.{name}`: is named like a base weight and would overwrite it"
    ]


def test_peft_itself_would_have_overwritten_the_base(adapter: Path, base: Any) -> None:
    """The reason for all of this; when it fails, peft has learned to refuse."""
    name = "model.layers.0.self_attn.k_proj.weight"
    change_tensors(adapter, lambda t: t.update({f"base_model.model.{name}": torch.zeros(16, 32)}))
    tuned = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(adapter))
    assert float(tuned.get_base_model().state_dict()[name].abs().max()) == 0


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
        "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight",
        "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "surprise",
    ],
)
def test_tensors_too_many_are_refused(adapter: Path, shapes: Shapes, name: str) -> None:
    change_tensors(adapter, lambda t: t.update({name: torch.zeros(4, 32)}))
    assert [reason for reason in reasons(adapter, shapes) if f"`{name}`" in reason]


@pytest.mark.parametrize("with_base", [True, False])
def test_missing_tensors_are_refused(adapter: Path, shapes: Shapes, *, with_base: bool) -> None:
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    change_tensors(adapter, lambda tensors: tensors.__delitem__(name))
    assert reasons(adapter, shapes if with_base else None) == [f"tensor `{name}`: missing"]


def test_a_layer_that_lost_its_adapter_is_noticed_on_the_base(
    adapter: Path, shapes: Shapes
) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "layers.1" in name]:
            del tensors[name]

    change_tensors(adapter, drop)
    assert verify_adapter(adapter).tensors == 4  # in itself it looks whole
    assert len(reasons(adapter, shapes)) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_numbers_that_are_none_are_refused(adapter: Path, value: float, kind: torch.dtype) -> None:
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"

    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].to(kind)
        tensors[name][3, 7] = value

    change_tensors(adapter, poison)
    assert reasons(adapter) == [f"tensor `{name}`: holds numbers that are not finite"]


@pytest.mark.parametrize(
    ("kind", "value"), [(torch.float64, 1e300), (torch.float8_e4m3fn, 400.0), (torch.float16, 6e4)]
)
def test_large_numbers_of_any_format_are_numbers(
    adapter: Path, kind: torch.dtype, value: float
) -> None:
    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: torch.full_like(t, value, dtype=kind) for name, t in tensors.items()})

    change_tensors(adapter, enlarge)
    assert verify_adapter(adapter).tensors == 8


def test_whole_numbers_are_refused(adapter: Path) -> None:
    def round_down(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: value.long() for name, value in tensors.items()})

    change_tensors(adapter, round_down)
    assert "expected floating point numbers" in reasons(adapter)[0]


def test_another_size_of_base_is_refused(adapter: Path, shapes: Shapes) -> None:
    larger = {name: tuple(2 * size for size in shape) for name, shape in shapes.items()}
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert f"tensor `{name}`: expected (4, 64), found (4, 32)" in reasons(adapter, larger)


def test_a_base_without_these_layers_is_refused(adapter: Path) -> None:
    assert "nothing in the base has one of these names" in reasons(adapter, {"h.0.c": (4, 4)})[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_alpha", 1e30),
        ("lora_alpha", "16"),
        ("r", 2_000_000),
        ("r", 0),
        ("r", True),
        ("r", 4.0),
        ("lora_dropout", 1.5),
        ("target_modules", "([a-z_.0-9]+)+!"),
        ("target_modules", ".*proj"),
        ("target_modules", ["q_proj", "(a+)+"]),
        ("target_modules", []),
        ("target_modules", None),
        ("exclude_modules", "(a+)+b"),
        ("layers_pattern", ["(a+)+b"]),
        ("modules_to_save", ["(a+)+b"]),
        ("rank_pattern", {"(a+)+b": 4}),
        ("rank_pattern", {"q_proj": 0}),
        ("alpha_pattern", {"q_proj": float("nan")}),
        ("layers_to_transform", [-1]),
        ("auto_mapping", {"base_model_class": "x", "parent_library": "evil"}),
        ("auto_mapping", {"parent_library": "transformers_evil.models.x"}),
        ("auto_mapping", {"parent_library": "transformers.models..os"}),
        ("auto_mapping", {"parent_library": "transformers.models.gpt2", "more": "x"}),
        ("megatron_core", "evil.core"),
        ("megatron_config", {"a": 1}),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", 1),
        ("loftq_config", {"loftq_bits": 4}),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["experts.gate"]),
        ("bias", "all"),
        ("task_type", "EVIL"),
        ("base_model_name_or_path", ["a"]),
        ("base_model_name_or_path", "a" * 2000),
        ("trust_remote_code", True),
        ("eva_config", {"deep": {"trust_remote_code": True}}),
        ("brand_new_option", False),
        ("runtime_config", {}),
        ("peft_type", "LOTRA"),
        ("peft_type", None),
        ("peft_type", ["LORA"]),
    ],
)
def test_configurations_that_say_too_much_are_refused(
    adapter: Path, shapes: Shapes, key: str, value: Any
) -> None:
    change_config(adapter, **{key: value})
    assert key in reasons(adapter, shapes)[0]


def test_trusting_code_is_refused_at_any_depth(honest: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(honest, tmp_path / "adapter"))
    values = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": 3,
        "token_dim": 32,
        "tokenizer_kwargs": {"trust_remote_code": True},
    }
    (adapter / "adapter_config.json").write_text(json.dumps(values))
    found = reasons(adapter)
    assert any("tokenizer_kwargs: expected null" in reason for reason in found)
    assert any("tokenizer_kwargs.trust_remote_code" in reason for reason in found)


def test_a_rank_that_the_tensors_do_not_have_is_refused(adapter: Path) -> None:
    change_config(adapter, r=1000)
    assert "expected (1000, ?), found (4, 32)" in reasons(adapter)[0]


def test_a_rank_above_the_matrix_is_refused(adapter: Path) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name, value in tensors.items():
            rest = value.shape[1] if "lora_A" in name else value.shape[0]
            tensors[name] = torch.zeros((65, rest) if "lora_A" in name else (rest, 65))

    change_tensors(adapter, widen)
    change_config(adapter, r=65)
    assert "rank 65 for a matrix of 64 x 32" in reasons(adapter)[0]


def test_another_base_is_refused_where_both_are_named(adapter: Path) -> None:
    change_config(adapter, base_model_name_or_path="attacker/other-model")
    assert "made for `attacker/other-model`" in reasons(adapter, base="org/model")[0]
    for own in ("attacker/other-model", "mirror/Other-Model", "other-model"):
        assert verify_adapter(adapter, base=own).base == "attacker/other-model"
    assert verify_adapter(adapter, base=str(adapter)).tensors == 8  # a folder has no public name


def test_all_problems_come_at_once(adapter: Path) -> None:
    change_config(adapter, lora_alpha=float("nan"), brand_new_option=1, r=-1)
    (adapter / "adapter_model.safetensors").write_bytes(b"short")
    assert len(reasons(adapter)) == 4


def test_many_problems_of_a_kind_are_counted(adapter: Path) -> None:
    extra = {f"surprise.{number}": torch.zeros(2) for number in range(12)}
    change_tensors(adapter, lambda tensors: tensors.update(extra))
    assert reasons(adapter)[5:] == ["and 7 more of this kind"]


@pytest.mark.parametrize("ending", ["bin", "pt", "pth", "ckpt"])
def test_pickles_are_refused_unread(adapter: Path, ending: str) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / f"adapter_model.{ending}").write_bytes(b"\x80\x04cposix\nsystem\n.")
    with pytest.raises(InputError, match="pickled") as refusal:
        verify_adapter(adapter)
    assert "save_pretrained" in str(refusal.value.hint)


def test_folders_that_lack_something_are_refused(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no adapter at"):
        verify_adapter(tmp_path / "nowhere")
    (adapter / "adapter_model.safetensors").unlink()
    assert reasons(adapter) == ["adapter_model.safetensors: missing"]
    (adapter / "adapter_config.json").unlink()
    assert len(reasons(adapter)) == 2


def test_links_out_of_the_folder_are_refused(adapter: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.safetensors"
    (adapter / "adapter_model.safetensors").rename(secret)
    (adapter / "adapter_model.safetensors").symlink_to(secret)
    assert "a link that leaves the folder" in reasons(adapter)[0]


def test_links_inside_the_hub_cache_are_fine(adapter: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b/snapshots/abc", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in adapter.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert verify_adapter(snapshot).tensors == 8


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"peft_type": "LORA", "peft_type": "LORA"}',
        b'{"a":' * 50_000,
        b'{"r": ' + b"9" * 5000 + b"}",
        b" " * 1_100_000,
        b"{}",
        b"null",
    ],
    ids=lambda text: str(text[:12]),
)
def test_odd_configurations_are_refused(adapter: Path, text: bytes) -> None:
    (adapter / "adapter_config.json").write_bytes(text)
    assert "adapter_config.json" in reasons(adapter)[0]


def header(fields: Any, body: bytes = b"") -> bytes:
    raw = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(raw)) + raw + body


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 200_000_000),
        struct.pack("<Q", 2**63),
        header(b"{"),
        header(b"[]"),
        header(b'{"a":' * 50_000),
        header(b'{"a": 1, "a": 2}'),
        header({"a": 5}),
        header({"a": ONE | {"dtype": "F1"}}, b"1234"),
        header({"a": ONE | {"dtype": ["F32"]}}, b"1234"),
        header({"a": ONE | {"shape": [-1]}}, b"1234"),
        header({"a": ONE | {"shape": "1"}}, b"1234"),
        header({"a": ONE | {"shape": [1.0]}}, b"1234"),
        header({"a": ONE | {"shape": [True]}}, b"1234"),
        header({"a": ONE | {"shape": [1] * 9}}, b"1234"),
        header({"a": ONE | {"shape": [2]}}, b"1234"),
        header({"a": ONE | {"data_offsets": [4, 0]}}, b"1234"),
        header({"a": ONE | {"data_offsets": [0, 4, 8]}}, b"1234"),
        header({"a": ONE | {"data_offsets": [4, 8]}}, b"12345678"),
        header({"a": ONE}, b"12345"),
        header({"a": ONE}, b"123"),
        header({"a": ONE, "b": ONE}, b"1234"),
    ],
    ids=range(23),
)
def test_headers_that_lie_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError):
        read_header(path)


@given(cut=st.integers(min_value=0, max_value=1_000_000))
@settings(max_examples=50)
def test_no_shortened_file_passes(honest: Path, tmp_path_factory: Any, cut: int) -> None:
    whole = (honest / "adapter_model.safetensors").read_bytes()
    path = tmp_path_factory.mktemp("cut") / "adapter_model.safetensors"
    path.write_bytes(whole[: cut % len(whole)])
    with pytest.raises(DamagedFileError):
        read_header(path)


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    with suppress(DamagedFileError):
        assert isinstance(parse_json(raw, "it"), dict)


@given(
    kind=st.sampled_from(sorted(FIELDS)),
    values=st.dictionaries(
        st.sampled_from(sorted({key for fields in FIELDS.values() for key in fields} | {*COMMON})),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
            max_leaves=5,
        ),
        max_size=6,
    ),
)
@settings(max_examples=200)
def test_no_configuration_breaks_the_check(
    honest: Path, tmp_path_factory: Any, kind: str, values: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    (folder / "adapter_config.json").write_text(json.dumps(values | {"peft_type": kind}))
    shutil.copy(honest / "adapter_model.safetensors", folder)
    shutil.copy(honest / "adapter_model.safetensors", folder / "delta.safetensors")
    with suppress(InputError):  # the types of our own take any tensors while there is no base
        assert verify_adapter(folder).peft_type in OWN_TYPES


def test_the_allow_list_knows_the_fields_of_peft() -> None:
    """A field that a new peft adds must be looked at before it is let in."""
    kinds = {
        "LORA": peft.LoraConfig,
        "IA3": peft.IA3Config,
        "PREFIX_TUNING": peft.PrefixTuningConfig,
        "PROMPT_TUNING": peft.PromptTuningConfig,
        "P_TUNING": peft.PromptEncoderConfig,
        "VERA": peft.VeraConfig,
        "OFT": peft.OFTConfig,
        "LN_TUNING": peft.LNTuningConfig,
    }
    runtime_only = {"runtime_config"}
    for kind, config in kinds.items():
        assert set(config.__dataclass_fields__) - runtime_only == {*COMMON, *FIELDS[kind]}, kind


def test_a_full_delta_holds_the_bases_own_parameters(
    base: Any, shapes: Shapes, tmp_path: Path
) -> None:
    tensors = {name: value.detach().clone() for name, value in base.named_parameters()}
    save_file(tensors, tmp_path / "delta.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "FULL"}))
    assert verify_adapter(tmp_path, shapes).tensors == len(tensors)
    tensors["model.norm.weight"] = torch.zeros(5)
    tensors["model.layers.7.norm.weight"] = torch.zeros(5)
    save_file(tensors, tmp_path / "delta.safetensors")
    assert len(reasons(tmp_path, shapes)) == 2


def test_the_real_adapter_passes(material: Path) -> None:
    facts = verify_adapter(material / "lora-gpt2-tigrinya")
    assert (facts.rank, facts.targets, facts.base) == (8, ("c_attn", "c_proj"), "gpt2")


@pytest.mark.parametrize("name", ["chat", "a", "code-2", "x" * 64])
def test_names_of_adapters(name: str) -> None:
    assert check_adapter_name(name) == name


@pytest.mark.parametrize("name", ["", "/abs/path", "..", ".", "a/b", "Chat", "x" * 65, "a\n", "-a"])
def test_names_that_could_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(RecipeError):
        check_adapter_name(name)
