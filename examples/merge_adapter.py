"""`trl-fork merge`, as a script of the checkout."""

from trl_fork.commands.merge import main


if __name__ == "__main__":
    main()
