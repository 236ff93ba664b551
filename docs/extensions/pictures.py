"""The directive ``picture``: an image of ``docs/pictures`` on light and on dark ground.

``{picture} variance-shares`` shows ``variance-shares-light.svg`` or ``-dark.svg``, whichever the
reader's page is; the text below it is the caption, and its first sentence stands for the image.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Picture(SphinxDirective):
    """Shows a picture with its caption."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """A figure with two images, of which the theme shows one."""
        text = " ".join(self.content)
        figure = nodes.figure("")
        for ground in ("light", "dark"):
            figure += nodes.image(
                uri=f"/pictures/{self.arguments[0]}-{ground}.svg",
                alt=text.partition(". ")[0],
                classes=[f"only-{ground}", "wide"],
            )
        caption = nodes.caption(text, "")
        inline, messages = self.parse_inline(text)
        caption += inline
        figure += caption
        return [figure, *messages]


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("picture", Picture)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
