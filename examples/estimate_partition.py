"""`trl-fork partition`, as a script of the checkout."""

from trl_fork.commands.partition import main


if __name__ == "__main__":
    main()
