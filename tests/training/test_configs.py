"""Settings by name."""

import json

import pytest

from tiepoint.training.configs import changed, read_changes
from tiepoint.training.superpoint import LOSSES, HingeConfig, SuperPointTrainingConfig

DEFAULT = SuperPointTrainingConfig()


def test_nested_changes_leave_the_rest():
    made = changed(DEFAULT, {"loop": {"steps": 7, "learning_rate": 1}, "pairs": {"size": [64, 80]}})
    assert made.loop.steps == 7
    assert made.loop.learning_rate == 1.0
    assert made.loop.batch_size == DEFAULT.loop.batch_size
    assert made.pairs.size == (64, 80)
    assert made.pairs.warp1 == DEFAULT.pairs.warp1


def test_one_of_several_by_its_kind():
    made = changed(DEFAULT, {"descriptor": {"kind": "hinge", "positive_weight": 5}}, LOSSES)
    assert made.descriptor == HingeConfig(positive_weight=5.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lop": {}}, "has no 'lop'; it has: descriptor_dim"),
        ({"loop": {"steps": "many"}}, "steps: expected int"),
        ({"loop": 3}, "loop: expected its own settings"),
        ({"descriptor": {"kind": "triplet"}}, "expected one of info_nce, hinge, sparse_hinge"),
        ({"loop": {"steps": 0}}, "steps: expected at least 1"),
        ({"loop": {"precision": "fp16"}}, "precision: expected one of auto, fp32, bf16, got 'fp16'"),
        ({"normalisation": "batch"}, "normalisation: expected one of none, before_relu, after_relu"),
        ({"pairs": {"size": [128]}}, "size: expected 2 values"),
        ({"pairs": {"size": [128, "wide"]}}, "size: expected int"),
    ],
)
def test_what_makes_no_sense_is_told(changes, message):
    with pytest.raises(ValueError, match=message):
        changed(DEFAULT, changes, LOSSES)


def test_files_and_assignments(tmp_path):
    own, of_a_run = tmp_path / "own.json", tmp_path / "config.json"
    own.write_text(json.dumps({"loop": {"steps": 5, "seed": 1}}))
    of_a_run.write_text(json.dumps({"method": "superpoint", "config": {"descriptor_dim": 64}}))
    assert read_changes(own, ("loop.steps=6", "descriptor.kind=hinge")) == {
        "loop": {"steps": 6, "seed": 1},
        "descriptor": {"kind": "hinge"},
    }
    assert read_changes(of_a_run, ()) == {"descriptor_dim": 64}
    with pytest.raises(ValueError, match="expected name=value"):
        read_changes(None, ("steps",))
