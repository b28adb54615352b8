import json

import pytest

from regen.data.prepare import prepare


@pytest.fixture
def shoppers(tmp_path):
    """Writes people whose every review names them; gives the folder in the layout of source jsonl."""

    def written(count, review="Nice, tag-u{user:04d}."):
        folder = tmp_path / "shop"
        folder.mkdir(exist_ok=True)
        items = [{"item_id": f"i{at}", "title": f"Thing {at}", "category": "Things", "brand": "Ax"} for at in range(5)]
        interactions = [
            {
                "user_id": f"u{user:04d}",
                "item_id": f"i{(user + at) % 5}",
                "timestamp": 86400 * at,
                "rating": 4,
                "review_text": review.format(user=user) if at else f"First, tag-u{user:04d}.",
            }
            for user in range(count)
            for at in range(2)
        ]
        for name, rows in (("items", items), ("interactions", interactions), ("narratives", [])):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return written


@pytest.fixture
def prepared(shoppers, tmp_path):
    """A prepared artefact of so many shoppers."""
    from regen.data.jsonl import JsonlSource

    def built(count, **options):
        folder = shoppers(count, **options)
        return prepare(JsonlSource(folder=str(folder)), {}, root=tmp_path / "data")

    return built
