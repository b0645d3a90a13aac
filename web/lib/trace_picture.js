/** The picture of a run: scales above; below, for each image, what its classifiers say. */

import { svg } from "./dom.js";
import { BLUE, GRID, lineColour } from "./theme.js";
import { evaluationsOf, spansOf } from "./trace_run.js";
import { t } from "./words.js";

const MARGIN = { left: 34, right: 10, top: 18, bottom: 8 };
const AXIS_HEIGHT = 16; // of the numbers of the steps
const ROOM_FOR_SCORES = 38; // on the right
const FEW_LINES = 4; // up to so many, their mean has no line of its own
const TICKS = 6; // at most about so many steps have a number
const CLASSIFIERS = ["#f0a040", "#66cc88", "#e0605e", "#a98be0"]; // in turn

export const CFG_COLOUR = BLUE;
// what is behind the lines of this run
export const PLANNED = { "stroke-width": 7, opacity: 0.28, "stroke-linecap": "butt" };
export const BEFORE = { "stroke-width": 1.25, opacity: 0.7 };

/** The classifiers of a run, each with its colour and its record at each evaluation, or none. */
export function linesOf(run) {
  const evaluations = evaluationsOf(run);
  return Object.entries(run.classifiers ?? {}).map(([number, about]) => {
    const colour = CLASSIFIERS[number % CLASSIFIERS.length];
    return { number, ...about, colour, records: recordsOf(evaluations, number) };
  });
}

function recordsOf(evaluations, number) {
  const wanted = Number(number);
  return evaluations.map((one) => one.classifiers.findLast((row) => row.classifier === wanted));
}

/** Draws a run with one evaluation or more. */
export function drawRun(picture, run) {
  const lines = linesOf(run);
  const evaluations = evaluationsOf(run);
  const size = { width: Math.max(picture.clientWidth, 80), height: picture.clientHeight || 100 };
  const scores = lines.filter((line) => line.kind === "score");
  const probabilities = lines.filter((line) => line.kind !== "score");
  const right = size.width - (scores.length ? ROOM_FOR_SCORES : MARGIN.right);
  const x = (step, steps = run.steps) => MARGIN.left + (step / steps) * (right - MARGIN.left);
  const bottom = size.height - AXIS_HEIGHT;
  const middle = lines.length ? bottom * 0.48 : bottom;
  const area = { x, right, spans: spansOf(evaluations), before: run.before };
  const panels = lines.length ? [[0, middle], [middle, bottom]] : [[0, middle]];
  drawSteps(picture, area, run.steps, panels, size.height);
  drawScales(picture, { ...area, top: 0, bottom: middle }, run, lines);
  const below = { ...area, top: middle, bottom };
  if (probabilities.length) drawValues(picture, below, probabilities, [0, 0.5, 1]);
  if (scores.length) drawScores(picture, below, scores, probabilities.length > 0);
}

/** The axis of the steps: how many are done. */
function drawSteps(picture, { x, right }, steps, panels, height) {
  const every = [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500].find((n) => steps / n <= TICKS) ?? 1000;
  const ticks = Array.from({ length: Math.floor(steps / every) + 1 }, (_, index) => index * every);
  for (const step of ticks) {
    for (const [top, bottom] of panels) {
      const ends = { y1: top + MARGIN.top, y2: bottom - MARGIN.bottom };
      drawStraight(picture, { x1: x(step), x2: x(step), ...ends });
    }
    const place = { class: "cg-step", "text-anchor": "middle" };
    // the name of the axis is at its end
    if (x(step) < right - 30) addText(picture, x(step), height - 4, String(step), place);
  }
  addText(picture, right, height - 4, `${t("step")} ${steps}`, { class: "cg-step", "text-anchor": "end" });
}

