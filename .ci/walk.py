"""A newcomer's walk: what README.md and the quick start say to run, run as it is printed.

Usage: python3 .ci/walk.py ENVIRONMENT WORK_DIRECTORY, in the root of the sources. ENVIRONMENT is a
virtual environment that holds torch. It is the only place where commands are found, so there is no
compiler; and there is no network once all is installed. `make` is left to CI, and `train` gets a
few steps only.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

PAGES = ("README.md", "docs/quick_start.md")
SHORTENED = {"train": "--steps 2 --crop-size 64 --test-size 64 --base-width 8"}
OFFLINE = "unshare --map-root-user --net".split()  # Linux: a network namespace without a network


def blocks(text: str) -> list[tuple[str, str]]:
    """("python", code) and ("command", line), in the order of the page."""
    block = re.compile(r"^```python\n(.*?)^```|^ {4}(\S[^\n]*)$", re.DOTALL | re.MULTILINE)
    found = []
    for code, line in block.findall(text.replace("\\\n", " ")):
        found.append(("python", code) if code else ("command", re.split(r"\s+# ", line)[0]))
    return found


def installations(text: str) -> list[str]:
    return re.findall(r"pip install '?\.(?:\[[\w,]+\])?'?", text)


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
    texts = [(sources / page).read_text() for page in PAGES]
    pip = {name: v for name, v in os.environ.items() if name.startswith("PIP_") or "proxy" in name}
    for command in dict.fromkeys(line for text in texts for line in installations(text)):
        run(["python", "-m", *shlex.split(command)], sources, plain | pip)
    offline = [shutil.which(OFFLINE[0]) or OFFLINE[0], *OFFLINE[1:]]
    if not os.path.exists(offline[0]) or subprocess.run([*offline, "/bin/true"]).returncode != 0:
        print("no network namespaces here: a proxy that is not there must do")
        offline = []
        plain |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    for page, text in zip(PAGES, texts, strict=True):
        code = ""
        for kind, content in blocks(text):
            words = shlex.split(content) if kind == "command" else []
            if kind == "python":
                code += content  # one namespace a page
            elif words[0] in ("make", "git") or words[:2] == ["pip", "install"]:
                continue
            else:
                words += SHORTENED.get(
                    words[3] if words[1:3] == ["-m", "cyclegan"] else "", ""
                ).split()
                run([*offline, *words], work, plain)
        (work / "page.py").write_text(code)
        print(f"{page}:", flush=True)
        run([*offline, "python", "page.py"], work, plain)


if __name__ == "__main__":
    main()
