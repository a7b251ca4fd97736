"""What can go wrong, each with the exit code that a stage answers with.

0 done · 1 failure · 2 usage or recipe · 3 data or manifest does not match ·
4 numerical failure or collapse · 75 interrupted and saved, run me again · 130/143 signals.
"""


class EquiError(Exception):
    """A failure with one clear line for the user: what is wrong, where, what would be right."""

    code = 1


class UsageError(EquiError):
    """The command line or the recipe is wrong: an unknown key or layer, an impossible pair."""

    code = 2


class DataError(EquiError):
    """Data or a manifest does not match: missing, corrupt, truncated, wrong digest."""

    code = 3


class NumericalError(EquiError):
    """A loss that is not finite, or a collapse that the recipe says must stop the run."""

    code = 4


class Interrupted(EquiError):
    """The run was asked to stop, saved its state, and continues when run again."""

    code = 75
