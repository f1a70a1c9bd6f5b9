"""`trl-fork evaluate`, as a script of the checkout."""

from trl_fork.commands.evaluate import main


if __name__ == "__main__":
    main()
