"""CF sees training users only, content encodes each distinct text once, fusion and controls are what they say."""

import numpy as np
import polars as pl
import pytest
from cf_worlds import factors_of_two_circles, purchases

from regen.config.schema import UsersSplit
from regen.data.histories import Example, build_examples
from regen.data.prepare import load_tables
from regen.data.splits import split_of
from regen.embeddings import content, fusion
from regen.embeddings.cf import (
    ALS,
    BPR,
    PPMI,
    confidence_matrix,
    item_sequences,
    normalized_factors,
    positive_information,
)
from regen.embeddings.encode import cf_interactions, load_cf
from regen.embeddings.encode_content import load_content
from regen.pipeline import encoded_artefacts, prepared_artefact

SPLIT = UsersSplit(name="users", validation=0.1, test=0.2, salt="regen")


@pytest.fixture
def prepared(small_config):
    return prepared_artefact(small_config())


def test_cf_sees_no_user_of_validation_or_test_and_no_interaction_spoken_of(prepared):
    tables = load_tables(prepared.path)
    seen = cf_interactions(tables, SPLIT)
    assert len(seen) > 1000
    assert set(split_of(seen["user_id"], SPLIT)) == {"train"}
    pairs = seen.join(tables.items.with_row_index("item").select(pl.col("item").cast(pl.Int64), "item_id"), on="item")
    spoken_of = tables.narratives.filter(pl.col("item_id").is_not_null()).select("user_id", "item_id").unique()
    assert pairs.join(spoken_of, on=["user_id", "item_id"], how="semi").is_empty()


def test_cf_reads_no_texts(prepared, monkeypatch, small_config):
    read = []
    real = pl.read_parquet
    monkeypatch.setattr(
        pl, "read_parquet", lambda path, **options: read.append(options.get("columns")) or real(path, **options)
    )
    encoded_artefacts(small_config("cf.alpha=7"), ("cf",), prepared)
    columns = {name for names in read[:3] for name in names}
    assert columns.isdisjoint({"description", "review_title", "review_text", "text"})


def test_cf_vectors_do_not_change_with_what_test_users_buy(small_config, prepared, tmp_path):
    """The factors of a world in which the test users bought something else are bit-identical."""
    cfg = small_config()
    tables = load_tables(prepared.path)
    test_user = pl.Series(split_of(tables.interactions["user_id"], SPLIT)) != "train"
    other = tables.interactions.with_columns(
        item_id=pl.when(test_user).then(pl.col("item_id").reverse()).otherwise(pl.col("item_id"))
    )
    vectors = []
    for interactions in (tables.interactions, other):
        seen = cf_interactions(type(tables)(tables.items, interactions, tables.narratives), SPLIT)
        model = ALS(factors=8, regularization=0.1, iterations=3, seed=0)
        vectors.append(normalized_factors(model, seen, alpha=10.0, items=len(tables.items)))
    assert not tables.interactions.equals(other)
    assert np.array_equal(*vectors)
    assert cfg.split.test == 0.2


@pytest.mark.parametrize(
    "model",
    [
        ALS(factors=8, regularization=0.1, iterations=10, seed=0),
        BPR(factors=8, learning_rate=0.1, regularization=0.01, iterations=60, seed=0),
        PPMI(factors=8, window=3, decay=0.7, seed=0),
    ],
    ids=["als", "bpr", "ppmi"],
)
def test_factors_of_two_circles_of_buyers(model):
    factors_of_two_circles(model)


