"""`python -m trl_fork COMMAND`: the command `trl-fork`, where only Python is on the path."""

import sys

from .commands.dispatch import main


if __name__ == "__main__":
    sys.exit(main())
