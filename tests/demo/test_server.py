"""The page of `medmamba demo`: who may ask it, what it refuses, and what it answers."""

import dataclasses
import http.client
import logging
import re
import time

import numpy as np
import pytest

from medmamba_jax import cli
from medmamba_jax.demo.answers import Answers
from medmamba_jax.demo.server import LIMIT, Server, is_loopback


def ask(server, method="POST", path="/answer", body=None, **headers):
    """Returns the status and the text; a header that is None is not sent."""
    given = {"Content-Type": "application/octet-stream"} if method == "POST" else {}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    try:
        connection.putrequest(method, path, skip_host="Host" in given)
        if body is not None and "Content-Length" not in given:
            given["Content-Length"] = str(len(body))
        for name, value in given.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read().decode(), response.headers
    finally:
        connection.close()


def test_the_numbers_are_those_of_predict(server, predictor, png):
    status, text, _ = ask(server, body=png)
    expected = predictor.predict(png)
    assert status == 200 and predictor.class_names[0] not in text
    shown = [float(p) for p in re.findall(r'<td class="number">([\d.]+)</td>', text)]
    assert shown == [round(p, 3) for p in sorted(expected.values(), reverse=True)]
    assert text.count("data:image/png;base64,") == 2 and "There are no prediction sets" in text


def test_prediction_sets_of_a_calibrated_model(predictor, png, images):
    from medmamba_jax.assessment.calibration import calibrate
    from medmamba_jax.assessment.prediction_sets import members

    outputs = predictor.outputs(
        dataclasses.replace(images.splits["val"], class_names=predictor.class_names)
    )
    calibrated = dataclasses.replace(predictor, calibration=calibrate(outputs, 1))
    text = Answers(calibrated, "x").answer(png)
    table = np.array([list(predictor.predict(png).values())])
    for level, thresholds in calibrated.calibration.sets.items():
        names = np.array(predictor.class_names)[members(table, thresholds)[0]]
        shown = re.search(rf"<dt>{float(level) * 100:.0f} %</dt>\s*<dd>(.*?)</dd>", text)[1]
        assert shown.count("bright") == list(names).count("bright")
        assert shown.count("onerror") == list(names).count(predictor.class_names[0])
    assert "images are like the\n  10 validation images" in text


def test_the_page_says_what_it_is_and_loads_nothing(server, predictor):
    status, text, headers = ask(server, "GET", "/")
    assert status == 200 and "no medical device" in text and "research only" in text
    assert predictor.class_names[0] not in text and "&lt;img" in text
    assert not re.findall(r"https?://", text)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    nonce = re.search(r"script-src 'nonce-([^']+)'", policy)[1]
    assert text.count(f'nonce="{nonce}"') == 2
    assert nonce not in ask(server, "GET", "/")[1]
    assert ask(server, "GET", "/../run.json")[0] == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Host": "127.0.0.1:no"}, 403),
        ({"Host": None}, 403),
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "127.0.0.1:{port}", "Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-origin"}, 200),
        ({"Content_Type": "multipart/form-data"}, 415),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Length": None}, 411),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": str(LIMIT + 1)}, 413),
    ],
)
def test_who_may_ask(server, png, headers, status):
    port = server.server_address[1]
    headers = {k: v and v.format(port=port) for k, v in headers.items()}
    found, text, _ = ask(server, body=png, **headers)
    assert found == status
    assert status == 200 or "\n" not in text


@pytest.mark.parametrize(
    ("content", "problem"), [(b"", "empty"), (b"no image", ""), (b"\x89PNG\r\n\x1a\n", "")]
)
def test_a_file_that_is_no_image_is_one_line(server, content, problem):
    status, text, headers = ask(server, body=content)
    assert status == 422 and text and problem in text and "\n" not in text
    assert headers.get_content_type() == "text/plain"


def test_a_fault_of_the_program_is_in_the_terminal_only(server, monkeypatch, caplog):
    def broken(content):
        raise RuntimeError("secret")

    monkeypatch.setattr(server.answers, "answer", broken)
    status, text, _ = ask(server, body=b"x")
    assert status == 500 and "secret" not in text and "secret" in caplog.text


def test_one_image_at_a_time(server, png):
    with server.one_at_a_time:
        assert ask(server, body=png)[0] == 503
    assert ask(server, body=png)[0] == 200


def test_a_slow_sender_stops_nobody(server, png):
    slow = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    slow.putrequest("POST", "/answer")
    slow.putheader("Content-Type", "application/octet-stream")
    slow.putheader("Content-Length", str(len(png)))
    slow.endheaders(png[:10])
    time.sleep(0.3)  # in which the server starts to read
    assert ask(server, body=png)[0] == 200
    slow.send(png[10:])
    assert slow.getresponse().status == 200
    slow.close()


@pytest.mark.parametrize(("error", "shown"), [(ConnectionResetError, False), (KeyError, True)])
def test_a_browser_that_goes_away_is_no_fault(server, capsys, error, shown):
    try:
        raise error("gone")
    except error:
        server.handle_error(None, ("127.0.0.1", 1))
    assert ("Traceback" in capsys.readouterr().err) == shown


def test_addresses():
    assert is_loopback("127.0.0.1") and is_loopback("localhost") and is_loopback("::1")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.168.0.7")
    assert not is_loopback("my.computer")


def test_the_command(trained, server, capsys, caplog, one_device, monkeypatch):
    taken = server.server_address[1]
    assert cli.main(["demo", str(trained[0]), f"--port={taken}"]) == 2
    error = capsys.readouterr().err
    assert "give another --port" in error and error.count("\n") == 1

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    assert cli.main(["demo", str(trained[0]), "--port=0"]) == 0
    said = capsys.readouterr().out
    assert "http://127.0.0.1:" in said and "no medical device" in said and not caplog.records
    with caplog.at_level(logging.WARNING):
        assert cli.main(["demo", str(trained[0]), "--port=0", "--host=0.0.0.0"]) == 0
    assert "without a password" in caplog.text