def test_mutual_information_is_that_of_a_hand():
    """Histories 0 1 0 and 2 3: items 0 and 1 are neighbours twice, 2 and 3 once; 0 is two apart from itself once."""
    model = PPMI(factors=2, window=2, decay=0.5, seed=0)
    counts = model._counts([np.array([0, 1, 0]), np.array([2, 3])], 4)
    expected = [[1, 2, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]  # 0.5 in both orders makes 1
    assert counts.toarray().tolist() == expected
    found = positive_information(counts).toarray()
    assert found[0, 1] == pytest.approx(np.log(2 * 7 / (3 * 2)))
    assert found[2, 3] == pytest.approx(np.log(1 * 7 / (1 * 1)))
    assert found[0, 0] == 0  # log(1 * 7 / 9) is negative


@pytest.mark.parametrize("sequences", [[np.array([0])], [np.array([0, 1]), np.array([1, 0])]], ids=["alone", "pair"])
def test_few_items_have_few_dimensions(sequences):
    vectors = PPMI(factors=5, window=3, decay=0.7, seed=0).fit_sequences(sequences, items=2)
    assert vectors.shape == (2, 5)
    assert np.count_nonzero(vectors.any(axis=0)) == len(sequences) - 1


def test_popularity_survives_in_the_norm():
    rng = np.random.default_rng(0)
    bought = rng.random((200, 20)) < np.linspace(0.02, 0.6, 20)
    vectors = normalized_factors(
        ALS(factors=8, regularization=0.1, iterations=10, seed=0), purchases(bought), alpha=0.0, items=20
    )
    norms = np.linalg.norm(vectors, axis=1)
    assert np.corrcoef(norms, bought.sum(axis=0))[0, 1] > 0.5


def test_confidence_grows_with_the_rating_and_null_counts_as_full():
    rows = pl.DataFrame({"user_id": ["a", "a", "b"], "item": [0, 2, 2], "rating": [1.0, 5.0, None]})
    matrix = confidence_matrix(rows, alpha=10.0, items=4)
    assert matrix.toarray().tolist() == [[3.0, 0, 11.0, 0], [0, 0, 11.0, 0]]


def test_factors_that_are_not_finite_are_refused(monkeypatch):
    monkeypatch.setattr(ALS, "fit_items", lambda self, confidence: np.full((confidence.shape[1], 2), np.nan))
    with pytest.raises(ValueError, match="CF gave factors that are zero or not finite. Lower cf.alpha"):
        normalized_factors(
            ALS(factors=2, regularization=0.1, iterations=1, seed=0), purchases(np.ones((2, 3))), alpha=0.0, items=3
        )


def test_cf_without_interactions_is_an_error():
    with pytest.raises(ValueError, match="CF has nothing to fit on"):
        normalized_factors(
            ALS(factors=4, regularization=0.1, iterations=1, seed=0), purchases(np.zeros((0, 5))), alpha=0.0, items=5
        )


def test_factors_of_another_shape_are_refused(monkeypatch):
    monkeypatch.setattr(ALS, "fit_items", lambda self, confidence: np.ones((3, 5)))
    model = ALS(factors=2, regularization=0.1, iterations=1, seed=0)
    with pytest.raises(ValueError, match=r"ALS gave CF factors of shape \(3, 5\). .* 3 items x 2 factors"):
        normalized_factors(model, purchases(np.ones((2, 3))), alpha=0.0, items=3)


def test_a_model_may_read_purchases_in_their_order(small_config, prepared, monkeypatch):
    """Only those of training users that no narrative is about, as for the other models."""
    read = {}

    def fit_sequences(self, sequences, *, items):
        read["sequences"] = [bought.tolist() for bought in sequences]
        return np.ones((items, 4), dtype=np.float32)

    monkeypatch.setattr("regen.embeddings.sasrec.SASRec.fit_sequences", fit_sequences)
    config = small_config("cf=sasrec", "cf.model.factors=4", without="cf.")
    made = encoded_artefacts(config, ("cf",), prepared)["cf"]
    tables = load_tables(prepared.path)
    seen = cf_interactions(tables, SPLIT)
    at = tables.interactions.with_row_index("row").join(
        tables.items.with_row_index("item").select(pl.col("item").cast(pl.Int64), "item_id"), on="item_id"
    )
    in_time = seen.join(at, on=["user_id", "item"], how="left").sort("row").group_by("user_id", maintain_order=True)
    assert read["sequences"] == in_time.agg("item")["item"].to_list()
    vectors = load_cf(made, tables).vectors
    bought = np.isin(np.arange(len(vectors)), seen["item"].to_numpy())
    assert np.allclose(vectors[bought], 0.5)
    assert not vectors[~bought].any()


def test_item_sequences_keep_the_order_of_the_rows():
    rows = pl.DataFrame({"user_id": ["b", "b", "b", "a"], "item": [2, 0, 2, 1]})
    assert [items.tolist() for items in item_sequences(rows)] == [[2, 0, 2], [1]]


class Counting:
    """A sentence encoder that remembers what it was asked to encode."""

    max_seq_length = None

    def __init__(self):
        self.asked = []

    def encode(self, texts, **options):
        self.asked += texts
        return np.eye(len(texts), 4, dtype=np.float32)


def test_each_distinct_text_is_encoded_once(monkeypatch):
    encoder = Counting()
    monkeypatch.setattr(content, "load_sentence_encoder", lambda pretrained: encoder)
    vectors = content.embed_texts(["a", "b", "a", "", "b"])
    assert sorted(encoder.asked) == ["", "a", "b"]
    assert np.array_equal(vectors[0], vectors[2])
    assert not vectors[3].any()


def test_content_vectors_know_which_review_is_withheld(small_config, prepared, monkeypatch):
    encoder = Counting()
    monkeypatch.setattr(content, "load_sentence_encoder", lambda pretrained: encoder)
    made = encoded_artefacts(small_config(), ("content",), prepared)["content"]
    assert len(encoder.asked) == len(set(encoder.asked)) == made.manifest["counts"]["texts"]
    tables, vectors = load_tables(prepared.path), load_content(made)
    texts = np.array(sorted(encoder.asked), dtype=object)  # the artefact's order
    endorsements = build_examples(tables, withhold={"product_endorsement": True})
    for example in endorsements:
        review = tables.interactions["review_text"][int(example.rows[-1])]
        rows = np.where(example.withheld, vectors.unreviewed[example.rows], vectors.reviewed[example.rows])
        entering = texts[rows]
        assert all(review not in text for text in entering)  # neither the review nor a copy of it on another item
        assert sum("stars" in text for text in entering) == (~example.withheld).sum()
    shown = build_examples(tables, withhold={"purchase_reason": False})[0]
    assert tables.interactions["review_text"][int(shown.rows[-1])] in texts[vectors.reviewed[shown.rows[-1]]]


def test_minilm_vectors_are_unit_and_make_sense():
    cat, kitten, tax = content.embed_texts(["a cat", "a kitten", "tax return form"])
    assert np.linalg.norm([cat, kitten, tax], axis=1) == pytest.approx(1, abs=1e-4)
    assert cat @ kitten > cat @ tax + 0.3


def test_an_encoder_that_is_not_there():
    with pytest.raises(ValueError, match="content.pretrained=/no/such/folder: nothing to load there"):
        content.load_sentence_encoder("/no/such/folder")


EXAMPLE = Example("u", "user_profile", None, "text", np.array([3, 1]), np.array([False, True]))


def test_fusion_puts_cf_first():
    cf = fusion.CFVectors(np.arange(8, dtype=np.float32).reshape(4, 2), item_of=np.array([0, 1, 2, 3]))
    texts = fusion.ContentVectors(np.eye(3, dtype=np.float16), np.array([0, 1, 2, 0]), np.array([-1, 2, -1, -1]))
    fused = fusion.Fused((cf, texts))
    assert fused.dim == 5
    assert fused(EXAMPLE, draw=0).tolist() == [[6, 7, 1, 0, 0], [2, 3, 0, 0, 1]]


@pytest.mark.parametrize("room", [2**30, 8])
def test_a_catalogue_has_the_vectors_of_all_parts_in_memory_or_in_a_file(monkeypatch, room):
    monkeypatch.setattr(fusion, "IN_MEMORY", room)
    rows = np.array([0, 1])
    cf = fusion.CFVectors(np.arange(6, dtype=np.float32).reshape(3, 2), item_of=rows)
    text = fusion.ItemVectors(np.eye(3, dtype=np.float16), item_of=rows)
    found = fusion.item_vectors(fusion.Fused((cf, text, fusion.RandomVectors(rows, 2, seed=1))), 3)
    assert isinstance(found, np.memmap) == (room == 8)
    assert found[:, :5].tolist() == [[0, 1, 1, 0, 0], [2, 3, 0, 1, 0], [4, 5, 0, 0, 1]]
    assert found[2, 5:].tolist() == fusion.random_vector(2, 2, seed=1).tolist()
    with pytest.raises(ValueError, match="ContentVectors has none"):
        fusion.item_vectors(fusion.ContentVectors(np.eye(2, dtype=np.float16), rows, rows), 2)


def test_random_is_fixed_per_item_and_noise_is_fresh():
    item_of = np.array([5, 5, 6, 7])
    random = fusion.RandomVectors(item_of, dim=64, seed=0)
    again = fusion.RandomVectors(item_of, dim=64, seed=0)
    rows = Example("u", "f", None, "", np.array([0, 1, 2]), np.zeros(3, dtype=bool))
    assert np.array_equal(random(rows, draw=0), again(rows, draw=1))
    assert np.array_equal(random(rows, draw=0)[0], random(rows, draw=0)[1])
    assert not np.array_equal(random(rows, draw=0)[0], random(rows, draw=0)[2])
    noise = fusion.NoiseVectors(dim=64, seed=0)
    assert not np.array_equal(noise(rows, draw=0), noise(rows, draw=1))
    assert np.array_equal(noise(rows, draw=0), noise(rows, draw=0))
    assert not fusion.NoVectors(4)(rows, draw=0).any()


def test_loaded_vectors_are_memory_mapped(small_config, prepared):
    made = encoded_artefacts(small_config(), ("cf",), prepared)["cf"]
    assert isinstance(load_cf(made, load_tables(prepared.path)).vectors, np.memmap)
