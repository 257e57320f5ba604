"""Progress on stderr: a bar on a terminal, a line now and then in a log."""

import os
import sys

from tqdm import tqdm

SECONDS = 60  # between two lines in a log


def progress(desc: str, unit: str, total: int | None, initial: int = 0, **options) -> tqdm:
    """A bar; of several processes (``torchrun``), the first one shows it. Where stderr is no
    terminal, it is a line at the beginning, one every minute and one at the end, unless ``options``
    of tqdm say otherwise."""
    options |= {"disable": int(os.environ.get("RANK", "0")) > 0}
    if not sys.stderr.isatty():
        options |= {"mininterval": SECONDS, "maxinterval": SECONDS, "file": _Lines()}
        options["bar_format"] = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    return tqdm(desc=desc, unit=unit, total=total, initial=initial, **options)


class _Lines:
    """stderr for a bar that rewrites its line: every state on a line of its own."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()
