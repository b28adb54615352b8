"""A small data set whose users wrote markup wherever one can write."""

import json

from small import quick_embeddings

SCRIPT = "<script>window.hacked = true</script>"
MARKUP = [
    SCRIPT,
    "\"><img src=https://evil.example/pixel.png onerror='window.hacked = true'>",
    "</span></article></main><style>body { background: url(https://evil.example/style) }</style>",
    "</script></style></textarea><svg/onload=window.hacked=true>",
    "{{ 7 * 191 }} {% raw %} ${7 * 191} <!-- --> <![CDATA[ ]]>",
    "<a href=javascript:window.hacked=true>click</a> &lt;b&gt; &amp;amp;",
    "\u202eright to left\u2066 and \x00 \x1b[31m control\u2028characters",
    "<iframe srcdoc='<script>parent.hacked = true</script>'></iframe>",
]
LONG = "word " * 80 + "the end of a long review. " + SCRIPT


def write_hostile(folder, *, users=40, items=12):
    """The layout of `source=jsonl`: every title, review and narrative holds markup, one review in three is long."""
    folder.mkdir(parents=True)
    rows = {"items": [], "interactions": [], "narratives": []}
    for item in range(items):
        rows["items"].append({"item_id": f"i{item}", "title": f"Thing {item} {MARKUP[item % len(MARKUP)]}"})
    for user in range(users):
        name = f"u{user}<b>"
        for step in range(1, 8):
            rows["interactions"].append(
                {
                    "user_id": name,
                    "item_id": f"i{(user + step) % items}",
                    "timestamp": 1_500_000_000 + 86_400 * step,
                    "rating": None if step == 3 else 1 + (user + step) % 5,
                    "review_title": f"Review {user}.{step}",
                    "review_text": LONG if step % 3 == 0 else MARKUP[(user + step) % len(MARKUP)],
                }
            )
        text = f"Because of {user}. {MARKUP[user % len(MARKUP)]}"
        rows["narratives"].append(
            {"user_id": name, "feature": "purchase_reason", "item_id": f"i{(user + 7) % items}", "text": text}
        )
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))


HOSTILE = [
    "source=jsonl",
    "split.test=0.4",
    "cf.model.factors=4",
    "lm=tiny",
    "lm.width=32",
    "tuning=full",
    "adapter=linear",
    "trainer.accelerator=cpu",
    "trainer.max_steps=1",
    "training.batch_size=1",
    "trainer.enable_progress_bar=false",
    "evaluation.resamples=100",
    "evaluation.generation.max_new_tokens=4",
]


def train_hostile(root, *encoders):
    """Finished runs on that data set, of which the last wrote markup; gives their folders by encoder."""

    from regen.config.objects import compose
    from regen.pipeline import train_and_evaluate

    write_hostile(root / "theirs")
    paths = [f"source.folder={root}/theirs", f"paths.data_dir={root}/data", f"paths.runs_dir={root}/runs"]
    folders = {}
    for encoder in encoders:
        with quick_embeddings():
            folders[encoder] = train_and_evaluate(compose([*HOSTILE, *paths, f"encoder={encoder}"]))[0]
        path = folders[encoder] / "predictions.jsonl"
        rows = [json.loads(line) for line in path.read_text().rstrip("\n").split("\n")]
        for number, row in enumerate(rows):
            row["prediction"] = f"{encoder} wrote {number} {MARKUP[number % len(MARKUP)]}"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folders
