"""A metric: a number for one prediction and its reference. Its mean is a row of the table, with intervals."""


def same_first_word(prediction: str, reference: str) -> float:
    """1 if both texts begin with the same word, else 0."""
    first = [text.split()[:1] for text in (prediction.lower(), reference.lower())]
    return float(first[0] == first[1])
