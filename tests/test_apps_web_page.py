"""The page of `lotus-edge web` in Chromium, by Playwright. With LOTUS_EDGE_SCREENSHOTS=docs the
pictures of docs/serve.md are taken, of the bundle LOTUS_EDGE_DEMO (default: engines/demo).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import ROOT, write_null_bundle
from PIL import Image

from runtime.writing import machine_tag

pytest.importorskip("gradio", reason="extra `web`")
playwright = pytest.importorskip("playwright.sync_api", reason="extra `dev`")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DEMO = Path(os.environ.get("LOTUS_EDGE_DEMO", ROOT / "engines" / "demo"))
SCREENSHOTS = os.environ.get("LOTUS_EDGE_SCREENSHOTS")
SIZES = {"web": (1440, 1000), "web-phone": (390, 844)}
_OPTIONS = ("--port", "0", "--max-pixels", "9000000", "--max-bytes", "3000000")
# No GPU: WebGL in software.
_BROWSER = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]


class Site(NamedTuple):
    """A running page: its address, and the folder in which all its files lie."""

    url: str
    folder: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    if DEMO.is_dir():
        bundle = DEMO
    else:
        bundle = write_null_bundle(folder / "null", task=("disparity", "normal"))
    code = "import os; print(os.getpid())"
    gone = int(subprocess.check_output([sys.executable, "-c", code]))
    killed = folder / "tmp" / f"lotus-edge-scratch-{machine_tag()}-{gone}-abc"
    (killed / "gradio").mkdir(parents=True)  # of a server that was killed
    samples = [ROOT / "tiny" / "samples" / name for name in ("room.png", "outdoor.png")]
    (folder / "examples").mkdir()
    for path in samples:
        shutil.copy(path, folder / "examples")
    command = [sys.executable, "-m", "apps", "web", str(bundle), *_OPTIONS]
    process = subprocess.Popen(
        [*command, "--examples", str(folder / "examples")],
        cwd=ROOT,
        env=dict(os.environ, TMPDIR=str(folder / "tmp")),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    while not (found := re.search(r"http://127\.0\.0\.1:\d+", said)):
        line = process.stderr.readline()
        assert line, said
        said += line
    yield Site(found[0], folder / "tmp")
    process.send_signal(signal.SIGTERM)
    rest = process.communicate()[1]
    assert process.returncode == 0, rest
    assert "Traceback" not in rest, rest
    assert list((folder / "tmp").iterdir()) == [], "nothing stays when the server ends"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(_BROWSER))
        yield browser
        browser.close()


@pytest.fixture
def page(site: Site, browser: Any) -> Iterator[Any]:
    context = browser.new_context(
        viewport=dict(zip(("width", "height"), SIZES["web"], strict=True))
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(site.url)
    yield page
    context.close()


playwright.expect.set_options(timeout=60_000)


def give(page: Any, path: Path) -> None:
    """Upload a photo."""
    page.locator("#photo input[type=file]").set_input_files(str(path))


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def wait_for_all(page: Any) -> None:
    """Until every output is there: two pictures under the slider, normals, a scene, files."""
    expect = playwright.expect
    expect(page.locator("#slider img").nth(1)).to_be_visible()
    expect(page.locator("#normal img")).to_be_visible()
    expect(page.locator("#scene canvas")).to_be_visible()
    expect(page.locator("#downloads a").first).to_be_visible()
    expect(page.locator("#words")).to_contain_text("Red is near")
    page.wait_for_function(
        "[...document.querySelectorAll('#slider img, #normal img')].every(i => i.naturalWidth > 0)"
    )


def test_a_photo_becomes_maps_a_scene_and_files(page: Any, site: Site, tmp_path: Path) -> None:
    give(page, ROOT / "tiny" / "samples" / "room.png")
    wait_for_all(page)
    playwright.expect(page.locator("#words .ran")).to_contain_text(re.compile(r": \d+ ms"))
    names = page.locator("#downloads a").evaluate_all("all => all.map(a => a.download)")
    assert {"mesh.glb", "cloud.ply", "maps.npz", "depth.exr", "disparity.png"} <= set(names)
    for name, check in (
        ("mesh.glb", lambda path: path.read_bytes()[:4] == b"glTF"),
        ("disparity.npy", lambda path: np.load(path).shape == (256, 256)),
        ("normal.png", lambda path: size_of(path) == (256, 256)),
    ):
        with page.expect_download() as download:
            page.locator(f'#downloads a[download="{name}"]').first.click()
        download.value.save_as(tmp_path / name)
        assert check(tmp_path / name), name
    hosts = {re.match(r"\w+:(//[^/]*)?", url)[0] for url in page.asked}
    assert hosts <= {site.url, "data:", "blob:"}, "the page loads nothing from elsewhere"
    # Another field of view, another scene.
    before = page.locator('#downloads a[download="mesh.glb"]').first.get_attribute("href")
    slider = page.locator("#fov input[type=range]")
    assert float(slider.input_value()) == 60
    slider.focus()
    for _ in range(8):
        slider.press("ArrowRight")
    slider.dispatch_event("pointerup")
    page.wait_for_function(
        "before => document.querySelector('#downloads a[download=\"mesh.glb\"]')?.href"
        " && !document.querySelector('#downloads a[download=\"mesh.glb\"]').href.endsWith(before)",
        arg=before,
    )
    wait_for_all(page)
    # What is there of a visitor goes with the page.
    assert list(site.folder.rglob("visit-*"))
    page.close()
    end = time.monotonic() + 20
    while list(site.folder.rglob("visit-*")) and time.monotonic() < end:
        time.sleep(0.1)
    assert list(site.folder.rglob("visit-*")) == []


def test_an_example(page: Any) -> None:
    page.locator("#left .gallery-item, #left .gallery button").first.click()
    wait_for_all(page)


def test_what_cannot_be_used_is_said_in_words(page: Any, tmp_path: Path) -> None:
    toast = page.locator(".toast-body").last
    text = tmp_path / "letter.png"
    text.write_text("Dear network, this is no picture. " * 20)
    give(page, text)
    playwright.expect(toast).to_contain_text("not a picture of a known format")
    page.reload()
    Image.new("1", (4000, 4000)).save(tmp_path / "huge.png")
    give(page, tmp_path / "huge.png")
    playwright.expect(toast).to_contain_text("16,000,000 pixels")
    page.reload()
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "heavy.png")
    give(page, tmp_path / "heavy.png")
    playwright.expect(toast).to_contain_text(re.compile("size|large", re.IGNORECASE))
    page.reload()
    (tmp_path / "letter.txt").write_text("Dear network")
    give(page, tmp_path / "letter.txt")
    playwright.expect(toast).to_contain_text(re.compile("image|file type", re.IGNORECASE))


@pytest.mark.parametrize("name", SIZES)
def test_it_looks_right(name: str, site: Site, browser: Any, tmp_path: Path) -> None:
    """Nothing is wider than the screen; the picture goes into the documents where asked."""
    width, height = SIZES[name]
    context = browser.new_context(
        viewport={"width": width, "height": height}, device_scale_factor=1.5 if width < 500 else 1
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(site.url)
    give(page, ROOT / "tiny" / "samples" / "room.png")
    wait_for_all(page)
    page.locator("#slider").evaluate("slider => slider.scrollIntoView()")
    page.wait_for_timeout(6000)  # the viewer draws, in software
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    folder = Path(SCREENSHOTS) if SCREENSHOTS else tmp_path
    page.screenshot(path=str(folder / f"{name}.png"), full_page=width > height)
    context.close()
