"""`trl-fork select`, as a script of the checkout."""

from trl_fork.commands.select import main


if __name__ == "__main__":
    main()
