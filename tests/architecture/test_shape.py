"""The package's shape, checked: arrows point one way, modules stay small, nothing unsafe slips in.

Each rule takes the modules of a tree and says what breaks it. It is held against the package, and
against a planted fault that it must find.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FLOOR = 60  # a glob that finds fewer modules than this looks in the wrong place

LAYERS = [  # a module may import from its own folder and from the lines above it
    {"errors"},
    {"disk"},
    {"recipe"},
    {"base", "data", "report"},
    {"adapters", "fast"},
    {"align", "evaluate", "merge"},
    {"train"},
    {"baselines"},
    {"diagnose", "monitor", "publish", "sweep"},
    {"pipeline"},
    {"cli"},
    {"peftkit"},  # the package's own `__init__` and `__main__`
]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
LIGHT = {"recipe", "cli"}
HEAVY = {
    *(
        "accelerate",
        "bitsandbytes",
        "datasets",
        "huggingface_hub",
        "numpy",
        "pandas",
        "peft",
        "pyarrow",
    ),
    *("safetensors", "scipy", "sklearn", "tokenizers", "torch", "transformers"),
}
VAGUE = re.compile(r"(^|_)(utils?|common|helpers?|misc|managers?|handlers?)(_|$)")
PRINTERS = re.compile(r"(^|\.)(print|pprint|echo|secho|Console)$|^sys\.(stdout|stderr)\.write")
UNSAFE_CALLS = {
    *("torch.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "eval", "exec", "os.system"),
}
UNSAFE_IMPORTS = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"}
UNSAFE_ARGUMENTS = {"trust_remote_code", "shell", "allow_pickle"}


@dataclass(frozen=True)
class Module:
    """One file of the package, read once."""

    path: str  # below the package's folder
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        return ".".join(["peftkit", *Path(self.path).with_suffix("").parts]).removesuffix(
            ".__init__"
        )

    @property
    def folder(self) -> str:
        """The room of the house it is in: `peftkit/errors.py` is one of its own."""
        if self.path in ("__init__.py", "__main__.py"):
            return "peftkit"
        return Path(self.path).with_suffix("").parts[0]


def modules_of(package: Path) -> list[Module]:
    files = [(path, path.read_text()) for path in sorted(package.rglob("*.py"))]
    return [Module(str(path.relative_to(package)), text, ast.parse(text)) for path, text in files]


def running(node: ast.AST, *, functions: bool) -> Iterator[ast.AST]:
    """The nodes that can run, so none that only types need; without functions: at import."""
    for child in ast.iter_child_nodes(node):
        types_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not types_only and (functions or not later):
            yield child
            yield from running(child, functions=functions)


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Dotted names of what is imported: of `from a import b` it is `a.b`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(module: Module) -> Iterator[tuple[int, str, ast.Call]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


def mentioned(module: Module, names: Container[str]) -> set[str]:
    """The package's modules that this one imports at any depth, or names in a text.

    Texts count because tables of what to import when it is asked for are made of them.
    """
    found = set()
    for name in set(imported(ast.walk(module.tree))) - {"peftkit.__version__"}:
        parts = name.split(".")  # `peftkit.data.rows.read` is in `peftkit.data.rows`
        prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        found.add(next((prefix for prefix in prefixes if prefix in names), ""))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            found.add(node.value.partition(":")[0])
    return {name for name in found if name in names and name != module.name}


def upward_imports(modules: list[Module]) -> Iterator[str]:
    names = {module.name: module for module in modules}
    for module in modules:
        if module.folder not in HEIGHT:
            yield f"{module.path}: `{module.folder}` has no place among the layers"
            continue
        for target in sorted(mentioned(module, names)):
            other = names[target].folder
            if other != module.folder and HEIGHT.get(other, 99) >= HEIGHT[module.folder]:
                yield f"{module.path} must not import {target}"


def large_modules(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        lines = len(module.text.splitlines())
        if lines > 400:
            yield f"{module.path} has {lines} lines; 400 is the limit"


def modules_without_a_purpose(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        if module.path.endswith("__init__.py") and not module.text.strip():
            continue
        first, _, rest = (ast.get_docstring(module.tree) or "").partition("\n")
        if not (first.endswith(".") and len(first) < 100 and not rest.partition("\n")[0].strip()):
            yield f"{module.path} does not open with one sentence of under 100 characters"


def printing_modules(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        for line, function, _ in calls(module):
            if module.path != "cli/output.py" and PRINTERS.search(function):
                yield f"{module.path}:{line} calls {function}; only cli/output.py prints"


def vague_names(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        for part in Path(module.path).with_suffix("").parts:
            if VAGUE.search(part):
                yield f"{module.path}: `{part}` says nothing"


def unsafe_calls(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        for name in imported(ast.walk(module.tree)):
            if name.split(".")[0] in UNSAFE_IMPORTS or name in UNSAFE_CALLS:
                yield f"{module.path} imports {name}"
        for line, function, call in calls(module):
            if function in UNSAFE_CALLS:
                yield f"{module.path}:{line} calls {function}"
            for keyword in call.keywords:
                safe = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in UNSAFE_ARGUMENTS and not safe:
                    yield f"{module.path}:{line} passes {keyword.arg}"


def blind_excepts(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                if re.search(r"\bException\b|^everything$", caught):
                    yield f"{module.path}:{node.lineno} catches {caught}"


def heavy_starts(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        for name in imported(running(module.tree, functions=False)):
            if module.folder in LIGHT and name.split(".")[0] in HEAVY:
                yield f"{module.path} imports {name} before it is needed"


def orphans(modules: list[Module]) -> Iterator[str]:
    """Modules that nothing mentions, and folders that are no package."""
    names = {module.name: module for module in modules}
    reached = set().union(*(mentioned(module, names) for module in modules))
    for module in modules:
        folder = Path(module.path).parent
        if not any(other.path == str(folder / "__init__.py") for other in modules):
            yield f"{module.path} is in a folder without an __init__.py"
        entrance = module.folder in ("cli", "peftkit") or module.path.endswith("__init__.py")
        if not entrance and module.name not in reached:
            yield f"{module.path} is imported by nothing"


Rule = Callable[[list[Module]], Iterator[str]]
PLANTED: dict[Rule, tuple[str, str]] = {
    upward_imports: ("data/rows.py", '"""Rows."""\ndef f():\n    import peftkit.cli.main\n'),
    large_modules: ("data/rows.py", "\n" * 401),
    modules_without_a_purpose: ("data/rows.py", '"""Rows.\nAnd more."""\n'),
    printing_modules: ("data/rows.py", "print(1)\n"),
    vague_names: ("data/row_utils.py", ""),
    unsafe_calls: ("data/rows.py", "load(path, trust_remote_code=choice)\n"),
    blind_excepts: ("data/rows.py", "try:\n    f()\nexcept (OSError, Exception):\n    pass\n"),
    heavy_starts: ("recipe/load.py", "try:\n    import torch\nexcept ImportError:\n    pass\n"),
    orphans: ("data/rows.py", ""),
}


@pytest.fixture(scope="module")
def package() -> list[Module]:
    modules = modules_of(REPOSITORY / "peftkit")
    assert len(modules) >= FLOOR
    return modules


@pytest.mark.parametrize("rule", PLANTED, ids=lambda rule: rule.__name__)
def test_the_package_keeps(rule: Rule, package: list[Module]) -> None:
    assert "\n".join(rule(package)) == ""  # a text, because pytest cuts lists


@pytest.mark.parametrize("rule", PLANTED, ids=lambda rule: rule.__name__)
def test_a_planted_fault_is_found(rule: Rule, tmp_path: Path) -> None:
    path, text = PLANTED[rule]
    sound = {"__init__.py": "", "cli/__init__.py": "", "cli/main.py": '"""Commands."""\n'}
    for name, content in {**sound, "data/__init__.py": "", "recipe/__init__.py": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert list(rule(modules_of(tmp_path))) == []
    (tmp_path / path).write_text(text)
    assert len(list(rule(modules_of(tmp_path)))) == 1


@pytest.mark.parametrize(
    "fault",
    [
        "from torch import load\n",
        "import torch\ntorch.load(path)\n",
        "import pickle\n",
        "import yaml\nyaml.load(text, Loader)\n",
        "run('ls', shell=True)\n",
        "numpy.load(path, allow_pickle=True)\n",
    ],
)
def test_each_unsafe_call_is_found(fault: str) -> None:
    assert list(unsafe_calls([Module("data/rows.py", fault, ast.parse(fault))]))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("data/rows.py", "from peftkit.base import load\n"),  # sideways
        ("data/rows.py", "from peftkit.train.loop import train\n"),
        ("data/rows.py", "from peftkit import Delta\n"),
        ("data/rows.py", 'import_module("peftkit.train.loop")\n'),
        ("attic/rows.py", ""),  # a folder that nobody placed
    ],
)
def test_each_way_up_is_found(path: str, text: str) -> None:
    tree = {"__init__.py": "", "base/__init__.py": "", "train/loop.py": "", path: text}
    modules = [Module(name, content, ast.parse(content)) for name, content in tree.items()]
    assert len(list(upward_imports(modules))) == 1


def test_the_ways_down_are_open() -> None:
    text = "from peftkit.errors import InputError\nfrom peftkit.data.example import Example\n"
    modules = [
        Module(n, t, ast.parse(t))
        for n, t in {"data/rows.py": text, "data/example.py": "", "errors.py": ""}.items()
    ]
    assert list(upward_imports(modules)) == []


def test_the_light_layers_load_nothing_heavy(package: list[Module]) -> None:
    light = [module.name for module in package if module.folder in LIGHT]
    assert len(light) >= 20
    script = f"import sys, {', '.join(light)}; print(*sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert set(light) <= loaded
    assert not loaded & HEAVY


def test_what_is_imported_is_declared(package: list[Module]) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = {requirement_name(line) for line in project["dependencies"]}
    extras = {
        name: lines for name, lines in project["optional-dependencies"].items() if name != "test"
    }
    optional = {requirement_name(line) for lines in extras.values() for line in lines}
    homes = packages_distributions()
    seen = 0
    undeclared = []
    for module in package:
        start = {name.split(".")[0] for name in imported(running(module.tree, functions=False))}
        anywhere = {name.split(".")[0] for name in imported(running(module.tree, functions=True))}
        for name in sorted(anywhere - sys.stdlib_module_names - {"peftkit"}):
            seen += 1
            packages = {requirement_name(home) for home in homes.get(name, [name])}
            if not packages & (needed if name in start else needed | optional):
                undeclared.append(f"{module.path} imports {name}")
    assert "\n".join(undeclared) == ""
    assert seen >= 20


def requirement_name(line: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower().replace("_", "-")


def test_constraints_pin_each_requirement() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    wanted = {requirement_name(line) for line in lines} - {"peftkit"}
    text = (REPOSITORY / "constraints.txt").read_text()
    pins = {
        requirement_name(line)
        for line in text.splitlines()
        if re.fullmatch(r"[\w.-]+==[\w.]+", line)
    }
    assert len(wanted) >= 20
    assert wanted <= pins
    assert "+" not in text  # a local version exists on one machine only
    assert "file:" not in text
