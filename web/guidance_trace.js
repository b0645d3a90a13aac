/** The live plot on the node Guidance Trace. It stays after the run, and in the saved workflow. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addStyle, callAfter, dimWhenOff, nodeById, svg } from "./lib/dom.js";
import { keepProperty, saveDraft } from "./lib/kept_property.js";
import { addTheme } from "./lib/theme.js";
import { drawRun } from "./lib/trace_picture.js";
import { evaluationsOf, withEvent } from "./lib/trace_run.js";
import { statusLines } from "./lib/trace_status.js";
import { t } from "./lib/words.js";

const EVENT = "classifier_guidance.trace";
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];
const PROPERTY = "guidance_trace";
const STYLE = `
.cg-trace { display: flex; flex-direction: column; min-height: 150px; height: 100%; width: 100%;
  box-sizing: border-box; font: 11px sans-serif; color: var(--input-text, #ddd); }
.cg-trace svg { flex: 1; min-height: 0; width: 100%; border-radius: 6px;
  background: var(--comfy-input-bg, #222); }
.cg-trace .cg-status { padding: 3px 2px; line-height: 1.35; }
.cg-trace .cg-status div { display: flex; flex-wrap: wrap; gap: 0 8px; }
.cg-trace .cg-status span { overflow-wrap: anywhere; }
`;
const SIZE = [320, 340]; // of a new node

app.registerExtension({
  name: "classifier-guidance.guidance-trace",

  setup() {
    api.addEventListener(EVENT, ({ detail }) => addEvaluation(detail));
    for (const name of ENDS) api.addEventListener(name, saveDraft);
  },

  nodeCreated(node) {
    if (node.comfyClass === "GuidanceTrace") addPlot(node);
  },
});

function addPlot(node) {
  addTheme();
  addStyle("cg-trace-style", STYLE);
  const element = document.createElement("div");
  element.className = "cg-trace";
  const about = { role: "img", "aria-label": t("what guidance did") };
  const picture = svg("svg", about, element);
  const status = document.createElement("div");
  status.className = "cg-status";
  element.append(status);
  const onDraw = () => dimWhenOff(node, element);
  const options = { serialize: false, getMinHeight: () => 160, onDraw };
  const widget = node.addDOMWidget("live", "GUIDANCE_LIVE", element, options);
  widget.serialize = false; // the workflow keeps the node's property instead
  node.drawTrace = () => draw(node, picture, status);
  new ResizeObserver(node.drawTrace).observe(picture);
  callAfter(node, "onConfigure", node.drawTrace);
  node.setSize?.(SIZE.map((length, k) => Math.max(length, node.size[k])));
}

function addEvaluation(event) {
  const node = nodeById(app, event.node);
  if (!node?.drawTrace) return;
  node.properties[PROPERTY] = withEvent(node.properties[PROPERTY], event);
  node.drawTrace();
  keepProperty(app, api, event.node, PROPERTY, node.properties[PROPERTY]);
}

function draw(node, picture, status) {
  const run = node.properties[PROPERTY];
  const evaluations = evaluationsOf(run);
  picture.replaceChildren();
  picture.dataset.count = evaluations.length;
  if (evaluations.length === 0) {
    status.textContent = t("sample with this MODEL to see its guidance");
    return;
  }
  drawRun(picture, run);
  status.replaceChildren(...statusLines(run));
}
