"""A headless Chromium that opens pages of reports, for tests."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

__all__ = ["Browser", "browser"]

#: Width and height in pixels of a phone and of a desktop.
PHONE, DESKTOP = (390, 844), (1280, 900)
_FLAGS = (
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


class Browser:
    """What a test asks of a page that is open."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(
        self, page: pathlib.Path, size: tuple[int, int] = DESKTOP, *, dark: bool = False
    ) -> None:
        """Open a file at a size, with no network, and wait until its charts are drawn."""
        width, height = size
        driver = self.driver
        driver.execute_cdp_cmd("Network.enable", {})
        driver.execute_cdp_cmd(
            "Network.emulateNetworkConditions",
            {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
        )
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE},
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},  # or clicks miss what moves
        ]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        driver.get(page.resolve().as_uri())
        self.wait("document.body.dataset.drawn === 'yes'")

    def wait(self, condition: str, seconds: float = 60.0) -> None:
        """Wait until an expression of JavaScript is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, seconds, 0.05).until(
            lambda driver: driver.execute_script(f"return {condition}")
        )

    def ask(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        return self.driver.execute_script(f"return {expression}")

    def do(self, script: str) -> None:
        """Run JavaScript."""
        self.driver.execute_script(script)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        chain = ActionChains(self.driver)
        for key in keys:
            chain.send_keys(key)
        chain.perform()

    def complaints(self) -> list[str]:
        """What the page wrote to the console as a warning or an error."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(
            self.ask(
                "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
                " - document.documentElement.clientWidth"
            )
        )

    def picture(self, path: pathlib.Path) -> None:
        """Take a picture of the whole page."""
        import base64

        height = self.ask("document.documentElement.scrollHeight")
        width = self.ask("document.documentElement.clientWidth")
        shot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot",
            {
                "captureBeyondViewport": True,
                "clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
            },
        )
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser; skips the test where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromium-driver (apt install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (extra dev)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(prefix="onnxopt-chromium-") as folder:
        for flag in (*_FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        service = webdriver.ChromeService(executable_path=driver)
        running = webdriver.Chrome(options=options, service=service)
        try:
            yield Browser(running)
        finally:
            running.quit()
