"""A TensorBoard server and a headless browser for tests; by hand, pictures of a run's TensorBoard:

python -m tests.e2e.tensorboard_page --logdir=runs/demo --out=pictures
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

TABS = ("timeseries", "scalars", "images", "text", "hparams")
# Nothing of this run may reach outside the machine or depend on the user's own browser.
_BROWSER_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
_Found = TypeVar("_Found")


def browser() -> str | None:
    """The headless browser at hand."""
    return next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)


@contextlib.contextmanager
def serve(logdir: str | os.PathLike, *, fast: bool = True, seconds: float = 30.0) -> Iterator[str]:
    """Runs TensorBoard on `logdir` for the length of the body; yields its address.

    Args:
      fast: the data server that TensorBoard uses by default, else its Python loader.
      seconds: time to start up.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1", "--port", "0"]
    command += ["--load_fast", "true" if fast else "false", "--reload_interval", "1"]
    with tempfile.TemporaryFile("w+") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)

        def address() -> str | None:
            output.seek(0)
            text = output.read()
            if server.poll() is not None:
                raise RuntimeError(f"TensorBoard ended with status {server.returncode}:\n{text}")
            match = re.search(r"http://127\.0\.0\.1:\d+/", text)
            return match.group() if match else None

        try:
            yield wait_for(address, seconds, "TensorBoard's address")
        finally:
            _end(server)


def wait_for(probe: Callable[[], _Found | None], seconds: float, what: str) -> _Found:
    """The first true result of `probe`; TimeoutError when `seconds` pass without one."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not appear within {seconds:.0f} s (last answer: {found!r})")
        time.sleep(0.1)


def get(address: str, path: str, **query: Any) -> bytes:
    """Body of a GET request; without `query` values, `path` is taken as it is."""
    url = address + path + ("?" + urllib.parse.urlencode(query) if query else "")
    with urllib.request.urlopen(url, timeout=20) as response:
        return response.read()


def post_json(address: str, path: str, body: Any) -> Any:
    """Answer to a POST request, both JSON."""
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response)


def screenshot(address: str, tab: str, path: str | os.PathLike, *, width: int = 1600, height: int = 1200) -> None:
    """Saves a PNG of one tab of a running TensorBoard, as a person sees it after a few seconds."""
    found = browser()
    if found is None:
        raise FileNotFoundError("no chromium on this machine; apt-get install -y chromium")
    with tempfile.TemporaryDirectory() as profile:
        command = [found, *_BROWSER_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        command += ["--virtual-time-budget=8000", f"--screenshot={pathlib.Path(path).resolve()}", f"{address}#{tab}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            output, _ = process.communicate(timeout=60)
        finally:
            _end(process)
    if not os.path.exists(path):
        raise RuntimeError(f"the browser saved no picture:\n{output.decode(errors='replace')}")


def _end(process: subprocess.Popen) -> None:
    """Ends a process and its children: it leads a group of its own."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Saves a picture of each TensorBoard tab of a run.")
    parser.add_argument("--logdir", required=True)
    parser.add_argument("--out", required=True, help="folder for the pictures")
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    with serve(arguments.logdir) as address:
        wait_for(lambda: json.loads(get(address, "data/runs")), 20, "a run")
        for tab in TABS:
            screenshot(address, tab, folder / f"{tab}.png")
            print(folder / f"{tab}.png")


if __name__ == "__main__":
    main()
