"""Scores a run again, compares runs, or scores another system's predictions; see --help."""

from regen.commands.evaluate import run

if __name__ == "__main__":
    run()
