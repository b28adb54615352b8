"""Source `amazon2023`: Amazon Reviews 2023 (Hou et al. 2024) as published, for any of its 33 verticals.

A vertical has two files, plain or gzipped: reviews (`<Vertical>.jsonl`) and metadata (`meta_<Vertical>.jsonl`). An
item is a `parent_asin`, which is one product with all its variants. A 5-core file (`<Vertical>.csv`) can replace the
reviews; it has ratings and times, but no texts.
"""

from regen.data.amazon import AmazonSource
from regen.data.amazon_layouts import AMAZON_2023


class Amazon2023Source(AmazonSource):
    """Reads one vertical; the arguments are those of `AmazonSource`."""

    layout = AMAZON_2023
