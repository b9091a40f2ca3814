"""Pose, IMC 2022 and its submission on made cameras: perfect answers, known errors, every sample a row."""

import csv

import cv2
import numpy as np
import pytest

from tiepoint.evaluation.contestants import Oracle
from tiepoint.evaluation.imc2022 import (
    THRESHOLDS_DEG,
    THRESHOLDS_M,
    Imc2022,
    accuracies,
    mean_average_accuracy,
    pose_errors,
    training_pairs,
)
from tiepoint.evaluation.layouts import pose_pairs
from tiepoint.evaluation.pose import (
    Pose,
    below,
    mean_epipolar_distance,
    normalised,
    opencv_pose,
    pose_error_deg,
)
from tiepoint.evaluation.session import run_session
from tiepoint.evaluation.submission import FALLBACK, Submission, sample_pairs, submission_csv
from tiepoint.evaluation.thresholds import ESTIMATORS, THRESHOLDS_PX, Thresholds, image_pair
from tiepoint.geometry import (
    Matches,
    RelativePose,
    cross_matrix,
    fundamental_from_essential,
    sampson_distance,
    symmetric_epipolar_distance,
)

SIZE = (640, 480)
K = np.array([[700.0, 0, 320], [0, 700, 240], [0, 0, 1]])
K1 = np.array([[650.0, 0, 310], [0, 660, 250], [0, 0, 1]])


def turn(axis, angle_deg):
    axis = np.asarray(axis, float) / np.linalg.norm(axis)
    return cv2.Rodrigues(axis * np.deg2rad(angle_deg))[0]


TRUTH = RelativePose(turn((0.1, 1, 0.05), 12), np.array([2.0, 0.3, -0.4]), K, K1)


def fundamental(rotation, translation):
    return fundamental_from_essential(cross_matrix(translation) @ rotation, K, K1)


# IMC 2022: the metric


def test_perfect_matrices_score_one():
    rotation, metres = pose_errors(fundamental(TRUTH.rotation, TRUTH.translation), TRUTH, 3.0)
    assert rotation < 1e-6
    assert metres < 1e-6
    assert mean_average_accuracy([rotation], [metres]) == 1


def test_scale_and_sign_of_the_matrix_do_not_matter():
    errors = pose_errors(-1e-7 * fundamental(TRUTH.rotation, TRUTH.translation), TRUTH)
    assert max(errors) < 1e-6


def test_thresholds_are_the_published_ones():
    np.testing.assert_array_equal(THRESHOLDS_DEG, range(1, 11))
    published = [0.2, 0.286, 0.409, 0.585, 0.836, 1.196, 1.710, 2.445, 3.497, 5.0]
    np.testing.assert_allclose(THRESHOLDS_M, published, atol=5e-4)


@pytest.mark.parametrize("i", range(10))
@pytest.mark.parametrize("side", [0.999, 1.001])
def test_a_known_rotation_error_falls_on_its_side_of_each_threshold(i, side):
    angle = THRESHOLDS_DEG[i] * side
    matrix = fundamental(turn((1, 2, 3), angle) @ TRUTH.rotation, TRUTH.translation)
    rotation, metres = pose_errors(matrix, TRUTH)
    assert rotation == pytest.approx(angle, abs=1e-6)
    first = i if side < 1 else i + 1
    assert accuracies([rotation], [metres]).tolist() == [0.0] * first + [1.0] * (10 - first)


@pytest.mark.parametrize("i", range(10))
@pytest.mark.parametrize("side", [0.999, 1.001])
@pytest.mark.parametrize("metres_per_unit", [2.0, 5.0])
def test_a_known_translation_error_falls_on_its_side_of_each_threshold(i, side, metres_per_unit):
    """A direction off by θ is wrong by 2 s |t| sin(θ / 2) metres."""
    length = np.linalg.norm(TRUTH.translation)
    angle = np.rad2deg(2 * np.arcsin(THRESHOLDS_M[i] * side / (2 * metres_per_unit * length)))
    across = np.cross(TRUTH.translation, (0, 0, 1))
    matrix = fundamental(TRUTH.rotation, turn(across, angle) @ TRUTH.translation)
    rotation, metres = pose_errors(matrix, TRUTH, metres_per_unit)
    if angle > 90:  # the sign of a direction is unknown: it is off by the angle's supplement
        assert metres < THRESHOLDS_M[i] * side
        return
    assert metres == pytest.approx(THRESHOLDS_M[i] * side, rel=1e-6)
    first = i if side < 1 else i + 1
    assert accuracies([rotation], [metres]).tolist() == [0.0] * first + [1.0] * (10 - first)


