"""Trains a model, or a grid of them with -m; see --help."""

from regen.commands.train import run

if __name__ == "__main__":
    run()
