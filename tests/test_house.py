"""Rules of the repository: public names, imports, complete operations, clean files, correct documents."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import math
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

import nvf_fast
from benchmarks import readme
from benchmarks.readme import filled
from nvf_fast.cli.main import COMMANDS, main
from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "nvf_fast"
PUBLIC_NAMES = [
    "Camera",
    "HandPose",
    "NVF",
    "NVFConfig",
    "PoseEstimator",
    "Tracker",
    "__version__",
    "load",
    "load_checkpoint",
    "metrics",
    "ops",
    "save_checkpoint",
]
NOT_FOR_INFERENCE = tuple(
    f"nvf_fast.{name}" for name in ("data", "evaluation", "reproduce", "synthetic", "training")
)
OPTIONAL = (
    "numba", "skimage", "matplotlib", "viser", "tensorboard", "huggingface_hub", "onnx", "onnxscript", "av",
    "triton",
)  # fmt: skip
# Tables of docs/speed.md, most of which need a GPU; README.md says so.
NOT_MEASURED = (
    "speed_gpu",
    "stages_gpu",
    "operations_gpu",
    "batches_cpu",
    "compiled_baseline_gpu",
    "training_step_gpu",
)
DOCUMENTS = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG"))]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))


def text_files() -> list[Path]:
    """Return text files that git tracks or would track."""
    if not (ROOT / ".git").exists():
        pytest.skip("listing files needs a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    paths = (ROOT / name for name in listed if name)
    return [p for p in paths if p.is_file() and not p.is_symlink() and b"\0" not in p.read_bytes()[:8192]]


def imports_of(path: Path) -> set[str]:
    """Return full names of a file's imports, except those for type checkers."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join(filter(None, (*above, node.module)))
            found |= {f"{module}.{alias.name}" for alias in node.names}
        pending.extend(ast.iter_child_nodes(node))
    return found


