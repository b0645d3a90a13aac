"""The page in a real Chromium, against a real server; skips where either is missing."""

from __future__ import annotations

import functools
import re
import shutil
import time

import pytest

# the page has started, and has opened its first workflow
READY = """() => window.app?.extensionManager?.spinner === false && app.isGraphReady
    && app.graph.nodes.length > 0 && !document.querySelector('#splash-loader')"""
EMPTY = {"nodes": [], "links": [], "groups": [], "config": {}, "extra": {}, "version": 0.4}
# the box of an element, when it has been the same in five frames
BOX = """async (selector) => {
    let last, now, same = 0;
    while (same < 5) {
        await new Promise(requestAnimationFrame);
        now = JSON.stringify(document.querySelector(selector)?.getBoundingClientRect());
        same = now && now === last ? same + 1 : 0;
        last = now;
    }
    return JSON.parse(now);
}"""
# errors that the page has without the pack, too
NOISE = re.compile(
    "404|Failed to load resource|missing|userdata|manager|net::ERR|"
    "accessed before initialization|Content Security Policy"
)


# not for the session: playwright runs an event loop, and ComfyUI could not run its own beside it
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


class Page:
    """ComfyUI's page in one renderer; `tab` is playwright's page."""

    def __init__(self, browser, server, renderer):
        from playwright.sync_api import expect

        self.server, self.expect, self.errors = server, expect, []
        self.settings = {
            "Comfy.VueNodes.Enabled": renderer != "classic",
            "Comfy.TutorialCompleted": True,
            "Comfy.InstalledVersion": "1.49.6",
        }
        self._send_settings()
        self.tab = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
        self.tab.on("console", self._listen)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.goto(server.url)
        self.wait(READY, timeout=60_000)

    def _send_settings(self):
        for name, value in self.settings.items():
            self.server.request(f"/api/settings/{name}", value)

    def reload(self):
        """Loads the page again, as the user does; another page may have set its own renderer."""
        self._send_settings()
        self.tab.reload()
        self.wait(READY, timeout=60_000)

    def _listen(self, message):
        if message.type == "error" and not NOISE.search(message.text):
            self.errors.append(message.text)

    def reset(self):
        """An empty workflow, as in a page that was opened anew."""
        self.tab.unroute_all()
        self.tab.mouse.move(1300, 500)  # over a tab, it would open what covers the nodes
        self.run(
            """async (empty) => {
                document.activeElement?.blur();
                await app.loadGraphData(empty);
                app.canvas.ds.scale = 1;
                app.canvas.ds.offset = [0, 0];
            }""",
            EMPTY,
        )
        self.errors.clear()

    def run(self, script, argument=None):
        """The value of a JavaScript function in the page."""
        return self.tab.evaluate(script, argument)

    def wait(self, script, argument=None, timeout=20_000):
        """Waits until a JavaScript function gives a true value; that value."""
        return self.tab.wait_for_function(script, arg=argument, timeout=timeout).json_value()

    def box(self, selector):
        """An element's box on the screen, when the page has finished to place it.

        In one step: the curve's elements are new ones after each drawing.
        """
        return self.run(BOX, selector)

    def focus(self, selector):
        """Focuses an element, in one step as well."""
        self.run("(selector) => document.querySelector(selector).focus()", selector)

    def add(self, node_type, x=100, y=100):
        """A new node; its id."""
        return self.run(
            """([type, x, y]) => {
                const node = LiteGraph.createNode(type);
                node.pos = [x, y];
                app.graph.add(node);
                return node.id;
            }""",
            [node_type, x, y],
        )

    def connect(self, source, output, target, name):
        """A link from a node's output to another node's input."""
        self.run(
            """([source, output, id, name]) => {
                const target = app.graph.getNodeById(id);
                const slot = target.inputs.findIndex(input => input.name === name);
                app.graph.getNodeById(source).connect(output, target, slot);
            }""",
            [source, output, target, name],
        )

    def build(self, prompt):
        """Opens a prompt in API form as a graph; its nodes keep their names as their ids."""
        self.run("(prompt) => app.loadApiJson(prompt, 'built')", prompt)

    def load(self, path, node_type):
        """Opens a workflow as the user does; the id of its first node of that type."""
        self.tab.set_input_files("#comfy-file-input", str(path))
        return self.wait(f"() => app.graph.nodes.find(n => n.type === '{node_type}')?.id")

    def save(self, path):
        """Writes the graph as "Save" does; the path."""
        text = self.run("() => JSON.stringify(app.graph.serialize())")
        path.write_text(text, encoding="utf-8")
        return path

    def show(self, node):
        """Moves the canvas so that a node is to be seen: elsewhere it has no elements."""
        self.run(
            """(id) => {
                const [x, y] = app.graph.getNodeById(id).pos;
                app.canvas.ds.scale = 1;
                app.canvas.ds.offset = [300 - x, 100 - y];
                app.canvas.setDirty(true, true);
            }""",
            node,
        )

    def prompt(self):
        """The nodes that would be queued, by id."""
        return self.run("async () => (await app.graphToPrompt()).output")

    def queue(self, seconds=120):
        """Presses Run and waits for the end; the server's entry in its history."""
        _, before = self.server.request("/history")
        self.tab.get_by_test_id("queue-button").first.click()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.tab.wait_for_timeout(50)  # the server is polled, and the page goes on meanwhile
            _, after = self.server.request("/history")
            if new := after.keys() - before.keys():
                return after[new.pop()]
        raise AssertionError(f"the run did not end within {seconds} s")

    def value(self, node, widget):
        """A widget's value."""
        return self.run(
            "([id, name]) => app.graph.getNodeById(id).widgets.find(w => w.name === name).value",
            [node, widget],
        )

    def set_values(self, node, **values):
        """Sets widgets as the user does."""
        self.run(
            """([id, values]) => {
                for (const [name, value] of Object.entries(values)) {
                    const widget = app.graph.getNodeById(id).widgets.find(w => w.name === name);
                    widget.value = value;
                    widget.callback?.(value);
                }
            }""",
            [node, values],
        )


@pytest.fixture(scope="module")
def opened(chromium, server):
    """`opened(renderer)` is the module's page in that renderer, which is opened once."""
    return functools.cache(functools.partial(Page, chromium, server))


@pytest.fixture(params=["Nodes 2.0", pytest.param("classic", marks=pytest.mark.long)])
def renderer(request):
    """Which of the page's two renderers: the one of new users, and with --all also the other."""
    return request.param


def tested(page):
    """A page for one test, empty at its start and without an error at its end."""
    page.reset()
    yield page
    assert page.errors == []


@pytest.fixture
def page(opened, renderer):
    """The page in this renderer, with an empty graph."""
    yield from tested(opened(renderer))


@pytest.fixture
def other_page(opened, renderer):
    """The page in the other renderer."""
    yield from tested(opened("Nodes 2.0" if renderer == "classic" else "classic"))
