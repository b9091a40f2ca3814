"""Which photographs of a set are matched with which."""

import os

import pytest

from tiepoint.sets.pairs import all_pairs, listed_pairs, photograph_names, window_pairs

NAMES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def test_names_are_paths_below_the_folder(tmp_path):
    for name in ("b.JPG", "sub/a.png", "notes.txt", ".hidden/c.png", "sub/.d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert photograph_names(tmp_path) == ["b.JPG", "sub/a.png"]
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "out" / "c.png").parent.mkdir()
    (tmp_path / "out" / "c.png").touch()
    assert photograph_names(tmp_path, leave_out=tmp_path / "out") == ["b.JPG", "sub/a.png"]
    assert photograph_names(tmp_path, leave_out=tmp_path) == ["b.JPG", "out/c.png", "sub/a.png"]
    (tmp_path / "out" / "c.png").unlink()
    (tmp_path / "b.JPG").unlink()
    with pytest.raises(ValueError, match="at least two photographs, found 1"):
        photograph_names(tmp_path)


def test_a_name_that_is_no_text_is_told(tmp_path):
    (tmp_path / "a.jpg").touch()
    try:
        (tmp_path / os.fsdecode(b"b\xe9.jpg")).touch()
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    with pytest.raises(ValueError, match="is no name in UTF-8; rename"):
        photograph_names(tmp_path)


def test_all_and_window():
    assert len(all_pairs(NAMES)) == 6
    assert window_pairs(NAMES, 1) == [("a.jpg", "b.jpg"), ("b.jpg", "c.jpg"), ("c.jpg", "d.jpg")]
    assert set(window_pairs(NAMES, 9)) == set(all_pairs(NAMES))


def test_a_listed_pair_is_taken_once(tmp_path):
    file = tmp_path / "pairs.txt"
    file.write_bytes("\ufeffc.jpg a.jpg\r\n\r\n# a comment\r\na.jpg c.jpg\r\na.jpg b.jpg\r\n".encode())
    assert listed_pairs(file, NAMES) == [("c.jpg", "a.jpg"), ("a.jpg", "b.jpg")]


@pytest.mark.parametrize("line", ["a.jpg", "a.jpg none.jpg", "a.jpg a.jpg", "a.jpg b.jpg c.jpg"])
def test_a_line_that_is_no_pair_is_named(tmp_path, line):
    file = tmp_path / "pairs.txt"
    file.write_text(f"a.jpg b.jpg\n{line}\n")
    with pytest.raises(ValueError, match=r"pairs\.txt, line 2: expected two photographs' names"):
        listed_pairs(file, NAMES)


def test_a_list_in_another_encoding_is_named(tmp_path):
    file = tmp_path / "pairs.txt"
    file.write_text("a.jpg b.jpg", encoding="utf-16")
    with pytest.raises(ValueError, match=r"pairs\.txt: is no text in UTF-8"):
        listed_pairs(file, NAMES)
