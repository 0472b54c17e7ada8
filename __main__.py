"""`python -m mt` is `mt`."""

from .cli import main

if __name__ == "__main__":
    main()
