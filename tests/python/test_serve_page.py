"""The web page of `pmill serve` in headless Chromium. PMILL_PICTURES=FOLDER keeps pictures of it."""

import os
import re
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import browser
import cluster
import pmill
from test_serve import Server, corpus

pytestmark = pytest.mark.skipif(browser.find() is None, reason="Chromium is not installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    texts = pmill.write(folder / "corpus" / "a.parquet", corpus(1))
    pmill.score(pmill.count(folder / "wh", "captions", texts, "TEXT"))
    odd = pmill.write(folder / "odd.parquet", ["<b>bold</b> & café", "<b>bold</b> & café dog", "dog 犬"])
    pmill.score(pmill.count(folder / "wh", "odd", odd, "TEXT", "--tokenizer", "whitespace"))
    pmill.count(folder / "wh", "plain", odd, "TEXT")
    rows = {"TEXT": ["dog cat", "dog bird", "dog bird", "dog fish"], "Year": ["2023", "2024", "2024", None]}
    pq.write_table(pa.table(rows), folder / "years.parquet")
    pmill.score(pmill.count(folder / "wh", "years", folder / "years.parquet", "TEXT", "--slice", "Year"))
    with Server(folder / "wh", "--health", "127.0.0.1:0", "--threads", "2") as server:
        yield f"http://{server.health}"


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser.Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(window, address, request):
    """The window at a path; afterwards nobody has complained."""
    window.complaints.clear()
    window.size(1100)

    def go(path):
        window.open(address + path)
        return window

    yield go
    if folder := os.environ.get("PMILL_PICTURES"):
        name = re.sub(r"[^a-z0-9]+", "-", request.node.name)
        window.picture(Path(folder) / f"{name}.png")
    # An answer that is no page for the word is told with its status.
    assert [c for c in window.complaints if "status of 400" not in str(c)] == []


TEXT = "document.body.innerText"
# Letters on what is behind them, by WCAG's formula; the smallest of the page.
CONTRAST = """
(() => {
  const part = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = rgb => 0.2126 * part(rgb[0]) + 0.7152 * part(rgb[1]) + 0.0722 * part(rgb[2]);
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  let least = [21, ''];
  for (const node of document.querySelectorAll('body *')) {
    if (![...node.childNodes].some(child => child.nodeType === 3 && child.data.trim())) continue;
    const style = getComputedStyle(node);
    const ink = light(parse(node.closest('svg') ? style.fill : style.color)), paper = light(behind(node));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < least[0]) least = [ratio, node.outerHTML.slice(0, 80)];
  }
  return least;
})()
"""


def rows(window):
    cells = "[...document.querySelectorAll('#neighbours tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    return window.run(cells)


def test_a_word_is_asked_for_with_the_keyboard_alone(page):
    window = page("/?job=captions")
    # The browser moves the focus there a little after the page has been loaded.
    assert cluster.wait_for(lambda: window.run("document.activeElement.name") == "word", seconds=10, pause=0.05)
    window.type("w3")
    window.loaded(lambda: window.press("Enter"))
    assert "Neighbours of w3" in window.run(TEXT)
    assert window.run("document.title") == "w3 – pmill"
    assert len(rows(window)) == 50
    # From the word to the button, then past the plot to the first neighbour.
    for _ in range(3):
        window.press("Tab")
    assert window.run("document.activeElement.tagName") == "BUTTON"
    for _ in range(3):
        window.press("Tab")
    first = window.run("document.activeElement.innerText")
    assert first == rows(window)[0][0]
    window.loaded(lambda: window.press("Enter"))
    assert f"Neighbours of {first}" in window.run(TEXT)


def test_the_plot_has_a_point_and_an_interval_for_each_neighbour(page):
    window = page("/?job=captions&word=w3")
    drawn = window.run("document.querySelectorAll('svg circle').length")
    shown = [row for row in rows(window) if row[3] != "–"]
    assert drawn == len(shown) == 50
    for row in shown:
        low, high, pmi = (float(row[at].replace("\N{MINUS SIGN}", "-")) for at in (4, 5, 3))
        assert low <= pmi <= high
    # Nothing is drawn outside, and no words lie on each other.
    assert window.run("""(() => {
        const box = node => node.getBoundingClientRect(), frame = box(document.querySelector('svg'));
        return [...document.querySelectorAll('svg text, svg circle')].every(node => {
            const b = box(node);
            return b.left >= frame.left - 1 && b.right <= frame.right + 1 && b.top >= frame.top - 1 && b.bottom <= frame.bottom + 1;
        });
    })()""")
    overlaps = window.run("""(() => {
        const boxes = [...document.querySelectorAll('svg text')].map(node => [node.getBoundingClientRect(), node.textContent]);
        const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 4 && b.top < a.bottom - 4;
        const found = [];
        boxes.forEach(([a, x], i) => boxes.slice(i + 1).forEach(([b, y]) => { if (meet(a, b)) found.push([x, y]); }));
        return found;
    })()""")
    assert overlaps == []


@pytest.mark.parametrize("order, column", [("npmi", 2), ("low", 4), ("count", 1)])
def test_neighbours_come_in_the_order_that_was_asked_for(page, order, column):
    window = page(f"/?job=captions&word=w3&least=2&order={order}")
    numbers = [float(row[column].replace("\N{MINUS SIGN}", "-").replace(",", "")) for row in rows(window)]
    assert numbers == sorted(numbers, reverse=True) and len(numbers) > 5
    assert all(float(row[1].replace(",", "")) >= 2 for row in rows(window))
    assert window.run("document.querySelector('select[name=order]').value") == order


def test_an_unknown_word_is_told_with_words_that_begin_alike(page):
    window = page("/?job=captions&word=w33x")
    text = window.run(TEXT)
    assert "no w33x" in text and "begin alike" in text
    assert "w33" in window.run("[...document.querySelectorAll('.message a')].map(a => a.innerText)")
    assert rows(window) == []


def test_a_word_without_pairs_as_frequent_as_asked_is_told(page):
    window = page("/?job=captions&word=w3&least=100000")
    assert "no word at least 100,000 times" in window.run(TEXT)


def test_a_job_without_scores_says_what_to_do(page):
    window = page("/?job=plain&word=dog")
    assert "pmill score --name plain" in window.run(TEXT)
    assert window.run("document.querySelector('[role=alert]') !== null")


def test_a_job_of_slices_shows_one_of_them(page):
    window = page("/?job=years&word=dog&slice=is%3A2024")
    assert [row[:2] for row in rows(window)] == [["bird", "2"]]
    assert "Counted 2 times, in 2 rows" in window.run(TEXT)
    options = "[...document.querySelectorAll('[name=slice] option')].map(o => [o.innerText, o.selected])"
    assert window.run(options) == [["NULL", False], ["2023", False], ["2024", True]]
    assert "slice=is%3A2024" in window.run("document.querySelector('#neighbours a').getAttribute('href')")
    # The first, when none is asked for, or one that the job does not have.
    for path in ("/?job=years&word=dog", "/?job=years&word=dog&slice=null", "/?job=years&word=dog&slice=is%3A1999"):
        assert [row[:2] for row in rows(page(path))] == [["fish", "1"]]
    assert window.run("document.querySelector('[name=slice]').value") == "null"
    page("/?job=captions&word=dog")
    assert window.run("document.querySelector('[name=slice]')") is None


def test_settings_and_sources_unfold(page):
    window = page("/?job=captions&word=w3")
    hidden = window.run("document.querySelector('details pre').checkVisibility()")
    window.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    text = window.run(TEXT)
    assert not hidden and '"kind": "document"' in text and "a.parquet" in text and "3,000" in text


def test_odd_words_are_shown_and_linked_as_they_are(page):
    window = page("/?job=odd&word=" + quote("<b>bold</b>"))
    assert "Neighbours of <b>bold</b>" in window.run(TEXT)
    words = [row[0] for row in rows(window)]
    assert {"&", "café"} <= set(words)
    window.loaded(lambda: window.run("[...document.querySelectorAll('td a')].find(a => a.innerText === '&').click()"))
    assert "Neighbours of &" in window.run(TEXT)


@pytest.mark.parametrize("path", ["/", "/?job=captions&word=w3", "/?job=captions&word=nobody", "/?job=plain&word=dog"])
def test_pages_fit_a_narrow_window_and_can_be_read(page, path):
    window = page(path)
    window.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    ratio, where = window.run(CONTRAST)
    assert ratio >= 4.5, where
    window.size(360)
    assert window.run("document.documentElement.scrollWidth") <= 360
    # Every field has a name, and the headings come in order.
    assert window.run("[...document.querySelectorAll('input, select')].every(field => field.labels.length === 1)")
    assert window.run("document.querySelectorAll('h1').length") == 1
