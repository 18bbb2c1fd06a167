"""A merge of plain LoRA on its own: without peft, and with the bytes that peft would have written.

Adding two adapters takes a second, and the import of peft and transformers took five.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file, save_file

PREFIX = "base_model.model."
MODULES = {"model.layers.0.q_proj": 4, "model.layers.0.up_proj": 4, "model.layers.1.q_proj": 2}
"""By module: the rank in both adapters."""
DRIVER = """
import json, sys
from peftkit.cli.main import main
code = main(sys.argv[1:])
heavy = ("peft", "transformers", "bitsandbytes", "accelerate", "torch._dynamo", "torch._inductor")
print(json.dumps([code, [name for name in heavy if name in sys.modules]]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two adapters as peft writes them, and what a process of its own made of them.

    The file `said` in it is the exit code and the heavy modules that the process had imported.
    """
    folder = tmp_path_factory.mktemp("alone")
    odd = {"model.layers.1.q_proj": 2}
    draw = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        config = LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path="some/base",
            r=4,
            lora_alpha=4,
            rank_pattern=odd,
            alpha_pattern=odd,
            target_modules=list(MODULES),
        )
        config.save_pretrained(str(folder / name))
        tensors = {}
        for module, rank in MODULES.items():
            down, up = ((rank, 8), (8, rank))
            tensors[f"{PREFIX}{module}.lora_A.weight"] = torch.randn(down, generator=draw)
            tensors[f"{PREFIX}{module}.lora_B.weight"] = torch.randn(up, generator=draw)
        save_file(tensors, folder / name / "adapter_model.safetensors", {"format": "pt"})
    words = ["merge", "a + 0.7*b", "--out", "out", "--adapter", "a=a", "--adapter", "b=b"]
    command = [sys.executable, "-c", DRIVER, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    (folder / "said").write_text(done.stdout.splitlines()[-1])
    return folder


def test_it_imports_neither_peft_nor_transformers(place: Path) -> None:
    assert json.loads((place / "said").read_text()) == [0, []]


def test_its_configuration_is_the_one_that_peft_writes_byte_for_byte(
    place: Path, tmp_path: Path
) -> None:
    ranks = {module: 2 * rank for module, rank in MODULES.items()}
    odd = {"model.layers.1.q_proj": ranks["model.layers.1.q_proj"]}
    wanted = LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_alpha=8,
        rank_pattern=odd,
        alpha_pattern=dict(odd),
        target_modules=list(ranks),
        fan_in_fan_out=False,
        lora_bias=False,
    )
    wanted.base_model_name_or_path = "some/base"
    wanted.inference_mode = True
    wanted.target_modules = sorted(wanted.target_modules)
    wanted.save_pretrained(str(tmp_path))
    name = "adapter_config.json"
    assert (place / "out" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert (
        PeftConfig.from_pretrained(str(place / "out")).to_dict().keys() == wanted.to_dict().keys()
    )


def test_its_weights_are_the_sum(place: Path) -> None:
    one, other, out = (
        load_file(place / name / "adapter_model.safetensors") for name in ("a", "b", "out")
    )
    for module in MODULES:
        up, down = (f"{PREFIX}{module}.lora_{end}.weight" for end in "BA")
        wanted = (
            one[up].double() @ one[down].double() + 0.7 * other[up].double() @ other[down].double()
        )
        torch.testing.assert_close(out[up].double() @ out[down].double(), wanted, atol=1e-5, rtol=0)
