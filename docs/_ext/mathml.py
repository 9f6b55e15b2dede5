"""Formulas as MathML, converted by docutils while the site is built. Browsers draw MathML without any script."""

import html
import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def mathml(node: nodes.math | nodes.math_block, block: bool) -> str:
    """One formula. A formula that docutils cannot read is a warning, and so ends the build."""
    text = node.astext()
    rows = r"\\" in text and r"\begin" not in text  # as in amsmath: several lines are a table that is aligned at `&`
    try:
        found = tex2mathml(rf"\begin{{aligned}}{text}\end{{aligned}}" if rows else text, as_block=block)
    except MathError as error:
        logger.warning("cannot read the formula %r: %s", text, error, location=node)
        return f"<code>{html.escape(text)}</code>"
    # Without a font for mathematics, browsers draw accents through the letters, but place what is no accent above them.
    found = found.replace(' accent="true"', "").replace("<mo>'</mo>", '<mo lspace="0" rspace="0">′</mo>')
    return BARS.sub(bar, found)


BARS = re.compile(r"<mo([^>]*)>([|‖])</mo>")


def bar(match: re.Match) -> str:
    """The bar of a norm, as high as a letter. Browsers would stretch the two bars to different heights."""
    form = "prefix" if "mathopen" in match[1] else "postfix"
    return f'<mo stretchy="false" form="{form}">{match[2]}</mo>'


def visit_inline(writer, node: nodes.math) -> None:
    writer.body.append(mathml(node, block=False))
    raise nodes.SkipNode


def visit_block(writer, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="formula">{mathml(node, block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
