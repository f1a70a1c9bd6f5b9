"""
The site, for Sphinx: `make docs`.

The folder of its sources is the checkout, so that the links between README, `docs/` and `configs/` that work on GitHub
work here, too. README is the start page. Pages of the API are written into `docs/api`, which git ignores.
"""

import os
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # Sphinx runs this file by its path

from docs.build_api import Api  # noqa: E402
from docs.navigation import NAVIGATION, ROOT_PAGE  # noqa: E402


project = "trl_fork"
author = "The trl_fork developers"
project_copyright = "The trl_fork developers. Apache-2.0"
api = Api()
version = release = api.version

extensions = ["myst_parser", "sphinx_copybutton"]
root_doc = ROOT_PAGE
include_patterns = ["*.md", "configs/README.md", "docs/*.md", "docs/api/*.md"]
exclude_patterns = [".*", "benchmarks", "build", "examples", "outputs", "studies", "tests", "trl_fork", "*.egg-info"]
templates_path = ["_templates"]

nitpicky = True  # a reference that leads nowhere is a warning, and `make docs` makes warnings errors
smartquotes = False  # dashes and quotes stay as they are written
highlight_language = "none"  # of a block that names no language
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # the anchors that GitHub makes
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
add_module_names = False
copybutton_prompt_text = ">>> "

html_theme = "pydata_sphinx_theme"
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
html_title = f"trl_fork {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "start.html"}
html_sidebars = {"**": ["navigation.html"]}
html_theme_options = {
    "logo": {"text": html_title},
    "navbar_start": ["navbar-logo"],
    "navbar_center": [],
    "navbar_persistent": ["search-button-field"],
    "navbar_end": ["theme-switcher"],
    "article_header_start": [],
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_copy_source = False
html_math_renderer = "mathml"


def write_api(app):
    folder = ROOT / "docs" / "api"
    folder.mkdir(exist_ok=True)
    pages = {folder / f"{room}.md": text for room, text in api.pages().items()}
    for old in set(folder.glob("*.md")) - set(pages):
        old.unlink()
    for page, text in pages.items():
        if not page.exists() or page.read_text() != text:  # else Sphinx need not read it again
            page.write_text(text)


def complete(app, docname, source):
    """Add the navigation to the start page and to the API's, and lead a link to the API with a name to its object."""
    source[0] = re.sub(r"\[`([\w.]+)`\]\((?:docs/)?api\.md\)", lambda match: api.link(match[1]), source[0])
    if docname == root_doc:
        for caption, pages in NAVIGATION.items():
            entries = [page for page in pages if "*" not in page or any(ROOT.glob(f"{page}.md"))]
            source[0] += toctree(entries, f":caption: {caption}")
    elif docname == "docs/api":
        source[0] += toctree([f"api/{room}" for room in api.rooms])


def toctree(entries, *options):
    return "\n".join(["", "```{toctree}", ":hidden:", ":glob:", *options, "", *entries, "```", ""])


def write_math(writer, node):
    """Formulas as MathML, which browsers draw without a script or a font from elsewhere."""
    writer.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    app.connect("builder-inited", write_api)
    app.connect("source-read", complete)
