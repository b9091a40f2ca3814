"""The training photographs whose licence is verified free, as a folder of links: what shipped weights come from.

    python benchmarks/free_photographs.py ../shared/data/train ../photos-free

The rest may be used for research only, or their terms are not verified.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

FREE_SETS = {
    "grocery_pack": "MIT",
    "grocery_fv": "MIT",
    "aerial": "BSD-2-Clause",
    "popos": "public domain",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with manifest.csv, columns file and source_set")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    with (arguments.data / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["source_set"] in FREE_SETS]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        link = arguments.out / row["file"]
        if not link.exists():
            link.symlink_to((arguments.data / row["file"]).resolve())
    with (arguments.out / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} photographs in {arguments.out}")


if __name__ == "__main__":
    main()
