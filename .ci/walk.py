"""A newcomer's walk: what README.md and the quick start say to run, run as it is printed.

Usage: python3 .ci/walk.py ENVIRONMENT WORK_DIRECTORY, in the root of the sources. ENVIRONMENT is a
virtual environment that holds torch. Commands are found only there, so there is no compiler, and
only `pip install` has a network. `make` is left to CI, and `train` gets a few steps.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

PAGES = ("README.md", "docs/quick_start.md")
SHORT_TRAINING = "--steps 2 --crop-size 64 --test-size 64 --base-width 8".split()
# A block of Python, or an indented command with its continuations.
STEP = re.compile(r"^```python\n((?s:.*?))^```|^ {4}(\S(?:.*\\\n)*.*)$", re.MULTILINE)


def steps(page: Path) -> list[str | list[str]]:
    """Python code, and the words of commands, in the order of the page. Code includes all blocks
    before it, because the blocks of a page share a namespace."""
    found: list[str | list[str]] = []
    code = ""
    for block, command in STEP.findall(page.read_text()):
        if block:
            code += block
            if found and isinstance(found[-1], str):
                found.pop()
            found.append(code)
        else:
            found.append(shlex.split(command.replace("\\\n", " "), comments=True))
    return found


def run(command: list[str], where: Path, environment: dict[str, str]) -> None:
    print("+", shlex.join(command), flush=True)
    subprocess.run(command, cwd=where, env=environment, check=True)


def main() -> None:
    programs, work = Path(sys.argv[1]).resolve() / "bin", Path(sys.argv[2]).resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "*.so", "demo", "site")
    sources = shutil.copytree(Path.cwd(), work / "sources", ignore=ignored)
    plain = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    plain["PATH"] = str(programs)
    plain["TORCHDYNAMO_DISABLE"] = "1"  # torch.compile needs a compiler of its own
    pip = {name: v for name, v in os.environ.items() if name.startswith("PIP_") or "proxy" in name}
    namespace = [shutil.which("unshare") or "unshare", "--map-root-user", "--net"]
    if subprocess.run(["sh", "-c", shlex.join([*namespace, "true"])]).returncode != 0:
        print("no network namespaces here: a proxy that is not there must do")
        namespace = []
        plain |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    for page in PAGES:
        print(f"{page}:", flush=True)
        for step in steps(sources / page):
            if isinstance(step, str):
                (work / "page.py").write_text(step)
                run([*namespace, "python", "page.py"], work, plain)
            elif step[:2] == ["pip", "install"]:
                run(["python", "-m", *step], sources, plain | pip)
            elif step[0] != "make":
                options = SHORT_TRAINING if "train" in step else []
                run([*namespace, *step, *options], work, plain)


if __name__ == "__main__":
    main()
