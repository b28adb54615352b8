"""An exported model writes what its run's evaluation wrote, and says what it could not place."""

import pytest


@pytest.mark.parametrize("feature", ["purchase_reason", "product_endorsement"])
def test_a_test_user_gets_the_text_of_the_evaluation(finished, model, feature):
    histories, predictions = finished.of(feature)
    narratives = model.narrate(histories, feature=feature)
    assert [one.text for one in narratives] == predictions
    assert len(set(predictions)) >= 4, "the model hears its history, or the test would say nothing"
