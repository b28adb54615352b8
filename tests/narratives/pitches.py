"""Small questions to a scripted endpoint: one endorsement per user."""

from regen.narratives import answers
from regen.narratives.endpoint import Endpoint, Price, Sampling
from regen.narratives.prompts import Request
from regen.narratives.report import RunLimits

SYSTEM = {"role": "system", "content": '- "product_endorsement": a pitch'}


def pitches(questions):
    """A request per question, each of another user."""
    return [
        Request(f"u{at}", "endorsement", 0, (SYSTEM, {"role": "user", "content": text}), answers.Endorsement)
        for at, text in enumerate(questions)
    ]


def endpoint_at(server, *, max_tokens, seed):
    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=max_tokens, seed=seed)
    return Endpoint(model="m", base_url=server.url, api_key_env="NO_KEY", sampling=sampling, timeout=60.0)


def limits(**changed):
    """Few at once, three attempts, a price but no limit of money."""
    known = {"concurrency": 4, "requests_per_minute": None, "tokens_per_minute": None, "max_attempts": 3}
    return RunLimits(**{**known, "price": Price(1.0, 10.0), "max_cost": None, **changed})
