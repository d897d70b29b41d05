"""`python -m fedspk` is the same as `fedspk`."""

from fedspk.signals import quit_on_ctrl_c_in_imports


def main() -> None:
    """Run the command line; Ctrl-C is one line even while libraries are imported."""
    quit_on_ctrl_c_in_imports()
    from fedspk.cli import main as run

    run()


if __name__ == "__main__":
    main()
