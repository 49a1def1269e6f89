"""The page itself in a browser, and that nothing but this machine is spoken to."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from llava.eval.captioning import Captioner
from llava.serve import web
from llava.serve.web import is_loopback, main
from tests.serve.browser import Browser, find_chromium

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason='no Gradio: pip install -e ".[web]"')


def in_browser(test):
    """Marks a test that looks at the page, for which a server and a browser are started once."""
    needs_browser = pytest.mark.skipif(find_chromium() is None, reason="no Chromium or Chrome")
    return pytest.mark.slow(needs_gradio(needs_browser(test)))


def test_without_gradio_one_line_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(web, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        main(["--model-path", str(tmp_path)])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("python -m llava.serve.web: it needs Gradio")
        and 'pip install "llava-italian-video[web]"' in line
    )


@needs_gradio
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "0"], "--port 0: a whole number from 1 to 65535"),
        (["--examples", "gone"], "--examples gone: no such folder"),
        (["--device", "toaster"], "--device toaster: torch knows no such device"),
    ],
)
def test_odd_options_are_one_message(run, options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--model-path", str(run), *options])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_loopback_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org")))


def traced(log) -> list[str]:
    """`strace` in front of a command, where it may trace."""
    words = ["strace", "-f", "--seccomp-bpf", "-e", "trace=connect", "-o", str(log)]
    if shutil.which("strace") and subprocess.run([*words, "true"], capture_output=True).returncode == 0:
        return words
    return []


@pytest.fixture(scope="module")
def site(assets, run, tmp_path_factory):
    """A server in a process of its own, and a browser at its page."""
    folder = tmp_path_factory.mktemp("site")
    log = folder / "connects.txt"
    strace = traced(log)
    # A proxy that nobody answers at: who asks for anything but this machine itself is seen to ask for it.
    nobody = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "no_proxy", "NO_PROXY")} | nobody
    server = subprocess.Popen(
        [*strace, sys.executable, "-m", "llava.serve.web", "--model-path", str(run), "--examples", str(assets.clips),
         "--device", "cpu", "--max_new_tokens", "8"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=environment,
    )  # fmt: skip

    def stop() -> int:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGINT)
        return server.wait(60)

    try:
        said = next((line for line in server.stdout if "Ctrl-C" in line), "")
        address = re.search(r"http://\S+", said)[0]
        with Browser(find_chromium(), folder / "profile") as browser:
            browser.open(address)
            browser.wait_for("document.querySelector('#examples img')")
            yield SimpleNamespace(
                browser=browser, address=address, stop=stop, server=server, log=log if strace else None
            )
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
        server.communicate()


def result(browser: Browser) -> str:
    return browser.evaluate("document.querySelector('#result').innerText")


def choose(browser: Browser, example: int) -> None:
    browser.wait_for(f"document.querySelectorAll('#examples img').length > {example}")
    browser.evaluate(f"document.querySelectorAll('#examples img')[{example}].closest('button').click()")


@in_browser
def test_an_example_is_captioned_and_its_words_are_coloured(assets, run, site):
    browser = site.browser
    choose(browser, 1)
    browser.wait_for("document.querySelector('#result .words')")
    captioner = Captioner.from_pretrained(run, "cpu")
    expected = captioner.caption(assets.clips / "clip1.mp4", max_new_tokens=8)
    assert "This clip (clip1.mp4)" in result(browser) and "Another clip (clip2.mp4)" in result(browser)
    shown = browser.evaluate("document.querySelector('#result dd').firstChild.textContent")
    assert shown.split() == expected.text.split()
    assert browser.evaluate("[...document.querySelectorAll('#result .frames img')].map(i => i.naturalWidth)") == [
        56,
        56,
    ]
    titles = browser.evaluate("[...document.querySelectorAll('#result .words span')].map(s => s.title)")
    assert titles and all(re.match(r"[+-]\d+\.\d{3} nats: loss \d", title) for title in titles)


@in_browser
def test_a_dropped_clip_is_captioned_and_a_wrong_one_is_a_message(assets, site, tmp_path):
    browser = site.browser
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    browser.choose_file("#clip input[type=file]", bad)
    browser.wait_for("document.querySelector('#result [role=alert]')")
    assert result(browser).strip() == "bad.mp4: cannot be opened as a video (it is a text); name a video file"
    browser.evaluate("document.querySelector('#clip [aria-label*=emove], #clip [aria-label*=lear]').click()")
    browser.wait_for("document.querySelector('#clip input[type=file]')")
    browser.choose_file("#clip input[type=file]", assets.clips / "clip3.mp4")
    browser.wait_for("document.querySelector('#result .words')")
    assert "This clip (clip3.mp4)" in result(browser)


@in_browser
def test_a_narrow_page_does_not_scroll_sideways(site):
    for width in (400, 1280):
        site.browser.resize(width)
        assert site.browser.evaluate("document.documentElement.scrollWidth") <= width


@in_browser
def test_nothing_but_this_machine_is_spoken_to(site):
    browser = site.browser
    asked = [request for request in browser.requests if not request.startswith(("data:", "blob:"))]
    assert len(asked) > 10
    assert [request for request in asked if not request.startswith(site.address)] == []
    # What the page's policy refused, and what failed, would stand here.
    assert browser.said == []
    # The policy is at work: the page cannot speak to another server even where it tries.
    browser.evaluate("fetch('http://127.0.0.2:9/').catch(() => 0)")
    assert any("Content Security Policy" in line for line in browser.said), browser.said
    # The page's open connection would be waited for.
    browser.open("about:blank")
    assert site.stop() == 0
    if site.log is None:
        pytest.skip("the server's connections were not looked at: no strace that may trace")
    connects = [line for line in site.log.read_text().splitlines() if "connect(" in line]
    own = f'sin_port=htons({site.address.rstrip("/").rpartition(":")[2]}), sin_addr=inet_addr("127.0.0.1")'
    assert any(own in line for line in connects)
    assert [line for line in connects if "AF_UNIX" not in line and own not in line] == []
