"""The page of `medmamba demo` in a real browser."""

import base64
import json

import pytest

DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
const files = new DataTransfer();
files.items.add(new File([bytes], "dropped.png"));
document.dispatchEvent(new DragEvent("drop", {dataTransfer: files, bubbles: true}));
"""


@pytest.fixture
def page(browser, server):
    """The page, freshly loaded; the logs of the browser begin here."""
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.set_window_size(1400, 900)
    browser.get(server.url)
    return browser


def find(page, selector):
    return page.find_element("css selector", selector)


def wait_for(page, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 30).until(condition)


def requests(page, url):
    """The addresses that the page at a URL has asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = (m["params"] for m in messages if m["method"] == "Network.requestWillBeSent")
    return [one["request"]["url"] for one in sent if one["documentURL"].startswith(url)]


def choose(page, path, content):
    path.write_bytes(content)
    find(page, "#file").send_keys(str(path))


@pytest.mark.slow
def test_a_file_is_answered_at_both_widths(page, server, predictor, png, tmp_path):
    choose(page, tmp_path / "scan.png", png)
    wait_for(page, lambda page: page.find_elements("css selector", "#answer td.number"))
    likeliest, p = max(predictor.predict(png).items(), key=lambda item: item[1])
    assert find(page, "#answer h2").text == f"Most likely: {likeliest}"
    assert find(page, "td.number").text == f"{p:.3f}"
    # The name of a class, <img src=x onerror=alert(1)>, is text.
    assert predictor.class_names[0] in find(page, "#answer tbody").text
    assert not page.find_elements("css selector", "img[src=x]")
    for width in (380, 1400):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        assert page.execute_script("return innerWidth") == width
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        for picture in page.find_elements("css selector", "img"):
            assert int(picture.get_property("naturalWidth")) > 100
            assert picture.size["width"] > 150 and picture.size["height"] > 150
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert page.get_log("browser") == []
    sent = requests(page, server.url)
    assert f"{server.url}answer" in sent
    left = [url for url in sent if not url.startswith((server.url, "data:"))]
    assert left == []


@pytest.mark.slow
def test_an_image_is_dropped_and_a_mistake_is_one_line(page, png, tmp_path):
    page.execute_script(DROP, base64.b64encode(png).decode())
    wait_for(page, lambda page: page.find_elements("css selector", "#answer td.number"))
    assert find(page, "#state").text == "dropped.png"
    choose(page, tmp_path / "text.png", b"no image")
    wait_for(page, lambda page: page.find_elements("css selector", "#state.error"))
    assert find(page, "#state").text.startswith("text.png: ")
    assert not page.find_elements("css selector", "#answer *")


@pytest.mark.slow
def test_light_and_dark(page):
    colours = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        style = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        ink, ground = page.execute_script(style)
        colours[scheme] = [sum(map(int, c.strip("rgb()").split(","))) for c in (ink, ground)]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert colours["light"][0] < 200 < 600 < colours["light"][1]
    assert colours["dark"][1] < 200 < 600 < colours["dark"][0]
