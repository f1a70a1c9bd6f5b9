"""`trl-fork smollm2`, as a script of the checkout."""

from trl_fork.commands.smollm2 import main


if __name__ == "__main__":
    main()
