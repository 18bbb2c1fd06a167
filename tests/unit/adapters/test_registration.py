"""Our method in peft: there in whichever order both are imported, and peft imported by nobody."""

import json
import subprocess
import sys

import pytest

KNOWN = "'BOTTLENECK' in sys.modules['peft'].PEFT_TYPE_TO_CONFIG_MAPPING"


def answers(code: str, *questions: str) -> list[bool]:
    """What an interpreter of its own says after it ran the code."""
    program = f"import json, sys\n{code}\nprint(json.dumps([{', '.join(questions)}]))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    found: list[bool] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import peftkit.adapters, peft",
        "import peft, peftkit.adapters",
        "import peftkit.adapters.verify\nfrom peft.tuners import lora",
        "import peftkit.adapters.bottleneck",
    ],
)
def test_peft_knows_the_method_in_whichever_order_they_are_imported(imports: str) -> None:
    assert answers(imports, KNOWN) == [True]


@pytest.mark.slow
def test_a_look_for_peft_or_an_import_that_failed_is_not_the_end_of_it() -> None:
    # peft cannot be imported at first, as it lacks a part that is there again the second time
    code = f"""
from importlib.util import find_spec
import peftkit.adapters
looked = find_spec("peft") is not None and "peft" not in sys.modules
sys.modules["peft.auto"] = None
failed = False
try:
    import peft
except ImportError:
    failed = True
for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
    del sys.modules[name]
import peft
known = {KNOWN}
"""
    assert answers(code, "looked", "failed", "known") == [True, True, True]


@pytest.mark.slow
def test_peft_keeps_the_loader_that_tells_its_sources() -> None:
    code = "import inspect, peftkit.adapters, peft"
    loader = "type(peft.__spec__.loader).__name__ == 'SourceFileLoader'"
    assert answers(code, loader, "'PeftModel' in inspect.getsource(peft)") == [True, True]


@pytest.mark.parametrize("module", ["verify", "folders", "task_file", "lora_config"])
def test_what_only_looks_at_files_imports_no_peft(module: str) -> None:
    heavy = [f"'{name}' in sys.modules" for name in ("peft", "transformers", "bitsandbytes")]
    assert answers(f"import peftkit.adapters.{module}", *heavy) == [False, False, False]
