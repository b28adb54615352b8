"""A world and an LM that train in a second, as overrides of `train`."""

SMALL = [
    "source.users=400",
    "source.narrated_users=80",
    "source.items=200",
    "cf.model.factors=16",
    "cf.model.iterations=3",
    "lm=tiny",
    "lm.width=32",
    "tuning=full",
    "adapter=linear",
    "evaluation.resamples=100",
    "evaluation.generation.max_new_tokens=6",
    "trainer.enable_progress_bar=false",
]
