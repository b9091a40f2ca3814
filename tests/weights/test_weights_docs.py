"""docs/weights.md lists every named checkpoint, and rightly."""

import re
from pathlib import Path

from tiepoint.weights import WEIGHTS

PAGE = Path(__file__).parents[2] / "docs/weights.md"


def rows():
    """The cells of the table: names, method, licence, commercial use."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell):
    """The names a row is about; what stands in brackets is said of them."""
    return re.findall(r"`([^`]+)`", re.sub(r"\(.*?\)", "", cell))


def test_the_table_is_the_catalogue():
    listed = [name for row in rows() for name in names(row[0])]
    assert sorted(listed) == sorted(WEIGHTS)


def test_the_table_says_what_the_catalogue_says():
    for first, method, licence, commercial in rows():
        for name in names(first):
            entry = WEIGHTS[name]
            assert method.replace("`", "") == entry.method
            assert licence.split(",")[0].split(":")[0] in entry.licence
            assert commercial == ("yes" if entry.commercial_use else "no")
            assert ("shipped" in first) == entry.shipped
            assert ("by hand" in first) == (entry.url is None and not entry.shipped)
