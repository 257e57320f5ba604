"""The error of whoever runs this, as opposed to a bug in it."""


class UserError(ValueError):
    """Something the user gave cannot be used; the message names it and says what could be."""


def check_seed(seed: int) -> None:
    """Accepts what torch and random both take."""
    if not 0 <= seed < 2**63:
        raise UserError(f"seed must be in [0, 2**63 - 1]; got {seed}")
