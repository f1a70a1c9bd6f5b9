"""`trl-fork quickstart`, as a script of the checkout."""

from trl_fork.commands.quickstart import main


if __name__ == "__main__":
    main()
