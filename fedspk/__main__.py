"""`python -m fedspk` is the same as `fedspk`."""

from fedspk.cli import main

if __name__ == "__main__":
    main()
