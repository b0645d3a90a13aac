/** The live plot on the node Guidance Trace, kept after the run and in the saved workflow. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addStyle, after, nodeById, svg } from "./lib/dom.js";

const EVENT = "classifier_guidance.trace";
const PROPERTY = "guidance_trace";
const STYLE = `
.cg-trace { display: flex; flex-direction: column; min-height: 150px; height: 100%; width: 100%;
  box-sizing: border-box; font: 11px sans-serif; color: var(--input-text, #ddd); }
.cg-trace svg { flex: 1; min-height: 0; width: 100%; border-radius: 6px;
  background: var(--comfy-input-bg, #222); }
.cg-trace .cg-said { display: flex; flex-wrap: wrap; gap: 0 8px; padding: 3px 2px; }
`;
const WIDTH = 280; // of a new node
const MARGIN = { left: 34, right: 8, top: 8, bottom: 8 };
const COLOURS = { cfg: "#4a90d9", scale: "#f0a040", probability: "#6c8" };
const TEXT = "currentColor";

app.registerExtension({
  name: "classifier-guidance.guidance-trace",

  setup() {
    api.addEventListener(EVENT, ({ detail }) => received(detail));
  },

  nodeCreated(node) {
    if (node.comfyClass === "GuidanceTrace") addPlot(node);
  },
});

function addPlot(node) {
  addStyle("cg-trace-style", STYLE);
  const element = document.createElement("div");
  element.className = "cg-trace";
  const picture = svg("svg", { role: "img", "aria-label": "what guidance did" }, element);
  const said = document.createElement("div");
  said.className = "cg-said";
  element.append(said);
  const options = { serialize: false, getMinHeight: () => 160 };
  const widget = node.addDOMWidget("live", "GUIDANCE_LIVE", element, options);
  widget.serialize = false; // nor in the workflow: the property is
  node.drawTrace = () => draw(node, picture, said);
  new ResizeObserver(node.drawTrace).observe(picture);
  after(node, "onConfigure", node.drawTrace);
  node.setSize?.([Math.max(node.size[0], WIDTH), node.size[1]]);
}

function received({ node: id, number, steps, evaluation }) {
  const node = nodeById(app, id);
  if (!node?.drawTrace) return;
  const kept = number === 0 ? [] : (node.properties[PROPERTY]?.seen ?? []);
  kept[number] = brief(evaluation);
  node.properties[PROPERTY] = { steps, seen: kept };
  node.drawTrace();
}

/** What is drawn of an evaluation; short, because the workflow keeps it. */
function brief(evaluation) {
  const { step, sigma, cfg, passes, classifiers } = evaluation;
  const scale = classifiers.length ? classifiers.reduce((sum, one) => sum + one.scale, 0) : null;
  const values = classifiers[0]?.log_probs.filter(Number.isFinite) ?? [];
  const mean = values.reduce((sum, value) => sum + Math.exp(value), 0) / values.length;
  const probability = values.length ? Number(mean.toFixed(4)) : null;
  return { step, sigma: Number(sigma.toPrecision(4)), cfg, scale, probability, passes };
}

function draw(node, picture, said) {
  const { steps = 1, seen: all = [] } = node.properties[PROPERTY] ?? {};
  const seen = all.filter(Boolean);
  picture.replaceChildren();
  picture.dataset.count = seen.length;
  if (seen.length === 0) {
    said.textContent = "sample with this MODEL to see its guidance";
    return;
  }
  const size = { width: Math.max(picture.clientWidth, 80), height: picture.clientHeight || 100 };
  const count = Math.max(seen.length, steps, 2);
  const [wide, high] = [size.width - MARGIN.left - MARGIN.right, size.height - MARGIN.bottom];
  const x = (index) => MARGIN.left + (index / (count - 1)) * wide;
  const y = (share) => high - share * (high - MARGIN.top);
  const scales = seen.flatMap((one) => [one.cfg ?? 0, one.scale ?? 0]);
  const levels = levelsFor(Math.min(0, ...scales), Math.max(1, ...scales));
  const [lowest, highest] = [levels[0], levels.at(-1)];
  const line = (key, share) => {
    const places = seen.flatMap((one, index) =>
      one[key] === null ? [] : [`${x(index)},${y(share(one[key]))}`],
    );
    if (places.length === 0) return;
    const look = { fill: "none", stroke: COLOURS[key], "stroke-width": 2 };
    svg("polyline", { points: places.join(" "), ...look, "data-line": key }, picture);
  };
  const axis = (value) => (value - lowest) / (highest - lowest);
  for (const value of levels) {
    const level = y(axis(value));
    const ends = { x1: MARGIN.left, x2: size.width - MARGIN.right, y1: level, y2: level };
    svg("line", { ...ends, stroke: "#8884" }, picture);
    const look = { "font-size": 10, fill: "currentColor", opacity: 0.7 };
    svg("text", { x: 4, y: level + 3, ...look }, picture).textContent = shown(value);
  }
  line("cfg", axis);
  line("scale", axis);
  line("probability", (value) => value);
  said.replaceChildren(...sayings(seen, steps));
}

/** Round numbers, at least three, that have both in their range. */
function levelsFor(low, high) {
  const power = 10 ** Math.floor(Math.log10((high - low) / 2));
  const step = [5, 2, 1].map((times) => times * power).find((one) => (high - low) / one >= 2);
  const [first, last] = [Math.floor(low / step), Math.ceil(high / step)];
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
}

function sayings(seen, steps) {
  const last = seen.at(-1);
  const passes = seen.reduce((sum, one) => sum + one.passes, 0);
  const parts = [[`step ${Math.floor(last.step) + 1}/${steps}`, TEXT]];
  if (last.cfg !== null) parts.push([`cfg ${shown(last.cfg)}`, COLOURS.cfg]);
  if (last.scale !== null) parts.push([`classifier ${shown(last.scale)}`, COLOURS.scale]);
  const sure = seen.findLast((one) => one.probability !== null);
  if (sure) parts.push([`p ${sure.probability.toFixed(2)}`, COLOURS.probability]);
  parts.push([`${passes} passes`, TEXT]);
  return parts.map(([text, colour]) => {
    const span = document.createElement("span");
    span.textContent = text;
    // darker on a light page, lighter on a dark one
    span.style.color = `color-mix(in srgb, ${colour} 65%, var(--input-text, #ddd))`;
    return span;
  });
}

function shown(value) {
  return String(Number(value.toFixed(2)));
}
