"""The cascade goes on only while it is refused, and says which step won."""

import numpy as np

from tiepoint.images import Image
from tiepoint.matchers import MatcherOptions, NearestNeighbours, Sift, SparseMatcher, matcher
from tiepoint.registration.cascade import Cascade, Step, auto_steps

from drawings import TRUTHS, drawn, seen


def blind():
    """A matcher whose detector asks for more contrast than there is."""
    return SparseMatcher("blind", Sift(contrast_threshold=10.0), NearestNeighbours())


def not_needed():
    raise AssertionError("a step after the accepted one was made ready")


def test_the_first_accepted_step_wins_and_later_ones_are_not_even_built(template_pixels):
    steps = [Step("blind", blind), Step("sift", lambda: matcher("sift")), Step("never", not_needed)]
    result = Cascade(Image(template_pixels), steps).register(Image(seen(template_pixels, TRUTHS[0])))
    assert result.accepted
    assert (result.method, result.tried) == ("sift", ("blind", "sift"))


def test_the_unrelated_is_refused_by_every_step(template_pixels):
    cascade = Cascade(Image(template_pixels), auto_steps(MatcherOptions()))
    result = cascade.register(Image(drawn(seed=5)))
    assert not result.accepted
    assert result.tried[:2] == ("sift", "sift, more keypoints")


def test_a_dim_photograph_is_found_by_weaker_keypoints(template_pixels):
    dim = (seen(template_pixels, TRUTHS[0], noise=0.5).astype(np.float32) * 0.12 + 100).astype(np.uint8)
    plain = Cascade(Image(template_pixels), auto_steps(MatcherOptions())[:1]).register(Image(dim))
    both = Cascade(Image(template_pixels), auto_steps(MatcherOptions())[:2]).register(Image(dim))
    assert both.accepted
    assert both.estimate.num_inliers > plain.estimate.num_inliers or plain.accepted
