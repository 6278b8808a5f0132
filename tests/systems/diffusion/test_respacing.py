from __future__ import annotations

import numpy as np
import pytest

from tfgen.systems.diffusion import noise_schedules
from tfgen.systems.diffusion.respacing import kept_steps, respaced_betas


@pytest.mark.parametrize(
    ("steps", "text", "expected"),
    [
        (5, "", [0, 1, 2, 3, 4]),
        (10, "1", [0]),
        (10, "2", [0, 9]),
        (10, "4", [0, 3, 6, 9]),
        (8, "3", [0, 4, 7]),  # 3.5 is rounded to the even 4
        (6, "3", [0, 2, 5]),  # 2.5 is rounded to the even 2
        (11, "1,2,3", [0, 4, 7, 8, 9, 10]),  # sections of 4, 4 and 3
        (9, "2, 0 ,1", [0, 2, 6]),
        (10, "ddim5", [0, 2, 4, 6, 8]),
        (10, "ddim4", [0, 3, 6, 9]),
        (10, "ddim10", list(range(10))),
        (4, "0", []),
    ],
)
def test_kept_steps(steps, text, expected):
    kept = kept_steps(steps, text)
    assert kept.dtype == np.int64
    assert kept.tolist() == expected


@pytest.mark.parametrize("text", ["250", "1000", "10,15,20", "333,333,333"])
def test_as_many_steps_are_kept_as_are_asked_for(text):
    counts = [int(part) for part in text.split(",")]
    kept = kept_steps(1000, text)
    sections = np.array_split(np.arange(1000), len(counts))
    assert [np.isin(section, kept).sum() for section in sections] == counts
    for section, count in zip(sections, counts, strict=True):
        assert np.isin([section[0], section[-1]], kept).all() == (count > 1)


@pytest.mark.parametrize(
    ("steps", "text", "message"),
    [
        (1000, "1001", "at most 1000 of the 1000 steps in section 1 of 1 .* found 1001"),
        (1000, "500,501", "at most 500 .* section 2 of 2 .* found 501"),
        (1000, "ddim300", "exactly 300 of 1000 steps; type ddim250 or ddim334, or 300"),
        (1000, "ddim1", "exactly 1 of 1000 steps; type ddim2"),
        (1000, "ddim1001", "1 to 1000 steps after ddim, found 1001; type ddim1000"),
        (1000, "ddim0", "1 to 1000 steps after ddim, found 0"),
        (1000, "ddim", "found the respacing 'ddim'"),
        (1000, "abc", "found the respacing 'abc'"),
        (1000, "10,", "found the respacing '10,'"),
        (1000, "-5", "found the respacing '-5'"),
    ],
)
def test_texts_that_are_refused(steps, text, message):
    with pytest.raises(ValueError, match=message):
        kept_steps(steps, text)


@pytest.mark.parametrize("text", ["2", "ddim50", "10,15,20", ""])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_respaced_process_has_the_marginals_of_the_base_process(schedule, text):
    base = noise_schedules.betas(schedule, 1000)
    kept = kept_steps(1000, text)
    betas = respaced_betas(base, kept)
    assert betas.dtype == np.float64
    np.testing.assert_allclose(np.cumprod(1 - betas), np.cumprod(1 - base)[kept], rtol=1e-7)
    if not text:
        np.testing.assert_allclose(betas, base, rtol=1e-10)


@pytest.mark.parametrize("kept", [[0, 5, 5], [3, 2], [0, 10], [-1, 2], [[0, 1]]])
def test_steps_that_are_refused(kept):
    with pytest.raises(ValueError, match="ascending steps from 0 to 9"):
        respaced_betas(np.full(10, 0.1), np.array(kept))
