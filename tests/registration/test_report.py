"""The report as a file, and as a page driven in Chromium."""

import html
import re
import shutil
import subprocess
import tracemalloc

import cv2
import numpy as np
import pytest

from tiepoint.images import Image
from tiepoint.registration.records import unreadable_record
from tiepoint.registration.report import COLUMNS, MAX_NUM_PICTURES, write_report

TEMPLATE = Image(np.full((90, 120), 128, np.uint8))
HOSTILE = '"><img src=x onerror=alert(1)>\u202egpj.exe\udcff.jpg'


def accepted(name, *, bound=0.1, shift=(1.0, 2.0), turn=0.5, scale=1.0):
    return unreadable_record(name, "") | {
        "status": "accepted",
        "reasons": [],
        "method": "sift",
        "model": "homography",
        "matrix_template_from_source": np.eye(3).tolist(),
        "num_matches": 300,
        "num_inliers": 250,
        "residual_px": 0.5,
        "predicted_error_px": bound / 2,
        "error_bound95_px": bound,
        "similarity_before": 0.1,
        "similarity_after": 0.9,
        "shift_px": list(shift),
        "rotation_deg": turn,
        "scale": scale,
        "aligned": f"aligned/{name}",
        "checks": [{"name": "inliers", "value": 250, "limit": 10, "passed": True, "message": "only 250"}],
    }


def rejected(name, *reasons):
    checks = [{"name": "support", "value": None, "limit": 8, "passed": False, "message": "chance"}]
    return unreadable_record(name, "") | {
        "status": "rejected",
        "method": "sift",
        "reasons": list(reasons),
        "checks": checks,
    }


RECORDS = [
    accepted("b10.jpg", bound=0.3, shift=(5, 1)),
    accepted("b9.jpg", bound=0.1, shift=(-7, 2)),
    rejected("lonely.jpg", "only 4 points agree", "could be chance"),
    accepted("b2.jpg", bound=0.2, shift=(30, 3)),
    unreadable_record(HOSTILE, "is empty (0 bytes)"),
]


def strip(seed=0, width=960, height=240):
    rng = np.random.default_rng(seed)
    picture = cv2.GaussianBlur(rng.integers(0, 255, (height, width, 3), np.uint8), (0, 0), 1.5)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 70])[1].tobytes()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, iter(RECORDS), TEMPLATE, lambda index: strip(index) if index != 4 else None)
    return path


def names(page):
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    return [html.unescape(name) for name in re.findall(r'<td class="text"><bdi>(.*?)</bdi>', body)]


def test_rejected_come_first_then_the_largest_error(report):
    order = names(report.read_text())
    assert order[0] == "lonely.jpg"
    assert order[2:] == ["b10.jpg", "b2.jpg", "b9.jpg"]


def test_the_page_needs_nothing_from_outside(report):
    page = report.read_text()
    markup = page[: page.index("<script>")]
    for address in re.findall(r'<[^>]* (?:src|href|data-template)="([^"]*)', markup):
        assert address.startswith("data:image/jpeg;base64,"), address[:80]
    assert "<link" not in markup
    assert "url(" not in markup
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page


def test_hostile_names_are_text(report):
    page = report.read_text()
    assert "<img src=x" not in page
    assert names(page)[1] == HOSTILE.replace("\udcff", "?")


def test_numbers_reasons_and_counts_are_there(report):
    page = report.read_text()
    assert "5 sources" in page
    assert "3 accepted" in page
    assert "only 4 points agree" in page
    assert 'data-v="0.3">0.300' in page
    assert page.count("<svg") == 5
    assert "x shift: from -7.0 to 30.0, median 5.0" in page


def test_a_run_of_one_or_of_none_accepted_or_of_nothing(tmp_path):
    for records in ([RECORDS[0]], [RECORDS[2]], []):
        write_report(tmp_path / "report.html", records, TEMPLATE)
        page = (tmp_path / "report.html").read_text()
        assert len(names(page)) == len(records)
        assert f"{len(records)} source" in page


def test_the_folder_that_all_share_is_named_once(tmp_path):
    paths = ["/data/line 3/left/a.jpg", "/data/line 3/left/b.jpg", "/data/line 3/large/a.jpg"]
    write_report(tmp_path / "report.html", map(accepted, paths), TEMPLATE)
    page = (tmp_path / "report.html").read_text()
    assert sorted(names(page)) == ["large/a.jpg", "left/a.jpg", "left/b.jpg"]
    assert "sources in <bdi>/data/line 3/</bdi>" in page


def test_one_value_for_all_makes_a_histogram_too(tmp_path):
    write_report(tmp_path / "report.html", [accepted("a.jpg", turn=-0.0), accepted("b.jpg", turn=0.0)], TEMPLATE)
    page = (tmp_path / "report.html").read_text()
    assert "median 0.00" in page
    assert "-0.00<" not in page


def test_the_same_run_gives_the_same_bytes(report, tmp_path):
    write_report(tmp_path / "again.html", RECORDS, TEMPLATE, lambda index: strip(index) if index != 4 else None)
    assert (tmp_path / "again.html").read_bytes() == report.read_bytes()


def test_many_sources_have_bounded_pictures_rows_and_memory(tmp_path):
    strips = [strip(seed, 288, 72) for seed in range(5)]
    asked = []

    def thumbnails_of(index):
        asked.append(index)
        return strips[index % 5]

    def records():
        for index in range(12_000):
            yield accepted(f"board_{index:05}.jpg", bound=0.1 + index / 1e5)

    tracemalloc.start()
    write_report(tmp_path / "report.html", records(), TEMPLATE, thumbnails_of)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    page = (tmp_path / "report.html").read_text()
    assert len(names(page)) == 10_000
    assert "12000 accepted" in page
    assert asked == list(range(11_999, 11_999 - MAX_NUM_PICTURES, -1))
    assert page.count("data:image/jpeg") == MAX_NUM_PICTURES + 1
    assert len(page) < 30e6
    assert peak < 70e6


