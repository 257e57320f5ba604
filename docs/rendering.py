"""What MkDocs does not know: formulas as MathML, which browsers show without a script, and
docstrings in the notation of Sphinx."""

import html
import re
import textwrap

import griffe
from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(?P<tag>div|span) class="arithmatex">\\[\[(](?P<latex>.*?)\\[\])]</(?P=tag)>', re.DOTALL
)
_ROLE = re.compile(r":(?:func|class|meth):`(?P<name>[\w.]+)`")
_INLINE_MATH = re.compile(r":math:`(?P<latex>[^`]+)`")
_MATH = re.compile(r"^\.\. math::(?P<latex>.*(?:\n+[ \t]+.*)*)", re.MULTILINE)


def on_page_content(content: str, **_) -> str:
    """MkDocs' hook: the formulas that arithmatex has found in a page."""
    return _FORMULA.sub(_to_mathml, content)


def _to_mathml(match: re.Match) -> str:
    latex = html.unescape(match["latex"]).strip()
    if match["tag"] == "span":
        return convert(latex, display="inline")
    return f'<div class="formula">{convert(latex, display="block")}</div>'  # may scroll


class RolesOfSphinx(griffe.Extension):
    """Roles become links, and formulas what arithmatex finds."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring is None:
            return
        module = obj.module.path

        def link(match: re.Match) -> str:
            name = match["name"]
            path = name if "." in name else f"{module}.{name}"
            return f"[`{name}`][{path}]" if path.startswith("ssimfast") else f"`{name}`"

        text = _ROLE.sub(link, obj.docstring.value)
        text = _INLINE_MATH.sub(r"$\g<latex>$", text)
        obj.docstring.value = _MATH.sub(_fence, text)


def _fence(match: re.Match) -> str:
    return f"\n$$\n{textwrap.dedent(match['latex']).strip()}\n$$\n"
