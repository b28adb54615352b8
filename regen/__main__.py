"""`python -m regen`: the same as the console script `regen`."""

from regen.commands import main

if __name__ == "__main__":
    main()
