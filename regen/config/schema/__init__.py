"""The typed schema of `conf/`: it holds names, types and ranges; the YAML files hold values and their reasons.

Every YAML file of `conf/` merges into a class of this package, so that Hydra refuses a misspelt key or a value of the
wrong type. A component of your own (an adapter, an encoder, a source) needs no schema: put its YAML file beside ours,
with `_target_` naming your class.
"""

from pathlib import Path

from regen.config.schema.base import *
from regen.config.schema.commands import *
from regen.config.schema.data import *
from regen.config.schema.model import *
from regen.config.schema.training import *

CONF = Path(__file__).parents[2] / "conf"
"""The folder of YAML files. In a clone it is a link to `conf/`; a wheel holds the files themselves."""
