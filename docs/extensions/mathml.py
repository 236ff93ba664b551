"""Formulas as MathML, made by docutils when the pages are built: no script, no font, no network."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

LOG = logging.getLogger(__name__)


def formula(node: nodes.Element, *, block: bool) -> str:
    """The MathML of a node's TeX; what docutils cannot read is warned of, and shown as it is."""
    # Where TeX takes single digits, docutils takes a number.
    text = re.sub(r"(frac)(\d)(\d)", r"\1{\2}{\3}", node.astext())
    try:
        return latex2mathml.tex2mathml(text, as_block=block)
    except MathError as error:
        LOG.warning("formula %r: %s", text, error, location=node)
        return nodes.Text(text).astext()


def visit_inline(translator: Any, node: nodes.Element) -> None:
    """A formula in a line."""
    translator.body.append(formula(node, block=False))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.Element) -> None:
    """A formula on lines of its own."""
    translator.body.append(f'<div class="formula">{formula(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Make this the way that HTML shows formulas."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("config-inited", lambda _, config: setattr(config, "html_math_renderer", "mathml"))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
