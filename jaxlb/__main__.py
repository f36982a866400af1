"""`python -m jaxlb`."""

from jaxlb.cli import main

if __name__ == "__main__":
    main()
