"""The site's settings. Its pages are the repository's own, which .ci/docs puts beside this file."""

import torchrl_reg

project, author, release = "torchrl_reg", "The torchrl_reg authors", torchrl_reg.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx_copybutton"]
include_patterns = ["index.md", "api/*.md", "torchrl_reg/*.md", "recipes/*.md", "slurm/*.md", "tests/*.md"]

myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False  # those of torch and TorchRL are long, and not all of them are valid
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_use_rtype, napoleon_use_ivar = False, True

html_theme = "furo"
html_title = f"torchrl_reg {release}"
html_copy_source = False
html_show_copyright = False
copybutton_prompt_text = ">>> |... "  # left out of what is copied
copybutton_prompt_is_regexp = True