def test_a_thousand_pictures_stay_light(tmp_path):
    strips = [strip(seed) for seed in range(5)]
    records = (accepted(f"board_{index:05}.jpg", bound=0.1 + index / 1e5) for index in range(1000))
    write_report(tmp_path / "report.html", records, TEMPLATE, lambda index: strips[index % 5])
    assert (tmp_path / "report.html").stat().st_size < 15e6


# In a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not on PATH (Debian: apt-get install chromium)")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        " --disable-component-update --disable-sync --dump-dom --virtual-time-budget=4000 --window-size=1500,950"
    )

    def page_after(path, address="", script=""):
        """The page's HTML after `script` ran in it."""
        if script:
            copy = tmp_path_factory.mktemp("driven") / "report.html"
            copy.write_text(path.read_text().replace("</body>", f"<script>{script}</script></body>"))
            path = copy
        profile = tmp_path_factory.mktemp("profile")
        command = [program, *flags.split(), f"--user-data-dir={profile}", f"{path.as_uri()}{address}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done.stdout

    return page_after


def shown_names(page):
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    rows = re.findall(r"<tr (.*?)>.*?<bdi>(.*?)</bdi>", body, re.DOTALL)
    return [html.unescape(name) for attributes, name in rows if 'hidden=""' not in attributes]


def element(page, name):
    """The attributes of the element with the id `name`."""
    return re.search(rf'<[a-z]+ [^>]*id="{name}"[^>]*>', page)[0]


PRESS = "const press = (key) => document.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));"


def test_the_page_opens_on_the_first_rejected(report, chromium):
    page = chromium(report)
    assert '<bdi id="name">lonely.jpg</bdi>' in page
    assert "only 4 points agree</div>" in page
    assert "could be chance</div>" in page
    assert "5 of 5 shown" in page


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("#sort=bound&status=accepted", ["b9.jpg", "b2.jpg", "b10.jpg"]),
        ("#sort=x&down&status=accepted", ["b2.jpg", "b10.jpg", "b9.jpg"]),
        ("#sort=source&status=accepted", ["b2.jpg", "b9.jpg", "b10.jpg"]),
        ("#filter=could+chance", ["lonely.jpg"]),
        ("#sort=bound&down&filter=jpg+B&status=accepted", ["b10.jpg", "b2.jpg", "b9.jpg"]),
    ],
)
def test_sorting_and_filtering_by_address(report, chromium, address, expected):
    assert [name for name in shown_names(chromium(report, address)) if name != names_hostile()] == expected


def names_hostile():
    return HOSTILE.replace("\udcff", "?")


def test_rows_without_a_value_are_last_both_ways(report, chromium):
    for address in ("#sort=bound", "#sort=bound&down"):
        assert set(shown_names(chromium(report, address))[3:]) == {"lonely.jpg", names_hostile()}


def test_clicking_a_head_sorts_and_clicking_again_turns_round(report, chromium):
    click = "document.querySelector('th[data-key=x] button').click();"
    page = chromium(report, script=click)
    assert shown_names(page)[:3] == ["b2.jpg", "b10.jpg", "b9.jpg"]
    assert 'aria-sort="descending"' in page
    page = chromium(report, script=2 * click)
    assert shown_names(page)[:3] == ["b9.jpg", "b10.jpg", "b2.jpg"]
    assert 'aria-sort="ascending"' in page


def test_typing_into_the_filter(report, chromium):
    typed = "filter.value = 'B9'; filter.dispatchEvent(new Event('input'));"
    page = chromium(report, script=f"const filter = document.getElementById('filter'); {typed}")
    assert shown_names(page) == ["b9.jpg"]
    assert "1 of 5 shown" in page


def test_keys_move_through_the_rows_and_the_views(report, chromium):
    page = chromium(report, script=f"{PRESS} press('ArrowDown'); press('ArrowDown'); press('ArrowRight');")
    assert '<bdi id="name">b10.jpg</bdi>' in page
    assert "--cut: 55%" in element(page, "stage")
    assert 'href="aligned/b10.jpg"' in page
    assert "background-position: 50% 0" in element(page, "over")
    page = chromium(report, script=f"{PRESS} press('j'); press('j'); press('r'); press('t');")
    assert 'data-mode="residuals"' in element(page, "stage")
    assert "background-position: 100% 0" in element(page, "over")
    assert 'class="whole"' in element(page, "under")


def test_the_flicker_shows_one_and_the_other(report, chromium):
    watch = """
      const seen = new Set();
      const look = () => seen.add(getComputedStyle(document.getElementById('over')).visibility);
      setInterval(() => { look(); document.title = [...seen].sort().join(' '); }, 100);
    """
    page = chromium(report, script=f"{PRESS} press('f'); {watch}")
    assert "<title>hidden visible</title>" in page


def test_no_script_of_a_file_name_runs(report, chromium):
    page = chromium(report, script=f"{PRESS} press('ArrowDown');")
    assert html.escape(names_hostile(), quote=False) in page[page.index('id="name"') :]
    assert '<img src="x"' not in page


def test_every_column_can_be_sorted(report, chromium):
    script = "document.querySelectorAll('th button').forEach((b) => b.click()); document.title = 'done';"
    page = chromium(report, script=script)
    assert "<title>done</title>" in page
    assert page.count("data-key=") >= len(COLUMNS) + 2
