"""The pictures of docs/screens: UPDATE_PICTURES=1 writes them anew, any run makes them."""

from __future__ import annotations

import io
import os

from PIL import Image

AROUND = 24  # pixels
NODES = ["GuidanceSchedule", "GuidanceTrace"]


def test_schedule_and_live_plot(page, root, renderer):
    """The template after a run: the curve as it was drawn, the plot as it came."""
    page.load(root / "example_workflows" / "scheduled_cfg_digits.json", "GuidanceSchedule")
    page.page.wait_for_selector(".cg-curve circle", state="attached")
    page.run(
        """([schedule, trace]) => {
            const [curve, plot] = [schedule, trace].map(
                type => app.graph.nodes.find(node => node.type === type));
            const seed = app.graph.nodes.find(node => node.type === "RandomNoise").widgets[0];
            seed.value = Math.floor(Math.random() * 1e9);
            // away from the others
            curve.pos = [-3940, 60];
            plot.pos = [-3580, 60];
            plot.size = [400, 300];
            app.canvas.ds.scale = 1;
            app.canvas.ds.offset = [4100, 100];
            app.canvas.setDirty(true, true);
        }""",
        NODES,
    )
    page.queue()
    seen = "app.graph.nodes.find(n => n.type === 'GuidanceTrace').properties.guidance_trace?.seen"
    page.page.wait_for_function(f"() => {seen}?.length === 50", timeout=120_000)
    page.page.wait_for_timeout(1500)
    box = {"x": 160 - AROUND, "y": 160 - 60, "width": 830, "height": 700}
    with Image.open(io.BytesIO(page.page.screenshot(clip=box))) as opened:
        picture = opened.convert("RGB")
    # the curve and the plot are there: their colours are
    colours = {colour for _, colour in picture.getcolors(1 << 24)}
    assert {(240, 160, 64), (74, 144, 217)} <= colours
    if os.environ.get("UPDATE_PICTURES"):
        name = "classic" if renderer == "classic" else "nodes_2"
        folder = root / "docs" / "screens"
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"guidance_schedule_{name}.png", optimize=True)
