"""The report in a real browser: nothing is loaded, nothing is wider than a phone, light and dark are both there.

Needs Chromium (Debian: `apt-get install chromium`); what can be told from the HTML alone is in test_reports.py.
"""

import html
import json
import re
import shutil
import subprocess

import matplotlib.image
import pytest
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.compare.compare import compare
from spikeexport.write_portable import write_portable

from tests.naive_plan import naive_plan

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
EXCLUDED = "model.layers.2.mlp.down_proj"
PHONE, LAPTOP = 390, 1280

# The report stands in a frame, since a browser's own window cannot be as narrow as a phone.
FRAME = """<!doctype html><style>body{{margin:0}}iframe{{border:0}}</style>
<iframe id="page" width="{width}" height="900" srcdoc="{page}"></iframe><pre id="found"></pre>
<script>
document.getElementById("page").onload = event => {{
  const page = event.target.contentDocument, root = page.documentElement;
  const wide = [...page.querySelectorAll("main *")].filter(one => one.getBoundingClientRect().right > {width} + 1
    && !one.closest(".panel, figure.wide > div"));
  document.getElementById("found").textContent = JSON.stringify({{
    scroll: root.scrollWidth, wide: wide.map(one => one.tagName + "." + one.className),
    loaded: event.target.contentWindow.performance.getEntriesByType("resource").map(one => one.name),
    text: page.body.innerText, plots: [...page.querySelectorAll("svg")].map(one => one.getBoundingClientRect().height),
  }});
}};
</script>"""


@pytest.fixture(scope="module")
def browser():
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    return found


@pytest.fixture(scope="module")
def report(tiny_llama_folder, sample_text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    checkpoint = open_checkpoint(tiny_llama_folder)
    write_portable(checkpoint, naive_plan(checkpoint, exclude=(EXCLUDED,)), {}, folder / "int8.onnx", dtype="fp32")
    settings = {"windows": 3, "seqlen": 96, "noise": True, "html": folder / "report.html"}
    compare(folder / "int8.onnx", tiny_llama_folder, str(sample_text_file), **settings)
    return folder / "report.html"


def framed(report, width, folder):
    page = html.escape(report.read_text(encoding="utf-8"), quote=True)
    path = folder / f"{width}.html"
    path.write_text(FRAME.format(width=width, page=page), encoding="utf-8")
    return path


def run(browser, page, folder, *arguments):
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *arguments]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("width", [PHONE, LAPTOP])
def test_everything_fits_and_nothing_is_loaded(browser, report, tmp_path, width):
    dom = run(browser, framed(report, width, tmp_path), tmp_path, "--dump-dom", f"--window-size={LAPTOP},900")
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.+?)</pre>', dom, re.DOTALL)[1]))
    assert found["scroll"] <= width
    assert found["wide"] == []
    assert found["loaded"] == []
    assert len(found["plots"]) == 7
    assert min(found["plots"]) > 80
    for words in (
        "Spikes, before and after",
        "Error by layer",
        "KL by position",
        "Greedy continuations",
        "Noise floor",
    ):
        assert words in found["text"], words


def test_light_and_dark(browser, report, tmp_path):
    brightness = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        picture = tmp_path / f"{scheme}.png"
        scheme_flag = f"--blink-settings=preferredColorScheme={number}"
        run(browser, report, tmp_path, f"--screenshot={picture}", scheme_flag, f"--window-size={LAPTOP},900")
        pixels = matplotlib.image.imread(picture)[..., :3]
        assert pixels.std() > 0.02, "an empty page"
        brightness[scheme] = pixels.mean()
    assert brightness["dark"] < 0.3 < 0.8 < brightness["light"]
