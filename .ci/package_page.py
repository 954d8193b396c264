"""Build hook of hatch: makes relative links and images of the README absolute, for the package page."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface


class PackagePage(MetadataHookInterface):
    """Sets ``readme`` from the README and ``project.urls.Source``."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict) -> None:
        """Sets the text of the package page."""
        text = (Path(self.root) / "README.md").read_text()
        source = metadata["urls"]["Source"]
        text = re.sub(r'src="(?!https?:)', f'src="{source}/raw/HEAD/', text)
        text = re.sub(r"\]\((?!https?:|#)", f"]({source}/blob/HEAD/", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
