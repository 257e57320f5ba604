"""The error of whoever runs this, as opposed to a bug in it."""


class UserError(ValueError):
    """Something the user gave cannot be used; the message names it and says what could be."""


def cause(error: Exception) -> str:
    """One line of what an error says, without a path if the operating system gives a reason: torch's
    on weights that do not fit name the first misfit in their second line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1 if len(lines) > 1 else 0] if lines else type(error).__name__


def check_seed(seed: int) -> None:
    """Accepts what torch and random both take."""
    if not 0 <= seed < 2**63:
        raise UserError(f"seed must be in [0, 2**63 - 1]; got {seed}")
