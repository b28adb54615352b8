"""The commands: one small file each, which calls the other packages with a typed config."""

import importlib
import sys

COMMANDS = {
    "prepare": "read a source; print what was kept and dropped, and why",
    "narrate": "write the reference narratives of every user",
    "rate": "let language models rate narratives",
    "release": "write histories, narratives and ratings as a data set to share",
    "encode": "compute the CF and content vectors of the interactions",
    "plan": "print what `regen train` would reuse and build, and the folder of its run",
    "train": "train and score one model, or a grid of them with -m",
    "evaluate": "score a run again, compare runs, or score another system's narratives",
    "side_by_side": "let language models compare two runs",
    "report": "write one HTML page about a grid",
    "dashboard": "make the Weights & Biases dashboard of a project",
    "export": "write a finished run as a folder to share",
    "serve": "serve narratives or recommendations over HTTP",
    "demo": "serve a web page that compares the models of a grid",
    "llm_server": "start a language model behind an OpenAI-compatible API on this machine",
}


def main() -> None:
    """`regen COMMAND key=value ...`: imports one command and runs it.

    Raises:
        SystemExit: With code 2 if there is no such command.
    """
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in ("-h", "--help"):
        sys.stdout.write(_help())
        return
    if name not in COMMANDS:
        from regen.config.errors import nearest

        near = nearest(name, COMMANDS, limit=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        sys.stderr.write(f"regen: there is no command '{name}'.{hint} `regen --help` lists them.\n")
        raise SystemExit(2)
    sys.argv = [f"regen {name}", *arguments]
    importlib.import_module(f"regen.commands.{name}").run()


def _help() -> str:
    lines = "\n".join(f"  {name:14}{what}" for name, what in COMMANDS.items())
    return f"regen COMMAND key=value ...\n\nCommands:\n{lines}\n\nregen COMMAND --help shows its settings.\n"
