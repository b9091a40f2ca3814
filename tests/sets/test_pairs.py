"""Which photographs of a set are matched with which."""

import pytest

from tiepoint.sets.pairs import all_pairs, listed_pairs, photograph_names, window_pairs

NAMES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def test_names_are_paths_below_the_folder(tmp_path):
    for name in ("b.JPG", "sub/a.png", "notes.txt", ".hidden/c.png", "sub/.d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert photograph_names(tmp_path) == ["b.JPG", "sub/a.png"]
    (tmp_path / "b.JPG").unlink()
    with pytest.raises(ValueError, match="at least two photographs, found 1"):
        photograph_names(tmp_path)


def test_all_and_window():
    assert len(all_pairs(NAMES)) == 6
    assert window_pairs(NAMES, 1) == [("a.jpg", "b.jpg"), ("b.jpg", "c.jpg"), ("c.jpg", "d.jpg")]
    assert set(window_pairs(NAMES, 9)) == set(all_pairs(NAMES))


def test_a_listed_pair_is_taken_once(tmp_path):
    file = tmp_path / "pairs.txt"
    file.write_text("c.jpg a.jpg\n\na.jpg c.jpg\na.jpg b.jpg\n")
    assert listed_pairs(file, NAMES) == [("c.jpg", "a.jpg"), ("a.jpg", "b.jpg")]


@pytest.mark.parametrize("line", ["a.jpg", "a.jpg none.jpg", "a.jpg a.jpg", "a.jpg b.jpg c.jpg"])
def test_a_line_that_is_no_pair_is_named(tmp_path, line):
    file = tmp_path / "pairs.txt"
    file.write_text(f"a.jpg b.jpg\n{line}\n")
    with pytest.raises(ValueError, match=r"pairs\.txt, line 2: expected two photographs' names"):
        listed_pairs(file, NAMES)
