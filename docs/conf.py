"""How Sphinx builds the documentation: `make docs`."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

from ccsegformer import __version__

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "ccsegformer"
release = version = __version__
copyright = "the ccsegformer authors, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_output_stderr = "remove"  # warnings of libraries, with paths of the machine
suppress_warnings = ["myst.header"]  # the command line's pages begin at a lower heading
exclude_patterns = ["build", "jupyter_execute"]
default_role = "code"
smartquotes = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
autodoc_typehints = "none"  # signatures show them
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
html_theme = "furo"
html_title = f"ccsegformer {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False

INCLUDED = {"index": "README.md", "mathematics": "src/ccsegformer/ops/README.md"}
"""Pages whose text is that of a file elsewhere in the repository."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#|mailto:)([^)\s#]*)(#[^)\s]*)?\)")

EXAMPLES = re.compile(r"(?:^  (?:ccsegformer|torchrun|accelerate) .*\n\n)+", re.MULTILINE)
"""Commands that typer writes as paragraphs."""
SECTION = re.compile(r"^#+ `ccsegformer (.+)`\n\n(.+)$", re.MULTILINE)
"""A command's heading and its first sentence."""
LISTED = re.compile(r"^\* `([a-z][a-z0-9-]*)`: .*$", re.MULTILINE)
"""A command in the list of its group, with a sentence that typer cuts short."""


def take_text(app: Sphinx, page: str, source: list[str]) -> None:
    """Insert the text that a page takes from elsewhere, and make links fit the site."""
    folder = (DOCS / page).parent
    if page in INCLUDED:
        path = ROOT / INCLUDED[page]
        source[0] = with_links(path.read_text(), path.parent, folder) + "\n" + source[0].partition("\n\n")[2]
    else:
        source[0] = with_links(source[0], folder, folder)


def with_links(text: str, here: Path, page: Path) -> str:
    """Point links and pictures of a file in `here` to where a page in `page` finds them.

    A link to a file that is no page keeps its words alone.
    """

    def pointed(found: re.Match[str]) -> str:
        picture, words, target, anchor = found[1], found[2], found[3], found[4] or ""
        path = (here / target).resolve()
        homes = {(ROOT / source).resolve(): DOCS / f"{name}.md" for name, source in INCLUDED.items()}
        path = homes.get(path, path)
        is_page = path.suffix in (".md", ".ipynb") and path.is_relative_to(DOCS)
        if not (picture or is_page):
            return words
        place = Path(os.path.relpath(path, page)).as_posix()
        return f"{picture}[{words}]({place}{anchor})"

    return LINK.sub(pointed, text)


def write_commands(_: Sphinx) -> None:
    """Write the reference of the command line, from the commands themselves."""
    utility = [sys.executable, "-m", "typer", "ccsegformer.cli", "utils", "docs", "--name", "ccsegformer"]
    done = subprocess.run(utility, capture_output=True, text=True, check=True)
    text = done.stdout.replace("# `ccsegformer`", "# The command line", 1)
    text = re.sub(r"<span style=[^>]*>(.*?)</span>", r"**\1**", text)
    text = EXAMPLES.sub(as_code, text)
    sentences = dict(SECTION.findall(text))

    def listed(found: re.Match[str]) -> str:
        group = re.findall(r"^#+ `ccsegformer (.+)`$", text[: found.start()], re.MULTILINE)[-1:]
        command = " ".join([*group, found[1]])
        return f"* [`{found[1]}`](#ccsegformer-{command.replace(' ', '-')}): {sentences[command]}"

    text = LISTED.sub(listed, text)
    (DOCS / "reference" / "commands.md").write_text(text)


def as_code(found: re.Match[str]) -> str:
    """Return indented paragraphs of commands as one block of code."""
    lines = [line.strip() for line in found[0].splitlines() if line.strip()]
    return "\n".join(["```sh", *lines, "```", "", ""])


def mathml(translator: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers draw without a script."""
    if isinstance(node, nodes.math_block):
        formula = convert(node.astext(), display="block")
        translator.body.append(f'<div class="formula">{formula}</div>')  # wide ones scroll
    else:
        translator.body.append(convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def use_dashes(_: Sphinx, tree: nodes.document) -> None:
    """Write the two hyphens that Sphinx puts between a parameter and its description as a dash."""
    for text in list(tree.findall(nodes.Text)):
        if text.startswith(" -- "):
            text.parent.replace(text, nodes.Text(text.replace(" -- ", " – ", 1)))


def setup(app: Sphinx) -> None:
    """Register the above."""
    app.connect("source-read", take_text)
    app.connect("builder-inited", write_commands)
    app.connect("doctree-read", use_dashes)
    app.add_html_math_renderer("mathml", inline_renderers=(mathml, None), block_renderers=(mathml, None))
