"""`trl-fork analyze`, as a script of the checkout."""

from trl_fork.commands.analyze import main


if __name__ == "__main__":
    main()
