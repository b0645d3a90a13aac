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
.cg-trace .cg-status { padding: 3px 2px; line-height: 1.35; }
.cg-trace .cg-status div { display: flex; flex-wrap: wrap; gap: 0 8px; }
.cg-trace .cg-status span { overflow-wrap: anywhere; }
`;
const SIZE = [300, 320]; // of a new node
const MARGIN = { left: 34, right: 8, top: 18, bottom: 8 };
const ROOM_FOR_SCORES = 38; // on the right
const CFG = "#4a90d9";
const CLASSIFIERS = ["#f0a040", "#6c8", "#e0605e", "#a98be0"]; // in turn
const TEXT = "currentColor";
const MOST_LINES = 16; // images of a classifier whose lines are drawn
const FEW_LINES = 4; // up to so many, their mean has no line of its own

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
  node.setSize?.(SIZE.map((length, k) => Math.max(length, node.size[k])));
}

function addEvaluation({ node: id, number, steps, classifiers, evaluation }) {
  const node = nodeById(app, id);
  if (!node?.drawTrace) return;
  const before = number === 0 ? {} : (node.properties[PROPERTY] ?? {});
  const seen = before.seen ?? [];
  seen[number] = summary(evaluation);
  const known = { ...before.classifiers, ...classifiers };
  node.properties[PROPERTY] = { steps, classifiers: known, seen };
  node.drawTrace();
}

/** The drawn values of an evaluation; few, because the workflow keeps them. */
function summary({ step, sigma, cfg, passes, classifiers }) {
  const kept = classifiers.map((record) => {
    const { classifier, scale, log_probs: logs, scores } = record;
    const values = scores ?? logs.map((value) => value === null ? null : Math.exp(value));
    const found = values.filter((value) => value !== null);
    const mean = found.length ? found.reduce((sum, one) => sum + one, 0) / found.length : null;
    const least = found.length ? Math.min(...found) : null;
    const each = values.slice(0, MOST_LINES).map((value) => rounded(value, 2));
    const about = { classifier, scale: rounded(scale, 4), count: values.length };
    return { ...about, mean: rounded(mean, 4), least: rounded(least, 4), each };
  });
  return { step, sigma: Number(sigma.toPrecision(4)), cfg, passes, classifiers: kept };
}

function rounded(value, digits) {
  return value === null ? null : Number(value.toFixed(digits));
}

function draw(node, picture, status) {
  const { steps = 1, classifiers = {}, seen = [] } = node.properties[PROPERTY] ?? {};
  const evaluations = seen.filter((one) => one?.classifiers);
  picture.replaceChildren();
  picture.dataset.count = evaluations.length;
  if (evaluations.length === 0) {
    status.textContent = "sample with this MODEL to see its guidance";
    return;
  }
  const lines = Object.entries(classifiers).map(([number, about]) => {
    const record = (one) => one.classifiers.findLast((row) => row.classifier === Number(number));
    const colour = CLASSIFIERS[number % CLASSIFIERS.length];
    return { number, ...about, colour, records: evaluations.map(record) };
  });
  drawPanels(picture, evaluations, steps, lines);
  status.replaceChildren(...statusLines(evaluations, steps, lines));
}

/** Scales above; below, where there is a classifier, its values for each image. */
function drawPanels(picture, evaluations, steps, lines) {
  const size = { width: Math.max(picture.clientWidth, 80), height: picture.clientHeight || 100 };
  const scores = lines.filter((line) => line.kind === "score");
  const probabilities = lines.filter((line) => line.kind !== "score");
  const right = size.width - (scores.length ? ROOM_FOR_SCORES : MARGIN.right);
  const count = Math.max(evaluations.length, steps, 2);
  const x = (index) => MARGIN.left + (index / (count - 1)) * (right - MARGIN.left);
  const middle = lines.length ? size.height * 0.45 : size.height;
  drawScales(picture, { x, right, top: 0, bottom: middle }, evaluations, lines);
  const below = { x, right, top: middle, bottom: size.height };
  if (probabilities.length) drawValues(picture, below, probabilities, [0, 0.5, 1]);
  if (scores.length) drawScores(picture, below, scores, probabilities.length > 0);
}

function drawScales(picture, area, evaluations, lines) {
  const cfg = evaluations.map((one) => one.cfg);
  const scales = lines.map((line) => line.records.map((record) => record?.scale ?? 0));
  const values = [cfg, ...scales].flat().map((value) => value ?? 0);
  const levels = roundLevels(Math.min(0, ...values), Math.max(1, ...values));
  const panel = addPanel(picture, area, levels, "scale");
  drawLine(picture, panel, cfg, { stroke: CFG, "data-line": "cfg" });
  for (const [index, { colour, number }] of lines.entries()) {
    const stroke = themed(colour, 80);
    const about = { stroke, "data-line": "scale", "data-classifier": number };
    drawLine(picture, panel, scales[index], about);
  }
}

function drawScores(picture, area, lines, besideProbabilities) {
  const values = lines.flatMap((line) => line.records.flatMap((record) => record?.each ?? []));
  const found = values.filter((value) => value !== null);
  const [low, high] = [Math.min(0, ...found), Math.max(0, ...found)];
  const levels = roundLevels(low, high === low ? low + 1 : high);
  drawValues(picture, area, lines, levels, besideProbabilities);
}

/** A line for each image, in its classifier's colour; of many, a thick one for their mean. */
function drawValues(picture, area, lines, levels, onTheRight = false) {
  const isScore = lines[0].kind === "score";
  const most = Math.max(...lines.flatMap((line) => line.records.map((one) => one?.count ?? 1)));
  const ofEach = most > 1 ? " of each image" : "";
  const unit = isScore ? "score" : "p(label)";
  const title = `${unit}${ofEach}${most > FEW_LINES ? ", thick: mean" : ""}`;
  const panel = addPanel(picture, area, levels, onTheRight ? "" : title, onTheRight);
  if (onTheRight) addText(picture, area.right + 4, area.top + 12, unit);
  for (const { records, colour, number } of lines) {
    const images = Math.max(...records.map((record) => record?.each.length ?? 0));
    const many = images > FEW_LINES;
    const about = { stroke: themed(colour, 80), "data-classifier": number };
    if (isScore) about["stroke-dasharray"] = "4 3";
    for (let image = 0; image < images; image++) {
      const values = records.map((record) => record?.each[image] ?? null);
      const thin = { "stroke-width": many ? 1 : 1.5, opacity: many ? 0.5 : 0.9 };
      drawLine(picture, panel, values, { ...about, ...thin, "data-line": "image" });
    }
    const means = records.map((record) => record?.mean ?? null);
    if (many) drawLine(picture, panel, means, { ...about, "data-line": "mean" });
  }
}

/** Horizontal lines at round numbers, and a title; the height of a value in it. */
function addPanel(picture, area, levels, title, onTheRight = false) {
  const [top, bottom] = [area.top + MARGIN.top, area.bottom - MARGIN.bottom];
  const [lowest, highest] = [levels[0], levels.at(-1)];
  const share = (value) => (value - lowest) / (highest - lowest);
  const y = (value) => bottom - share(value) * (bottom - top);
  if (title) addText(picture, MARGIN.left, area.top + 12, title);
  for (const level of levels) {
    const ends = { x1: MARGIN.left, x2: area.right, y1: y(level), y2: y(level) };
    if (!onTheRight) svg("line", { ...ends, stroke: "#8884" }, picture);
    const left = onTheRight ? area.right + 4 : 4;
    addText(picture, left, y(level) + 3, shortNumber(level), { class: "cg-number" });
  }
  return { x: area.x, y };
}

function addText(picture, x, y, text, attributes = {}) {
  const style = { "font-size": 10, fill: TEXT, opacity: 0.7 };
  svg("text", { x, y, ...style, ...attributes }, picture).textContent = text;
}

/** The values of all evaluations; the line has a gap where there is none. */
function drawLine(picture, { x, y }, values, attributes) {
  let pen = "M";
  const points = values.map((value, index) => {
    const part = value === null ? "" : `${pen}${x(index).toFixed(1)},${y(value).toFixed(1)}`;
    pen = value === null ? "M" : "L";
    return part;
  });
  const count = points.filter(Boolean).length;
  if (count === 0) return;
  // a round end makes a dot of a line with one point
  const style = { fill: "none", "stroke-width": 2, "stroke-linecap": "round" };
  const d = points.join("") + (count === 1 ? "h0" : "");
  const path = svg("path", { d, ...style, ...attributes, "data-points": count }, picture);
  path.style.stroke = attributes.stroke; // an attribute knows no variables of the page's theme
}

/** At least three round numbers, from `low` or less to `high` or more. */
function roundLevels(low, high) {
  const power = 10 ** Math.floor(Math.log10((high - low) / 2));
  const step = [5, 2, 1].map((times) => times * power).find((one) => (high - low) / one >= 2);
  const [first, last] = [Math.floor(low / step), Math.ceil(high / step)];
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
}

/** The latest values in words, each in the colour of its line; a row for each classifier. */
function statusLines(evaluations, steps, lines) {
  const last = evaluations.at(-1);
  const passes = evaluations.reduce((sum, one) => sum + one.passes, 0);
  const first = [[`step ${Math.floor(last.step) + 1}/${steps}`, TEXT]];
  if (last.cfg !== null) first.push([`cfg ${shortNumber(last.cfg)}`, CFG]);
  first.push([`${passes} passes`, TEXT]);
  const rows = lines.map((line) => {
    const scale = line.records.at(-1)?.scale ?? 0;
    const parts = [line.name, `scale ${shortNumber(scale)}`, ...latestValue(line)];
    return parts.map((text) => [text, line.colour]);
  });
  return [first, ...rows].map((parts) => {
    const row = document.createElement("div");
    row.append(...parts.map(([text, colour]) => statusPart(text, colour)));
    return row;
  });
}

/** "p(7) 0.93", of several images "p(7) 0.93, lowest 0.71". */
function latestValue({ kind, labels, records }) {
  const known = records.findLast((record) => record && record.mean !== null);
  if (!known) return [];
  const distinct = [...new Set(labels)];
  const label = distinct.length === 1 ? distinct[0] : "label";
  const unit = kind === "score" ? "score" : `p(${label})`;
  const lowest = known.count > 1 ? [`lowest ${known.least.toFixed(2)}`] : [];
  const mean = known.count > 1 ? "mean " : "";
  return [`${unit} ${mean}${known.mean.toFixed(2)}`, ...lowest];
}

function statusPart(text, colour) {
  const span = document.createElement("span");
  span.textContent = text;
  span.style.color = themed(colour, 65);
  return span;
}

/** A colour that is darker on a light page and lighter on a dark one; share: of the colour. */
function themed(colour, share) {
  return `color-mix(in srgb, ${colour} ${share}%, var(--input-text, #ddd))`;
}

function shortNumber(value) {
  return String(Number(value.toFixed(2)));
}
