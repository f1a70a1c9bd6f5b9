"""A headless Chromium that writes down what a page does: dialogs, messages of its console, requests."""

import contextlib
import os
import shutil


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def chromium(playwright):
    """The browser, of `playwright.sync_api`."""
    with playwright.sync_playwright() as driver:
        # Chromium's sandbox does not work for root, as which containers run.
        browser = driver.chromium.launch(executable_path=find_chromium(), chromium_sandbox=os.getuid() != 0)
        yield browser
        browser.close()


def watched_tab(context):
    """A new tab with the lists `dialogs`, `errors` and `requests`."""
    tab = context.new_page()
    tab.dialogs, tab.errors, tab.requests = [], [], []
    tab.on("dialog", lambda dialog: (tab.dialogs.append(dialog.message), dialog.dismiss()))
    tab.on("console", lambda message: tab.errors.append(message.text))
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.on("request", lambda request: tab.requests.append(request.url))
    return tab
