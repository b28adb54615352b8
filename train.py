"""Trains a model, or a grid of models with -m; see --help."""

from regen.commands.train import run

if __name__ == "__main__":
    run()
