"""The public names, their parameters and defaults are those in api.txt. (test_typing.py checks the
types.)

A change that is meant: ``python tests/test_api.py`` writes the file again.
"""

import difflib
import importlib
import inspect
import re
from pathlib import Path

import pytest

KEPT = Path(__file__).with_name("api.txt")
MODULES = (
    "ssimfast",
    "ssimfast.compat.fused_ssim",
    "ssimfast.compat.pytorch_msssim",
    "ssimfast.metrics",
    "cyclegan",
)


def signature_of(value: object) -> str:
    """Without annotations, which Python versions print differently."""
    signature = inspect.signature(value)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return re.sub(r"<function (\w+) at \w+>", r"\1", str(inspect.Signature(bare)))


def public_names(module) -> list[str]:
    own = (n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__)
    return getattr(module, "__all__", [n for n in own if not n.startswith("_")])


def described() -> str:
    """A line for each public name of a module, and for each public method of a class."""
    lines = []
    for module in map(importlib.import_module, MODULES):
        for name in sorted(public_names(module)):
            value = getattr(module, name)
            lines.append(f"{module.__name__}.{name}{signature_of(value)}")
            if inspect.isclass(value):
                own = {n: m for n, m in vars(value).items() if inspect.isfunction(m)}
                public = sorted(n for n in own if not n.startswith("_"))
                lines += [f"{module.__name__}.{name}.{n}{signature_of(own[n])}" for n in public]
    return "\n".join(lines) + "\n"


@pytest.mark.needs("torchmetrics")
def test_the_public_api_is_the_recorded_one():
    ours, kept = described().splitlines(), KEPT.read_text().splitlines()
    changed = "\n".join(difflib.unified_diff(kept, ours, "api.txt", "now", lineterm="", n=0))
    assert ours == kept, f"if this is meant, python tests/test_api.py:\n{changed}"


if __name__ == "__main__":
    KEPT.write_text(described())