def functions_of(path: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def operations() -> list[str]:
    return sorted(path.stem for path in (PACKAGE / "ops").glob("*.py") if path.stem in functions_of(path))


def exists(name: str) -> bool:
    """Whether a dotted name of the package is a module or an attribute of one."""
    found: object = nvf_fast
    path = "nvf_fast"
    for part in name.split(".")[1:]:
        path += f".{part}"
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(path)
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def test_public_names() -> None:
    assert sorted(nvf_fast.__all__) == PUBLIC_NAMES == dir(nvf_fast)
    for name in PUBLIC_NAMES:
        assert getattr(nvf_fast, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'loader'"):
        _ = nvf_fast.loader


def test_missing_packages_are_reported_with_their_extra() -> None:
    """Optional packages are imported in `with extra(...)`; functions may then import them again."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    del listed["dev"]
    extras: dict[str, set[str]] = {}
    for name, requirements in listed.items():
        for requirement in requirements:
            package = requirement.split(">=")[0]
            extras.setdefault({"scikit-image": "skimage"}.get(package, package), set()).add(name)
    assert extras["numba"] == {"train"} and extras["skimage"] == {"train", "viz"}
    reported, others = set(), set()
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to((PACKAGE / "kernels").resolve()) or "kernels" in path.parts:
            continue  # imported by the operations after their check
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.With) or not ast.unparse(node.items[0]).startswith("extra("):
                continue
            name = ast.literal_eval(node.items[0].context_expr.args[0])  # type: ignore[attr-defined]
            for inner in ast.walk(node):
                for package in imported_packages(inner) & extras.keys():
                    assert name in extras[package], f"{path}: {package} is not in the extra {name}"
                    reported.add(package)
        others |= {
            (path.name, name) for node in tree.body for name in imported_packages(node) & extras.keys()
        }
    assert not others, "imported with the module, outside `with extra(...)`"
    # Others import these: `import_module` huggingface_hub, torch tensorboard, and users onnxruntime.
    assert extras.keys() - reported <= {"huggingface_hub", "tensorboard", "onnxruntime"}


def imported_packages(node: ast.AST) -> set[str]:
    """Return the packages that an import statement names."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()


def test_commands_name_the_extra_that_they_lack(tmp_path: Path) -> None:
    out, demo, default = tmp_path / "out", PACKAGE / "assets/demo.jpg", PACKAGE / "weights/default"
    (tmp_path / "film.mp4").write_bytes(b"no film")
    commands = {
        f"train small --out {out} --data.synthetic.count 16": "train",
        f"train default --out {out}": "train",
        f"calibrate {default} --out {out}": "train",
        f"eval synthetic-v2 --out {out} --count 1": "train",
        f"eval hand-views --out {out} --count 1": "train",
        f"reproduce figure4 --smoke --runs {out} --out {out}": "viz",
        f"predict {demo} --mesh {out}": "viz",
        f"view {demo}": "viz",
        f"track {tmp_path / 'film.mp4'} --out {tmp_path / 'hands.jsonl'}": "video",
        f"export --out {tmp_path / 'exported'}": "export",
        "info someone/hands": "hub",
    }
    script = f"""
import sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None  # as if it were not installed
from nvf_fast.cli.main import main
for command in {[*commands]!r}:
    try:
        main(command.split())
    except SystemExit as end:
        print("status", end.code, command, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    for command, extra in commands.items():
        expected = rf"nvf-fast {command.split()[0]}: .* needs? .*: pip install 'nvf-fast\[{extra}\]'\n"
        assert re.search(f"{expected}status 2 {re.escape(command)}\n", done.stderr), (command, done.stderr)


def test_import_is_quick_and_touches_no_device_and_no_training() -> None:
    script = f"""
import json, sys, time
start = time.process_time()
import torch
before = time.process_time()
import nvf_fast
nvf_fast.load, nvf_fast.PoseEstimator
ratio = (time.process_time() - before) / (before - start)
unwanted = [name for name in sys.modules if name.startswith({NOT_FOR_INFERENCE!r})]
print(json.dumps([ratio, torch.cuda.is_initialized(), unwanted]))
"""
    least = math.inf
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(3):  # the first run compiles to bytecode, which the others read
        output = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, env=environment)
        ratio, cuda, unwanted = json.loads(output)
        assert not cuda
        assert unwanted == []
        least = min(least, ratio)  # CPU time beside that of torch: a slow machine slows both
        if least <= 0.15:  # 0.03 to 0.05 measured
            return
    pytest.fail(f"import nvf_fast takes {least:.2f} of the time of import torch")


def test_cpu_inference_works_without_triton() -> None:
    script = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import pkgutil, numpy, torch
import nvf_fast
from nvf_fast import ops
image, K = numpy.zeros((240, 320, 3), numpy.uint8), [[500, 0, 159.5], [0, 500, 119.5], [0, 0, 1]]
hands = nvf_fast.load(device="cpu")(image, K)
try:
    ops.select_voters(torch.zeros(1, 8), 5.0, 4, backend="triton")
except ImportError as error:
    print(len(hands), error)
"""
    assert subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True) == (
        "0 select_voters: this backend needs Triton: pip install 'nvf-fast[triton]'\n"
    )


def test_inference_never_imports_training_data_or_evaluation() -> None:
    inference = [*PACKAGE.glob("*.py"), *(PACKAGE / "ops").glob("*.py"), *(ROOT / "kernels").glob("*/*.py")]
    assert len(inference) > 5
    for path in inference:
        assert not {name for name in imports_of(path) if name.startswith(NOT_FOR_INFERENCE)}, path


@pytest.mark.parametrize("name", operations())
def test_every_operation_is_complete(name: str) -> None:
    kernel, reference = (ROOT / f"kernels/{name}/{form}.py" for form in ("triton", "reference"))
    for path in (kernel, reference, ROOT / f"tests/test_{name}.py", ROOT / f"benchmarks/bench_{name}.py"):
        assert path.is_file(), f"{path.relative_to(ROOT)} is missing"
    ours = [imported for imported in imports_of(reference) if imported.startswith("nvf_fast")]
    assert ours == [], "a reference does not import the package"
    arguments = [[a.arg for a in functions_of(path)[name].args.args] for path in (kernel, reference)]
    assert arguments[0] == arguments[1], "kernel and reference carry the same arguments"


def test_every_kernel_has_an_operation() -> None:
    assert {path.parent.name for path in (ROOT / "kernels").rglob("*.py")} == set(operations())
    assert not any(path.is_symlink() for path in PACKAGE.rglob("*"))


def test_nothing_imports_the_top_level_kernels_folder() -> None:
    for path in text_files():
        if path.suffix == ".py":
            assert not {name for name in imports_of(path) if name.split(".")[0] == "kernels"}, path


def test_files_are_clean() -> None:
    faults = {
        "a path of one machine": re.compile(r"(?<![\w.<>$})-])/(root|home|work|Users|mnt|opt|tmp)/"),
        "a package host": re.compile(r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.org"),
        "an open note": re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b"),
        "trailing space": re.compile(r"[ \t]+$", re.MULTILINE),
        "a carriage return": re.compile(r"\r"),
        "no newline at the end, or several": re.compile(r"[^\n]\Z|\n\n\Z"),
    }
    found = [
        f"{path.relative_to(ROOT)}: {fault}: {match.group()!r}"
        for path in text_files()
        for fault, pattern in faults.items()
        if (match := pattern.search(path.read_bytes().decode("utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_what_exists(document: Path) -> None:
    text = document.read_text()
    for link, _, heading in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]*))?\)", text):
        target = document.parent / link if link else document
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}, (
                link
            )
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nvf_fast."):
                for alias in node.names:
                    assert exists(f"{node.module}.{alias.name}"), f"{document.name}: {ast.unparse(node)}"
    for name in re.findall(r"\bnvf_fast(?:\.[a-zA-Z_]\w*)+", text):
        assert exists(name), f"{document.name} mentions {name}"
    for path in re.findall(r"`((?:nvf_fast|kernels|benchmarks|tests|examples|docs)/[\w/.-]+)`", text):
        assert any(ROOT.glob(path.replace("NAME", "*"))), f"{document.name} mentions {path}"


def help_of(*command: str) -> str:
    """Return the help text of a command."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0, f"nvf-fast {' '.join(command)} does not exist"
    return output.getvalue()


def test_commands_in_messages_and_documents_exist() -> None:
    mentioned: dict[tuple[str, ...], set[str]] = {}
    pattern = re.compile(
        r"(?:`|'|^|\$ |\"|python -m |--no-python |PYTHON\) -m )nvf[-_]fast ([a-z]+)"
        r"(?: ([a-z][a-z0-9-]+))?([^`\n#]*)",
        re.MULTILINE,
    )
    for path in text_files():
        if path == Path(__file__) or not (path.suffix in (".py", ".md") or path.name == "Makefile"):
            continue
        for command, argument, rest in pattern.findall(path.read_text().replace("\\\n", " ")):
            if command in ("import", "uses", "was", "is", "estimates"):
                continue
            assert command in COMMANDS, f"{path.relative_to(ROOT)} mentions nvf-fast {command}"
            words = (command, argument) if argument and command in ("train", "eval") else (command,)
            options = (
                set() if words in (("train",), ("eval",)) else re.findall(r"(?<=\s)--[a-z][a-z.-]*", rest)
            )
            mentioned.setdefault(words, set()).update(options)
    assert len(mentioned) > 12
    for words, options in mentioned.items():
        known = set(re.findall(r"--[a-z][a-z0-9.-]*", help_of(*words))) | {"--help", "--nproc-per-node"}
        assert options <= known, f"nvf-fast {' '.join(words)} has no {sorted(options - known)}"


def test_make_targets_and_extras_in_messages_and_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for path in text_files():
        if path.suffix in (".py", ".md") or path.name == "Makefile":
            text = path.read_text()
            assert set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE)) <= targets, path
            assert set(re.findall(r"nvf-fast\[(\w+)\]", text)) <= extras, path


def test_results_become_a_table(tmp_path: Path) -> None:
    rows = [[16, 24.6], [8, None]]
    result = {"columns": ["step (mm)", "FPS"], "rows": rows, "context": {"device": "a CPU"}}
    (tmp_path / "speed.json").write_text(json.dumps(result))
    text = "<!-- results:speed -->\nold\n<!-- /results -->\n<!-- results:other -->\n<!-- /results -->b\n"
    text = filled(text, tmp_path)
    assert "| step (mm) | FPS |\n| --- | --- |\n| 16 | 24.6 |\n| 8 | – |\n\n*device: a CPU*\n<!-- /" in text
    assert "old" not in text and "<!-- results:other -->\n*Not measured yet.*\n<!-- /results -->b" in text
    assert filled(text, tmp_path) == text
    twice = filled(text.split("<!-- results:other")[0] * 2, tmp_path)
    assert twice.count("*device: a CPU*") == 1 and twice.count("*Conditions as above.*") == 1
    (tmp_path / "speed.json").write_text(json.dumps(result | {"rows": [[16]]}))
    with pytest.raises(ValueError, match="1 values for 2 columns"):
        filled(text, tmp_path)


def test_results_become_single_values(tmp_path: Path) -> None:
    rows = [["near", "left", 24.618, 3], ["far", "left", 17, 4], ["far", "right", 18, 5]]
    result = {"columns": ["where", "side", "error, mm", "images/s"], "rows": rows, "context": {}}
    (tmp_path / "errors.json").write_text(json.dumps(result))

    def value(place: str) -> str:
        return filled(f"a <!-- value:{place} -->old<!-- /value --> b", tmp_path)

    assert value("errors/near/error, mm") == "a <!-- value:errors/near/error, mm -->24.6<!-- /value --> b"
    assert ">18<" in value("errors/far, right/error, mm")
    assert ">4<" in value("errors/far, left/images/s")
    assert ">not measured yet<" in value("other/near/error, mm")
    for missing in ("errors/middle/error, mm", "errors/near/error", "errors/far/error, mm"):
        with pytest.raises(ValueError, match=r"errors\.json: no value in row"):
            value(missing)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_figures_are_the_committed_results(document: Path) -> None:
    text = document.read_text()
    assert filled(text, ROOT / "benchmarks/results") == text, "run `make readme`"


@pytest.mark.parametrize("document", readme.DOCUMENTS, ids=lambda path: path.name)
def test_figures_are_filled_in(document: Path) -> None:
    text = document.read_text()
    opened = re.findall(r"<!--\s*(?:results|value)\b.*?-->", text)
    tables, values = readme.TABLE.findall(text), readme.VALUE.findall(text)
    assert len(opened) == len(tables) + len(values), "a marker is misspelt or not closed"
    assert len(opened) == len(re.findall(r"<!--\s*/(?:results|value)\s*-->", text))
    for match in readme.VALUE.finditer(text):
        assert re.search(r"-->[\d,.e+-]+<!--", match[0]), f"no number: {match[0]}"
    for match in readme.TABLE.finditer(text):
        if "*Not measured yet.*" in match[0] and match[2] in NOT_MEASURED:
            continue
        rows = [line for line in match[0].splitlines() if line.startswith("|")]
        assert len(rows) > 2, f"no rows: {match[1]}"
        assert not any("nan" in re.findall(r"\w+", row.lower()) for row in rows), f"not a number: {match[1]}"


@pytest.mark.slow
def test_example_runs(tmp_path: Path) -> None:
    Image.fromarray(SyntheticHands(SyntheticConfig(1))[0].image).save(tmp_path / "hand.png")
    command = [sys.executable, str(ROOT / "examples/predict.py"), str(tmp_path / "hand.png"), "480"]
    known = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    printed = subprocess.check_output(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": known}, text=True)
    assert " mm" in printed
