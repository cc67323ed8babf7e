"""Build the documentation site from the pages of docs/ and the docstrings of the public modules.

    python docs/site/build.py build/site

Every page is a file of its own that needs no server; `index.html` is the README.
"""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from pathlib import Path

import pdoc
import pdoc.doc
import pdoc.render
from pdoc.render_helpers import to_html

import nvf_fast

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {  # in the order of the navigation: title, source
    "index": ("Overview", "README.md"),
    "usage": ("Usage", "docs/usage.md"),
    "cameras": ("Cameras", "docs/cameras.md"),
    "conventions": ("Conventions", "docs/conventions.md"),
    "meshes": ("Meshes and images", "docs/meshes.md"),
    "embedding": ("Embedding", "docs/embedding.md"),
    "gallery": ("Gallery", "docs/gallery.md"),
    "how_it_works": ("How it works", "docs/how_it_works.md"),
    "kernels": ("The kernels", "docs/kernels.md"),
    "model_card": ("Model card", "docs/model_card.md"),
    "training": ("Training", "docs/training.md"),
    "evaluation": ("Evaluation", "docs/evaluation.md"),
    "datasets": ("Data sets", "docs/datasets.md"),
    "synthetic": ("Synthetic hands", "docs/synthetic.md"),
    "reproduce": ("Reproduction", "docs/reproduce.md"),
    "speed": ("Speed", "docs/speed.md"),
    "field_variants": ("Variants of the field", "docs/field_variants.md"),
    "promises": ("Promises", "docs/promises.md"),
    "security": ("Security", "docs/security.md"),
    "contents": ("All pages", "docs/index.md"),
    "changes": ("Changes", "CHANGELOG.md"),
    "contributing": ("Contributing", "CONTRIBUTING.md"),
}
MODULES = [
    "nvf_fast",
    *(f"nvf_fast.{name}" for name in ("adapters", "checkpoint", "conventions", "depth", "export", "finding")),
    *(f"nvf_fast.{name}" for name in ("image_files", "ops", "overlay", "surface", "video", "viewer")),
    *(f"nvf_fast.data.{name}" for name in ("complement", "freihand", "ho3d", "photographs", "sample")),
    *(f"nvf_fast.evaluation.{name}" for name in ("metrics", "submission")),
    *(f"nvf_fast.synthetic.{name}" for name in ("dataset", "rendered_views")),
]
PAGE_OF = {(ROOT / source).resolve(): f"{name}.html" for name, (_, source) in PAGES.items()}


def build_site(out: Path) -> None:
    """Write the site into a folder, which is replaced.

    Args:
        out: the folder, `index.html` and `api/` in it.

    Raises:
        FileNotFoundError: a page links to a file that does not exist.
    """
    shutil.rmtree(out, ignore_errors=True)
    for name in nvf_fast.__all__:
        getattr(nvf_fast, name)  # names load on first use
    modules = {name: pdoc.doc.Module(importlib.import_module(name)) for name in MODULES}
    pdoc.render.configure(
        docformat="google",
        include_undocumented=False,
        show_source=False,
        template_directory=Path(__file__).parent,
    )
    pdoc.render.env.globals |= {"pages": PAGES, "version": nvf_fast.__version__}
    documented = {name: pdoc.render.html_module(module, modules) for name, module in modules.items()}
    for name, text in documented.items():
        path = out / "api" / f"{name.replace('.', '/')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_without_dead_links(text))
    (out / "api/search.js").write_text(pdoc.render.search_index(modules))
    for name, (title, source) in PAGES.items():
        text = (ROOT / source).read_text()
        body = to_html(re.sub(r"^<!-- .* -->\n|<!-- .*? -->", "", text, flags=re.MULTILINE))
        content = _linked_names(_linked_files(body, (ROOT / source).parent, out), documented)
        page = pdoc.render.env.get_template("page.html.jinja2").render(
            title=title, current=name, content=content, contents=body.toc_html, all_modules=modules
        )
        (out / f"{name}.html").write_text(page)


def _linked_files(body: str, folder: Path, out: Path) -> str:
    """Point links at the site's pages, and copy the other files that a page links to or shows."""

    def link(match: re.Match[str]) -> str:
        attribute, target, heading = match.groups()
        path = (folder / target).resolve()
        if path not in PAGE_OF:
            (out / "files").mkdir(exist_ok=True)
            shutil.copyfile(path, out / "files" / path.name)
        return f'{attribute}="{PAGE_OF.get(path, f"files/{path.name}")}{heading or ""}"'

    return re.sub(r'\b(href|src)="(?!#|\w+:)([^"#]+)(#[^"]*)?"', link, body)


def _without_dead_links(text: str) -> str:
    """Remove links within a page to members that it does not show, such as those of torch's classes."""
    return re.sub(
        r'<a href="#([\w.]+)">(.*?)</a>',
        lambda m: m[0] if f'id="{m[1]}"' in text else m[2],
        text,
        flags=re.DOTALL,
    )


def _linked_names(body: str, documented: dict[str, str]) -> str:
    """Link the names of documented modules, functions and classes in inline code to the modules' pages."""

    def link(match: re.Match[str]) -> str:
        module, member = match[1], ""
        while module not in documented and "." in module:
            module, _, last = module.rpartition(".")
            member = f"{last}.{member}".rstrip(".")
        if module not in documented or (member and f'id="{member}"' not in documented[module]):
            return match[0]
        address = f"api/{module.replace('.', '/')}.html{f'#{member}' if member else ''}"
        return f'<a href="{address}">{match[0]}</a>'

    return re.sub(r"<code>(nvf_fast(?:\.\w+)*)(?:\([^<]*)?</code>", link, body)


if __name__ == "__main__":
    build_site(Path(sys.argv[1]))
