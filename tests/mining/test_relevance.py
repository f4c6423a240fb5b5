"""theta's threshold: the lowest one with a precision, and the table of what each keeps."""

import numpy as np
import pytest

from crops_jax.errors import InputError
from crops_jax.mining.relevance import calibrate, threshold_table


def test_calibration_takes_the_lowest_threshold_with_the_precision():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    labels = np.array([1, 1, 0, 1, 0, 0])
    found = calibrate(scores, labels, precision=0.75)
    assert (found.alpha, found.precision, found.recall) == (pytest.approx(0.55), 0.75, 1.0)
    assert calibrate(scores, labels, precision=0.8).alpha == pytest.approx(0.75)
    assert calibrate(scores, labels, precision=0.8).recall == pytest.approx(2 / 3)
    ties = calibrate(np.array([0.9, 0.7, 0.7]), np.array([1, 1, 0]), precision=1.0)
    assert ties.recall == 0.5  # a threshold cannot part the two 0.7s
    beside = np.array([np.float32(0.6), np.nextafter(np.float32(0.6), np.float32(1))])  # no float32 is between
    for scores, labels in ((beside, [0, 1]), (beside, [1, 1])):
        found = calibrate(scores, np.array(labels), precision=1.0)
        kept = scores > np.float32(f"{found.alpha:.9g}")  # as `calibrate` prints it, and mining reads it
        assert kept.sum() == sum(labels)
    with pytest.raises(InputError, match=r"the best is 0\.500"):
        calibrate(np.array([0.9, 0.8]), np.array([0, 1]), precision=0.9)
    with pytest.raises(InputError, match="NaN"):
        calibrate(np.array([np.nan]), np.array([1]), precision=0.9)


def test_a_score_of_exactly_alpha_is_not_kept_in_the_table_as_in_mining():
    table = threshold_table(np.array([0.6, 0.8], np.float32), np.array([False, True]), np.array([0.6]))
    assert table == [["0.60", "1", "1.000", "1.000"]]