function drawScales(picture, area, run, lines) {
  const cfg = evaluationsOf(run).map((one) => one.cfg);
  const scales = lines.map((line) => line.records.map((record) => record?.scale ?? 0));
  const { planned = {}, before } = run;
  const old = (before?.seen ?? []).flatMap((one) => [
    one.cfg,
    ...one.classifiers.filter((row) => row.classifier < lines.length).map((row) => row.scale),
  ]);
  const values = [cfg, ...scales, ...Object.values(planned), old].flat().map((value) => value ?? 0);
  const levels = roundLevels(Math.min(0, ...values), Math.max(1, ...values));
  const panel = addPanel(picture, area, levels, t("scale"));
  const cfgLine = { colour: CFG_COLOUR, name: "cfg", values: cfg };
  cfgLine.old = (one) => one.cfg;
  const others = lines.map(({ colour, number }, index) => {
    const old = (one) => recordsOf([one], number)[0]?.scale ?? 0;
    return { colour, name: number, values: scales[index], old };
  });
  const all = [cfgLine, ...others];
  for (const { colour, name, old } of all) {
    const stroke = lineColour(colour);
    drawBefore(picture, panel, before, old, { stroke });
    const steps = planned[name] ?? [];
    const spans = steps.map((_, step) => [step, step + 1]);
    drawStairs(picture, { ...panel, spans }, steps, { stroke, ...PLANNED, "data-line": "planned" });
  }
  for (const { colour, name, values } of all) {
    const kind = name === "cfg" ? { "data-line": "cfg" } : { "data-line": "scale" };
    const about = { stroke: lineColour(colour), "data-classifier": name, ...kind };
    drawStairs(picture, panel, values, about);
  }
}

function drawBefore(picture, panel, before, valueOf, about) {
  if (!before) return;
  const spans = spansOf(before.seen).map((span) => span.map((step) => step / before.steps));
  const x = (share) => panel.x(share, 1);
  const values = before.seen.map(valueOf);
  drawStairs(picture, { ...panel, x, spans }, values, { ...about, ...BEFORE, "data-line": "before" });
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
  const ofEach = most > 1 ? t(" of each image") : "";
  const unit = isScore ? t("score") : "p(label)";
  const title = `${unit}${ofEach}${most > FEW_LINES ? t(", thick: mean") : ""}`;
  const panel = addPanel(picture, area, levels, onTheRight ? "" : title, onTheRight);
  if (onTheRight) addText(picture, area.right + 4, area.top + 12, unit);
  for (const { kind, records, colour, number } of lines) {
    const stroke = lineColour(colour);
    const images = Math.max(...records.map((record) => record?.each.length ?? 0));
    const many = images > FEW_LINES;
    const about = { stroke, "data-classifier": number };
    if (area.before?.kinds?.[number] === kind) {
      const mean = (one) => recordsOf([one], number)[0]?.mean ?? null;
      drawBefore(picture, panel, area.before, mean, { stroke });
    }
    if (isScore) about["stroke-dasharray"] = "4 3";
    for (let image = 0; image < images; image++) {
      const values = records.map((record) => record?.each[image] ?? null);
      const thin = { "stroke-width": many ? 1 : 1.5, opacity: many ? 0.5 : 0.9 };
      drawStairs(picture, panel, values, { ...about, ...thin, "data-line": "image" });
    }
    const means = records.map((record) => record?.mean ?? null);
    if (many) drawStairs(picture, panel, means, { ...about, "data-line": "mean" });
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
    if (!onTheRight) drawStraight(picture, ends);
    const place = onTheRight ? [area.right + 4, "start"] : [MARGIN.left - 5, "end"];
    const about = { class: "cg-number", "text-anchor": place[1] };
    addText(picture, place[0], y(level) + 3, shortNumber(level), about);
  }
  return { x: area.x, y, spans: area.spans };
}

function drawStraight(picture, ends) {
  svg("line", ends, picture).style.stroke = GRID;
}

function addText(picture, x, y, words, attributes = {}) {
  const style = { "font-size": 10, fill: "currentColor", opacity: 0.85 };
  svg("text", { x, y, ...style, ...attributes }, picture).textContent = words;
}

/** The values, each held over its span of the run; the line has a gap where there is none. */
function drawStairs(picture, { x, y, spans }, values, attributes) {
  const order = values.map((_, index) => index).sort((a, b) => spans[a][0] - spans[b][0]);
  let d = "";
  let isDrawn = false; // whether the value before has a line
  for (const index of order) {
    const value = values[index];
    if (value !== null) {
      const [from, to] = spans[index].map((step) => x(step).toFixed(1));
      const height = y(value).toFixed(1);
      d += isDrawn ? `V${height}H${to}` : `M${from},${height}H${to}`;
    }
    isDrawn = value !== null;
  }
  if (!d) return;
  const style = { fill: "none", "stroke-width": 2, "stroke-linejoin": "round" };
  const count = values.filter((value) => value !== null).length;
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

export function shortNumber(value) {
  return String(Number(value.toFixed(2)));
}