def test_thresholds_are_strict_and_failures_fail():
    assert accuracies([1.0], [0.0])[0] == 0
    assert accuracies([0.0], [0.2])[0] == 0
    assert mean_average_accuracy([None, 0.0], [None, 0.0]) == 0.5
    assert mean_average_accuracy([float("nan")], [float("nan")]) == 0
    assert np.isnan(pose_errors(np.full((3, 3), np.nan), TRUTH)).all()


def test_without_a_baseline_the_translation_always_passes():
    still = RelativePose(TRUTH.rotation, np.zeros(3), K, K1)
    assert pose_errors(fundamental(TRUTH.rotation, TRUTH.translation), still, 3.0)[1] == 0


# IMC 2022: the training layout


def words(matrix):
    return " ".join(f"{value:.12g}" for value in np.ravel(matrix))


@pytest.fixture
def training(tmp_path):
    """Two scenes of three cameras each that look at the same place, with different factors to metres."""
    root = tmp_path / "imc/train"
    for s, scene in enumerate(["arch", "tower"]):
        (root / scene / "images").mkdir(parents=True)
        calibration = [["image_id", "camera_intrinsics", "rotation_matrix", "translation_vector"]]
        for i in range(3):
            cv2.imwrite(str(root / scene / f"images/im{i}.jpg"), np.full((SIZE[1], SIZE[0]), 99, np.uint8))
            rotation = turn((0.2, 1, 0.1), 8 * i + s)
            calibration.append([f"im{i}", words(K), words(rotation), words((0.5 * i, 0.1 * i, 0.2))])
        pairs = [["pair", "covisibility", "fundamental_matrix"]]
        pairs += [["im1-im0", "0.5", words(np.eye(3))], ["im2-im0", "0.1", words(np.eye(3))]]
        pairs += [["im2-im1", "0.09", words(np.eye(3))]]
        for name, rows in (("calibration", calibration), ("pair_covisibility", pairs)):
            with (root / scene / f"{name}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(rows)
    (root / "scaling_factors.csv").write_text("scene,scaling_factor\narch,2.5\ntower,7\n")
    return tmp_path / "imc"


def test_training_pairs_are_read_as_published(training):
    pairs = training_pairs(training)
    assert [pair.key for pair in pairs] == ["arch:im1-im0", "arch:im2-im0", "tower:im1-im0", "tower:im2-im0"]
    assert [pair.metres_per_unit for pair in pairs] == [2.5, 2.5, 7, 7]
    assert pairs[0].source0.path.stem == "im1"
    # image 0 is key1: R = R0 R1ᵀ, t = T0 - R T1
    first, second = turn((0.2, 1, 0.1), 8), turn((0.2, 1, 0.1), 0)
    np.testing.assert_allclose(pairs[0].truth.rotation, second @ first.T, atol=1e-9)
    np.testing.assert_allclose(
        pairs[0].truth.translation, np.array([0, 0, 0.2]) - second @ first.T @ (0.5, 0.1, 0.2), atol=1e-9
    )
    assert len(training_pairs(training, subset=1)) == 2
    assert training_pairs(training, subset=1, seed=3)[0].key == training_pairs(training, subset=1, seed=3)[0].key


def test_the_oracle_scores_one_hundred_on_every_scene(training, tmp_path):
    report = run_session(Imc2022(), [Oracle(0.0)], training_pairs(training), data=training, out=tmp_path / "out")
    table = report.tables["imc2022"]
    assert [row[0] for row in table.rows] == ["arch", "tower", "mean of scenes"]
    for column in ("MAGSAC mAA", "fit mAA"):
        assert [row[table.columns.index(column)] for row in table.rows] == [100, 100, 100]


def test_a_folder_of_another_kind_says_so(tmp_path):
    with pytest.raises(ValueError, match="scaling_factors"):
        training_pairs(tmp_path)


# The submission


def two_depths(seed=0):
    """Left half near, right half far, the camera moved along (2, 1): two shifts, one epipolar direction."""
    noise = np.random.default_rng(seed).normal(0, 1, (SIZE[1], SIZE[0])).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2) + 2 * cv2.GaussianBlur(noise, (0, 0), 5)
    first = np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    near, far = (np.roll(first, (d // 2, d), axis=(0, 1)) for d in (40, 16))
    second = np.where(np.arange(SIZE[0]) < 320, near, far)
    return first, second.astype(np.uint8)


@pytest.fixture
def competition(tmp_path):
    data = tmp_path / "test"
    (data / "test_images/b1").mkdir(parents=True)
    first, second = two_depths()
    cv2.imwrite(str(data / "test_images/b1/x.png"), first)
    cv2.imwrite(str(data / "test_images/b1/y.png"), second)
    cv2.imwrite(str(data / "test_images/b1/blank.png"), np.full((50, 60), 7, np.uint8))
    (data / "test.csv").write_text(
        "sample_id,batch_id,image_1_id,image_2_id\n"
        "b1;x-y,b1,x,y\nb1;x-blank,b1,x,blank\nb1;x-missing,b1,x,missing\nb1;y-x,b1,y,x\n"
    )
    return data


def submitted(competition, out, *options):
    from click.testing import CliRunner

    from tiepoint.cli.submit import submit

    result = CliRunner().invoke(submit, ["imc2022", str(competition), "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    with out.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["sample_id", "fundamental_matrix"]
    return {row[0]: np.array(row[1].split(), float).reshape(3, 3) for row in rows[1:]}, result


@pytest.mark.parametrize("options", [(), ("--max-size", "400")])
def test_every_sample_has_a_row_and_f_is_in_original_pixels(competition, tmp_path, options):
    matrices, _ = submitted(competition, tmp_path / "submission.csv", *options)
    assert list(matrices) == ["b1;x-y", "b1;x-blank", "b1;x-missing", "b1;y-x"]
    points0 = np.array([[50.0, 60], [200, 300], [150, 200], [400, 60], [500, 300], [600, 400]])
    shifts = np.where(points0[:, :1] < 300, (40, 20), (16, 8))
    assert sampson_distance(matrices["b1;x-y"], points0, points0 + shifts).max() < 0.5
    assert sampson_distance(matrices["b1;y-x"], points0 + shifts, points0).max() < 0.5
    assert sampson_distance(matrices["b1;x-y"], points0, points0 - shifts[:, ::-1]).max() > 5
    np.testing.assert_array_equal(matrices["b1;x-blank"], FALLBACK)
    np.testing.assert_array_equal(matrices["b1;x-missing"], FALLBACK)
    assert np.linalg.matrix_rank(FALLBACK) == 2


def test_numbers_are_written_as_the_competition_prints_them(competition, tmp_path):
    submitted(competition, tmp_path / "submission.csv")
    fields = (tmp_path / "submission.csv").read_text().splitlines()[2].split(",")[1].split()
    assert fields[5] == "-1.00000000e+00"
    assert len(fields) == 9


def test_a_submission_resumes(competition, tmp_path):
    out = tmp_path / "submission.csv"
    first, _ = submitted(competition, out)
    (journal,) = (tmp_path / "submission.csv.pairs").iterdir()
    done = journal.read_text()
    again, result = submitted(competition, out)
    assert journal.read_text() == done
    assert "4 samples, 2 with the fallback matrix" in result.output
    for key, matrix in first.items():
        np.testing.assert_array_equal(matrix, again[key])


def test_a_table_of_another_kind_says_so(tmp_path):
    (tmp_path / "test.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="sample_id"):
        sample_pairs(tmp_path)


def test_a_submission_without_results_is_its_header():
    assert submission_csv([]) == "sample_id,fundamental_matrix\n"
    assert Submission().threshold_px == 0.2


# Pose


def test_epipolar_variants_by_hand():
    """Sideways motion: the distance of (x, y) and (x, y + d) is d in both images."""
    essential = cross_matrix([1.0, 0, 0])
    points0 = np.zeros((4, 2))
    points1 = np.array([[0.1, 0], [0.1, 0.0004], [0.1, 0.0157], [0.1, 0.0159]])
    squared = symmetric_epipolar_distance(essential, points0, points1)
    np.testing.assert_allclose(squared, 2 * points1[:, 1] ** 2)
    np.testing.assert_allclose(mean_epipolar_distance(essential, points0, points1), points1[:, 1])
    assert below(squared, 5e-4) == 0.75  # 2 * 0.0157² = 4.93e-4, 2 * 0.0159² = 5.06e-4
    assert below(squared, 1e-4) == 0.5
    assert below(mean_epipolar_distance(essential, points0, points1), 5e-4) == 0.5
    assert below(np.array([5e-4]), 5e-4) == 0


def test_normalised_points_by_hand():
    np.testing.assert_allclose(normalised(np.array([[1020, 240]], np.float32), K), [[1, 0]])


def test_pose_error_is_the_larger_angle_and_ignores_the_sign_of_the_translation():
    rotated = turn((0, 0, 1), 3) @ TRUTH.rotation
    across = np.cross(TRUTH.translation, (0, 0, 1))
    shifted = -turn(across, 5) @ TRUTH.translation
    assert pose_error_deg(rotated, TRUTH.translation, TRUTH) == pytest.approx(3)
    assert pose_error_deg(rotated, shifted, TRUTH) == pytest.approx(5)


@pytest.fixture
def pairs_file(tmp_path):
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((SIZE[1], SIZE[0]), 99, np.uint8))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = TRUTH.rotation, TRUTH.translation
    cameras = f"{words(K)} {words(K1)} {words(pose)}"
    (tmp_path / "pairs.txt").write_text(f"a.png b.png 0 0 {cameras}\na.png b.png 1 3 {cameras}\n")
    return tmp_path / "pairs.txt"


def test_oracles_on_pose(pairs_file, tmp_path):
    """True poses are found from turned pictures too; with noise precision is that of a Gaussian."""
    pairs = pose_pairs(pairs_file)
    assert pairs[1].source0.read().image.size == (480, 640)
    report = run_session(Pose(), [Oracle(0.0), Oracle(2.0)], pairs, data=pairs_file.parent, out=tmp_path / "out")
    exact, noisy = (dict(zip(report.tables["pose"].columns, row, strict=True)) for row in report.tables["pose"].rows)
    for column in ("OpenCV", "fit"):
        assert exact[f"{column} AUC@5/10/20"] == pytest.approx((100, 100, 100), abs=0.5)
    assert [exact[name] for name in ("P 5e-4", "P 1e-4", "P mean 5e-4")] == [100, 100, 100]
    assert noisy["MS 5e-4"] is None
    assert 5 < noisy["P mean 5e-4"] < 40  # 5e-4 is a third of a pixel


def test_too_few_matches_are_a_failure():
    few = Matches(
        points0=np.zeros((4, 2), np.float32),
        points1=np.zeros((4, 2), np.float32),
        scores=np.ones(4, np.float32),
        size0=SIZE,
        size1=SIZE,
        method="none",
    )
    assert opencv_pose(few, K, K1, threshold_px=1, seed=0) is None


def test_a_short_line_is_named(tmp_path):
    (tmp_path / "pairs.txt").write_text("a.png b.png 0 0\n")
    with pytest.raises(ValueError, match=r"pairs.txt:1: expected 38 words"):
        pose_pairs(tmp_path / "pairs.txt")


# Thresholds


def test_inliers_follow_the_threshold_and_magsacs_error_does_not(pairs_file, tmp_path):
    """With noise the count within small thresholds is in proportion to them; the pose stays as good."""
    pairs = pose_pairs(pairs_file)[:1]
    out = tmp_path / "out"
    report = run_session(
        Thresholds(model="fundamental"), [Oracle(1.0, count=400)], pairs, data=pairs_file.parent, out=out
    )
    inliers = {row[1]: np.array(row[2:], float) for row in report.tables["inliers"].rows}
    errors = {row[1]: np.array(row[2:], float) for row in report.tables["error"].rows}
    assert set(inliers) == set(ESTIMATORS)
    fine = [THRESHOLDS_PX.index(t) for t in (0.2, 0.1, 0.05)]
    assert inliers["magsac"][fine[0]] / inliers["magsac"][fine[2]] == pytest.approx(4, rel=0.35)
    assert errors["magsac"][fine].max() < 1
    assert len(report.figures["thresholds_oracle_noise_1_px"]) == 2


def test_two_images_without_a_truth(competition, tmp_path):
    images = competition / "test_images/b1"
    from tiepoint.evaluation.contestants import CatalogueMethod
    from tiepoint.matchers import MatcherOptions

    report = run_session(
        Thresholds(model="homography"),
        [CatalogueMethod("orb", MatcherOptions(max_num_keypoints=500))],
        [image_pair(images / "x.png", images / "y.png")],
        data=images,
        out=tmp_path / "out",
    )
    assert list(report.tables) == ["inliers", "failed"]
    assert len(report.figures["thresholds_orb"]) == 1
