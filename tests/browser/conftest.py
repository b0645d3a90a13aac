"""The page in a real Chromium, against a real server; skips where either is missing."""

from __future__ import annotations

import shutil

import pytest

READY = (
    "window.app?.extensionManager && app.isGraphReady && !document.querySelector('#splash-loader')"
)
# What the page says without the pack, too.
NOISE = (
    "404",
    "Failed to load resource",
    "missing",
    "userdata",
    "manager",
    "net::ERR",
    "accessed before initialization",
    "Content Security Policy",
)


# not for the whole session: playwright runs an event loop, beside which ComfyUI cannot run its own
@pytest.fixture(scope="module")
def chromium():
    """A running Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("there is no Chromium (on Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["classic", "Nodes 2.0"])
def renderer(request):
    """Which of the page's two renderers."""
    return request.param


class Page:
    """ComfyUI's page, and what tests ask of it."""

    def __init__(self, page, server):
        self.page, self.server, self.errors = page, server, []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.open()

    def _heard(self, message):
        if message.type == "error" and not any(n in message.text for n in NOISE):
            self.errors.append(message.text)

    def open(self):
        """Loads the page, as at the start or once more."""
        self.page.goto(self.server.url)
        self.page.wait_for_function(READY, timeout=60_000)
        self.page.wait_for_timeout(1500)

    def run(self, script, argument=None):
        """The value of a JavaScript function in the page."""
        return self.page.evaluate(script, argument)

    def add(self, node_id, x=100, y=100):
        """A new node in an empty graph; its id."""
        return self.run(
            """([type, x, y]) => {
                const node = LiteGraph.createNode(type);
                node.pos = [x, y];
                app.graph.add(node);
                return node.id;
            }""",
            [node_id, x, y],
        )

    def load(self, path, node_id):
        """Opens a workflow as the user does, and waits for a node of that type."""
        self.page.set_input_files("#comfy-file-input", str(path))
        found = f"() => app.graph.nodes.some(n => n.type === {node_id!r})"
        self.page.wait_for_function(found)
        self.page.wait_for_timeout(1000)

    def save(self, path):
        """Writes the graph as "Save" does; the path."""
        text = self.run("() => JSON.stringify(app.graph.serialize())")
        path.write_text(text, encoding="utf-8")
        return path

    def queue(self):
        """Presses Run."""
        self.page.get_by_test_id("queue-button").first.click()

    def prompt(self):
        """What would be queued: the nodes by id."""
        return self.run("async () => (await app.graphToPrompt()).output")

    def clear(self):
        """An empty graph."""
        self.run("() => app.graph.clear()")

    def value(self, node, widget):
        """A widget's value."""
        return self.run(
            "([id, name]) => app.graph.getNodeById(id).widgets.find(w => w.name === name).value",
            [node, widget],
        )

    def set_value(self, node, widget, value):
        """As the user's choice in the widget."""
        self.run(
            """([id, name, value]) => {
                const widget = app.graph.getNodeById(id).widgets.find(w => w.name === name);
                widget.value = value;
                widget.callback?.(value);
            }""",
            [node, widget, value],
        )


@pytest.fixture
def page(chromium, server, renderer):
    """The page in this renderer, with an empty graph."""
    settings = {
        "Comfy.VueNodes.Enabled": renderer != "classic",
        "Comfy.TutorialCompleted": True,
        "Comfy.InstalledVersion": "1.49.6",
    }
    for name, value in settings.items():
        server.request(f"/api/settings/{name}", value)
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    opened = Page(context.new_page(), server)
    opened.clear()
    yield opened
    context.close()
    assert opened.errors == []
