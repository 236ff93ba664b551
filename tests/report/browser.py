"""A browser without a window, and what it says of a page."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--window-size=1280,1000",
    # Three dimensions without a graphics card.
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)


class Browser:
    """A page that is open."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, path: Path) -> None:
        self.driver.get(path.as_uri())
        self.run("document.documentElement.style.scrollBehavior = 'auto'")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: Any) -> Any:
        """Until the script gives something that is true."""
        waiting = WebDriverWait(self.driver, 120, poll_frequency=0.1)
        return waiting.until(lambda _: self.run(script, *arguments))

    def narrow(self, width: int) -> None:
        """Show pages as wide as that from now on."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def errors(self) -> list[str]:
        """What the console has of errors."""
        levels = ("SEVERE", "ERROR")
        return [e["message"] for e in self.driver.get_log("browser") if e["level"] in levels]

    def requests(self) -> list[str]:
        """Addresses that were asked for, but for those of data in the page."""
        messages = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        urls = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium of the system; where it is missing skip, or fail where CI is set."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        say = "needs a browser: apt-get install chromium chromium-driver"
        if os.environ.get("CI"):
            pytest.fail(say)
        pytest.skip(say)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Browser(found)
    finally:
        found.quit()
