"""The documents: examples in docstrings, blocks of code in pages, and the site made of both."""

from __future__ import annotations

import ast
import contextlib
import doctest
import glob
import importlib
import importlib.util
import pkgutil
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from nvf_fast.cli.main import main
from nvf_fast.image_files import read_image
from nvf_fast.video import VideoWriter

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_EXAMPLES = {  # modules, and how many of their docstrings have examples
    "adapters": 1, "camera_model": 1, "conventions": 1, "depth": 1, "estimator": 3, "evaluation.metrics": 1,
    "ops.cast_votes": 1, "ops.select_voters": 1, "pose": 1, "tracking": 1,
}  # fmt: skip
NOT_RUN = "<!-- not run: "  # on the line before a block, with the reason
COMMANDS = {  # that run here, with the packages they need; others need data sets or have tests of their own
    "demo": (), "info": (), "predict": ("matplotlib", "skimage"), "track": ("av",),
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_of_docstrings(name: str) -> None:
    module = importlib.import_module(f"nvf_fast.{name}")
    tests = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert len(tests) == WITH_EXAMPLES[name]
    output: list[str] = []
    for test in tests:
        assert doctest.DocTestRunner().run(test, out=output.append).failed == 0, "".join(output)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the images that the documents name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "photos/one.jpg"):
        shutil.copyfile(ROOT / "nvf_fast/assets/demo.jpg", tmp_path / name)
    window = (290, -90, 930, 390)  # 640 x 480 px, with a hand in the documents' box
    Image.open(tmp_path / "photo.jpg").crop(window).save(tmp_path / "hand.jpg")
    return tmp_path


def blocks(page: Path) -> list[tuple[str, str, bool]]:
    """Language, text, and whether it runs, of each block of a page."""
    pattern = rf"^({NOT_RUN}[^\n]+ -->\n)?```(\w*)\n(.*?)^```$"
    found = re.findall(pattern, page.read_text(), re.DOTALL | re.MULTILINE)
    return [(language, text, not marker) for marker, language, text in found]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.stem)
def test_names_exist(page: Path) -> None:
    for name in re.findall(r"`(nvf_fast(?:\.\w+)+)", page.read_text()):
        if "NAME" not in name:
            pkgutil.resolve_name(name)


def test_few_blocks_are_not_run() -> None:
    python = [runs for page in PAGES for language, _, runs in blocks(page) if language == "python"]
    assert len(python) > 15 and python.count(False) <= len(python) / 4
    for page in PAGES:
        for language, text, _ in blocks(page):
            if language == "":
                with contextlib.suppress(SyntaxError):
                    assert not ast.parse(text).body, f"{page.name}: name the language of {text!r}"


def test_readme_example(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [text for language, text, _ in blocks(ROOT / "README.md") if language == "python"]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(code, {})
    assert sorted(line.split()[0] for line in capsys.readouterr().out.splitlines()) == ["left", "right"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES[1:] if any(block[0] == "python" for block in blocks(page))],
    ids=lambda path: path.stem,
)
@pytest.mark.filterwarnings("ignore")  # boxes and views of stand-in images may warn
def test_python_blocks_run(page: Path, folder: Path) -> None:
    names: dict[str, object] = {"__name__": "__main__"}  # the blocks of a page continue each other
    for language, text, runs in blocks(page):
        if language == "python" and runs:
            exec(compile(text, page.name, "exec"), names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_command_lines_run(folder: Path) -> None:
    if importlib.util.find_spec("av"):
        with VideoWriter(folder / "clip.mp4") as writer:
            writer.write(read_image(folder / "photo.jpg"), 0)
    lines = [
        line
        for page in PAGES
        for _, text, runs in blocks(page)
        if runs
        for line in text.replace("\\\n", " ").splitlines()
    ]
    done = set()
    for line in dict.fromkeys(lines):
        program, command, *arguments = [*shlex.split(line, comments=True), "", ""]
        if program != "nvf-fast" or command not in COMMANDS:
            continue
        if all(importlib.util.find_spec(package) for package in COMMANDS[command]):
            files = {word: sorted(glob.glob(word)) if "*" in word else [word] for word in arguments if word}
            main([command, *(name for names in files.values() for name in names)])
            done.add(command)
    assert done >= {"demo", "info"}


class Links(HTMLParser):
    """Ids of a page, and the addresses that it links to, shows or loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.addresses: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.ids.add(value)
            if name in ("href", "src") and value and not re.match(r"\w+:", value):
                self.addresses.append(value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Error parsing type annotation")  # of names that only type checkers import
def test_site_is_complete(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="the site needs pdoc (extra dev)")
    from docs.site.build import MODULES, build_site
    from docs.site.build import PAGES as SITE_PAGES

    sources = {(ROOT / source) for _, source in SITE_PAGES.values()}
    assert sources == {*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"}
    build_site(tmp_path / "site")
    pages = {path.resolve(): Links(path) for path in (tmp_path / "site").rglob("*.html")}
    assert len(pages) == len(SITE_PAGES) + len(MODULES)
    for path, links in pages.items():
        assert len(links.addresses) > 20
        for address in links.addresses:
            target, _, heading = address.partition("#")
            linked = (path.parent / target).resolve() if target else path
            assert linked.is_file(), f"{path.name} links to {address}"
            assert not heading or heading in pages[linked].ids, f"{path.name} links to {address}"
    api = tmp_path / "site/api/nvf_fast.html"
    assert {"Tracker", "PoseEstimator.find", "load"} <= pages[api.resolve()].ids
    assert any(
        address.startswith("api/nvf_fast")
        for address in pages[(tmp_path / "site/usage.html").resolve()].addresses
    )
