"""The error of whoever runs this, as opposed to a bug in it."""


class UserError(ValueError):
    """Something the user gave cannot be used; the message names it and says what could be."""


LONGEST = 200  # characters of a cause; torch names every weight that is missing


def cause(error: Exception) -> str:
    """One line of an error. The path is left out of errors of the operating system. The second line
    of a longer text is taken: torch names there the first weight that does not fit."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[1 if len(lines) > 1 else 0] if lines else type(error).__name__
    return line if len(line) <= LONGEST else line[:LONGEST] + "..."


def check_seed(seed: int) -> None:
    """Accepts what torch and random both take."""
    if not 0 <= seed < 2**63:
        raise UserError(f"seed must be in [0, 2**63 - 1]; got {seed}")
