/** The live plot on the node Guidance Trace. It stays after the run, and in the saved workflow. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addStyle, callAfter, nodeById, svg } from "./lib/dom.js";

const EVENT = "classifier_guidance.trace";
const PROPERTY = "guidance_trace";
const STYLE = `
.cg-trace { display: flex; flex-direction: column; min-height: 150px; height: 100%; width: 100%;
  box-sizing: border-box; font: 11px sans-serif; color: var(--input-text, #ddd); }
.cg-trace svg { flex: 1; min-height: 0; width: 100%; border-radius: 6px;
  background: var(--comfy-input-bg, #222); }
.cg-trace .cg-status { display: flex; flex-wrap: wrap; gap: 0 8px; padding: 3px 2px; }
`;
const WIDTH = 280; // of a new node
const MARGIN = { left: 34, right: 8, top: 8, bottom: 8 };
const COLOURS = { cfg: "#4a90d9", scale: "#f0a040", probability: "#6c8" };
const TEXT = "currentColor";

app.registerExtension({
  name: "classifier-guidance.guidance-trace",

  setup() {
    api.addEventListener(EVENT, ({ detail }) => addEvaluation(detail));
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
  const status = document.createElement("div");
  status.className = "cg-status";
  element.append(status);
  const options = { serialize: false, getMinHeight: () => 160 };
  const widget = node.addDOMWidget("live", "GUIDANCE_LIVE", element, options);
  widget.serialize = false; // the workflow keeps the node's property instead
  node.drawTrace = () => draw(node, picture, status);
  new ResizeObserver(node.drawTrace).observe(picture);
  callAfter(node, "onConfigure", node.drawTrace);
  node.setSize?.([Math.max(node.size[0], WIDTH), node.size[1]]);
}

function addEvaluation({ node: id, number, steps, evaluation }) {
  const node = nodeById(app, id);
  if (!node?.drawTrace) return;
  const seen = number === 0 ? [] : (node.properties[PROPERTY]?.seen ?? []);
  seen[number] = summary(evaluation);
  node.properties[PROPERTY] = { steps, seen };
  node.drawTrace();
}

/** The drawn values of an evaluation; few, because the workflow keeps them. */
function summary(evaluation) {
  const { step, sigma, cfg, passes, classifiers } = evaluation;
  const scale = classifiers.length ? classifiers.reduce((sum, one) => sum + one.scale, 0) : null;
  const values = classifiers[0]?.log_probs.filter(Number.isFinite) ?? [];
  const mean = values.reduce((sum, value) => sum + Math.exp(value), 0) / values.length;
  const probability = values.length ? Number(mean.toFixed(4)) : null;
  return { step, sigma: Number(sigma.toPrecision(4)), cfg, scale, probability, passes };
}

function draw(node, picture, status) {
  const { steps = 1, seen = [] } = node.properties[PROPERTY] ?? {};
  const evaluations = seen.filter(Boolean);
  picture.replaceChildren();
  picture.dataset.count = evaluations.length;
  if (evaluations.length === 0) {
    status.textContent = "sample with this MODEL to see its guidance";
    return;
  }
  const plot = plotArea(picture, evaluations, steps);
  drawLevels(picture, plot);
  drawLine(picture, plot, evaluations, "cfg", plot.heightOfScale);
  drawLine(picture, plot, evaluations, "scale", plot.heightOfScale);
  drawLine(picture, plot, evaluations, "probability", plot.heightOfShare);
  status.replaceChildren(...statusParts(evaluations, steps));
}

/** The places of the plot: x of an evaluation, y of a scale and of a probability. */
function plotArea(picture, evaluations, steps) {
  const width = Math.max(picture.clientWidth, 80);
  const bottom = (picture.clientHeight || 100) - MARGIN.bottom;
  const count = Math.max(evaluations.length, steps, 2);
  const x = (index) =>
    MARGIN.left + (index / (count - 1)) * (width - MARGIN.left - MARGIN.right);
  const scales = evaluations.flatMap((one) => [one.cfg ?? 0, one.scale ?? 0]);
  const levels = roundLevels(Math.min(0, ...scales), Math.max(1, ...scales));
  const [lowest, highest] = [levels[0], levels.at(-1)];
  const heightOfShare = (share) => bottom - share * (bottom - MARGIN.top);
  const heightOfScale = (scale) => heightOfShare((scale - lowest) / (highest - lowest));
  return { right: width - MARGIN.right, x, levels, heightOfShare, heightOfScale };
}

/** Horizontal lines at round numbers. */
function drawLevels(picture, { levels, right, heightOfScale }) {
  for (const level of levels) {
    const y = heightOfScale(level);
    const ends = { x1: MARGIN.left, x2: right, y1: y, y2: y };
    svg("line", { ...ends, stroke: "#8884" }, picture);
    const style = { "font-size": 10, fill: TEXT, opacity: 0.7 };
    svg("text", { x: 4, y: y + 3, ...style }, picture).textContent = shortNumber(level);
  }
}

/** One value of all evaluations that have it. */
function drawLine(picture, { x }, evaluations, key, height) {
  const points = evaluations.flatMap((one, index) =>
    one[key] === null ? [] : [`${x(index)},${height(one[key])}`],
  );
  if (points.length === 0) return;
  const style = { fill: "none", stroke: COLOURS[key], "stroke-width": 2 };
  svg("polyline", { points: points.join(" "), ...style, "data-line": key }, picture);
}

/** At least three round numbers, from `low` or less to `high` or more. */
function roundLevels(low, high) {
  const power = 10 ** Math.floor(Math.log10((high - low) / 2));
  const step = [5, 2, 1].map((times) => times * power).find((one) => (high - low) / one >= 2);
  const [first, last] = [Math.floor(low / step), Math.ceil(high / step)];
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
}

/** The latest values in words, each in the colour of its line. */
function statusParts(evaluations, steps) {
  const last = evaluations.at(-1);
  const passes = evaluations.reduce((sum, one) => sum + one.passes, 0);
  const parts = [[`step ${Math.floor(last.step) + 1}/${steps}`, TEXT]];
  if (last.cfg !== null) parts.push([`cfg ${shortNumber(last.cfg)}`, COLOURS.cfg]);
  if (last.scale !== null) parts.push([`classifier ${shortNumber(last.scale)}`, COLOURS.scale]);
  const known = evaluations.findLast((one) => one.probability !== null);
  if (known) parts.push([`p ${known.probability.toFixed(2)}`, COLOURS.probability]);
  parts.push([`${passes} passes`, TEXT]);
  return parts.map(([text, colour]) => {
    const span = document.createElement("span");
    span.textContent = text;
    // darker on a light page, lighter on a dark one
    span.style.color = `color-mix(in srgb, ${colour} 65%, var(--input-text, #ddd))`;
    return span;
  });
}

function shortNumber(value) {
  return String(Number(value.toFixed(2)));
}
