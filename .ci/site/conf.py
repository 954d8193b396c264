"""Settings of the site. Its pages are those of the repository, copied beside this file by .ci/docs."""

from typing import Any

from sphinx.application import Sphinx
from sphinx.util.inspect import signature, stringify_signature

import torchrl_reg

project, author, release = "torchrl_reg", "The torchrl_reg authors", torchrl_reg.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx_copybutton"]
include_patterns = ["index.md", "api/*.md", "torchrl_reg/*.md", "recipes/*.md", "slurm/*.md", "tests/*.md"]

myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False  # docstrings of torch and TorchRL are long, and some are invalid
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_use_rtype, napoleon_use_ivar = False, True

html_theme = "furo"
html_title = f"torchrl_reg {release}"
html_copy_source = False
html_show_copyright = False
html_static_path, html_css_files = ["static"], ["wide.css"]
pygments_dark_style = "monokai"
copybutton_prompt_text = ">>> |... "  # not copied
copybutton_prompt_is_regexp = True


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", constructor_signature)


def constructor_signature(app: Sphinx, what: str, name: str, of: Any, options: Any, shown: str, returned: str) -> Any:
    """The signature of ``__init__``, hidden by TorchRL's ``LossModule.__new__(*args, **kwargs)``."""
    if what != "class" or shown != "(*args, **kwargs)":
        return None
    return stringify_signature(
        signature(of.__init__, bound_method=True), unqualified_typehints=True, show_return_annotation=False
    ), returned
