/** The curve on the node Guidance Schedule. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { CurveEditor } from "./lib/curve_editor.js";
import { after, edited, hide } from "./lib/dom.js";
import { Questions } from "./lib/questions.js";
import { INTERPOLATIONS } from "./lib/schedule.js";

const DEFAULT_STEPS = 20;
const RAMP = ["axis", "scale", "end_scale", "start", "end"];
// what a shape reads; the papers' presets read a scale
const INPUTS = {
  constant: ["scale"],
  linear: RAMP,
  cosine: RAMP,
  power: [...RAMP, "exponent"],
  exponential: RAMP,
  interval: ["axis", "scale", "start", "end", "outside"],
  "last steps": ["scale", "outside", "last_steps"],
  keyframes: ["axis", "keyframes"],
  curve: [],
  expression: ["expression"],
};
const ALWAYS = ["shape", "curve", "per_image"];

app.registerExtension({
  name: "classifier-guidance.guidance-schedule",

  getCustomWidgets() {
    return { GUIDANCE_CURVE: curveWidget };
  },

  setup() {
    // a sampler's steps, for one, are in another node
    api.addEventListener("graphChanged", () => {
      for (const node of app.graph?.nodes ?? []) node.redrawSchedule?.();
    });
  },

  nodeCreated(node) {
    if (node.comfyClass === "GuidanceSchedule") followTheNode(node);
  },
});

function curveWidget(node, name, inputData) {
  const editor = new CurveEditor({
    value: inputData[1]?.default ?? "",
    onEdit: () => edited(app, node, widget),
    steps: () => stepsOfTheGraph() ?? DEFAULT_STEPS,
    why: () => whyNot(node),
  });
  const widget = node.addDOMWidget(name, "GUIDANCE_CURVE", editor.element, {
    getValue: () => editor.value,
    setValue: (text) => {
      editor.value = text;
    },
    getMinHeight: () => 220,
  });
  widget.editor = editor;
  return { widget };
}

function whyNot(node) {
  if (readBy(node).some((name) => linked(node, name))) return "linked";
  const shape = valueOf(node, "shape");
  return shape === undefined || shape === "curve" ? "" : `shape: ${shape}`;
}

/** The inputs that decide on the scale. */
function readBy(node) {
  const shape = valueOf(node, "shape");
  return ["shape", ...(shape === "curve" ? ["curve"] : (INPUTS[shape] ?? ["scale"]))];
}

function linked(node, name) {
  return node.inputs?.some((one) => one.widget?.name === name && one.link != null) ?? false;
}

function valueOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name)?.value;
}

/** The number of steps that some sampler or scheduler of this graph takes, if there is one. */
function stepsOfTheGraph() {
  for (const node of app.graph?.nodes ?? []) {
    const steps = valueOf(node, "steps") ?? respacedSteps(valueOf(node, "respacing"));
    if (Number.isInteger(steps) && steps > 0) return steps;
  }
  return null;
}

/** What ADM Scheduler makes of "250", "ddim25" or "10,15,20". */
function respacedSteps(text) {
  if (typeof text !== "string") return undefined;
  const counts = text.trim().toLowerCase().replace(/^ddim/, "").split(",");
  return counts.reduce((sum, count) => sum + Number(count), 0);
}

/** Shows what the shape reads, and draws it: at once where that is simple, else as it is answered. */
function followTheNode(node) {
  const editor = () => node.widgets?.find((widget) => widget.name === "curve")?.editor;
  const questions = new Questions(askServer, () => draw());
  const draw = () => {
    const curve = editor();
    if (!curve) return;
    const { answer, away } = questions;
    const fresh = questions.fresh && !linked(node, "per_image");
    const [shown, alike] = [shownShape(node), allAlike(node)];
    Object.assign(curve, { answer, fresh, away, shown, alike });
    curve.draw();
  };
  let shape = null;
  const redraw = () => {
    const isLinked = whyNot(node) === "linked";
    if (isLinked) questions.forget();
    if (isLinked || shape !== valueOf(node, "shape")) questions.answer = null;
    shape = valueOf(node, "shape");
    if (!isLinked) questions.ask(questionAbout(node));
    draw();
  };
  node.redrawSchedule = redraw;
  for (const widget of node.widgets ?? []) {
    after(widget, "callback", redraw);
    if (widget.name === "shape") after(widget, "callback", () => showInputs(node));
  }
  const all = () => {
    showInputs(node);
    redraw();
  };
  for (const event of ["onConnectionsChange", "onConfigure"]) {
    after(node, event, () => requestAnimationFrame(all));
  }
  requestAnimationFrame(all);
}

function askServer(text, signal) {
  const headers = { "Content-Type": "application/json" };
  const question = { method: "POST", body: text, headers, signal };
  return api.fetchApi("/classifier_guidance/schedule", question);
}

function questionAbout(node) {
  const names = [...readBy(node), ...(linked(node, "per_image") ? [] : ["per_image"])];
  const inputs = Object.fromEntries(names.map((name) => [name, valueOf(node, name)]));
  return { inputs, steps: stepsOfTheGraph() };
}

/** Whether all images of a batch have the same scale, as far as the widgets say. */
function allAlike(node) {
  return !linked(node, "per_image") && !valueOf(node, "per_image")?.trim();
}

/** Hides the inputs that the shape does not read, unless they are linked. */
function showInputs(node) {
  const read = linked(node, "shape") ? null : readBy(node);
  const seen = (name) =>
    !read || ALWAYS.includes(name) || read.includes(name) || linked(node, name);
  for (const widget of node.widgets ?? []) hide(app, widget, !seen(widget.name));
  node.graph?.setDirtyCanvas?.(true, true);
}

/** The schedule of the shapes that need no server; null of the others. */
function shownShape(node) {
  if (whyNot(node) === "linked") return null;
  const get = (name) => valueOf(node, name);
  const shape = get("shape");
  const axis = get("axis");
  const [start, end, scale] = [get("start"), get("end"), get("scale")];
  if (shape === "constant") return { axis: "percent", interpolation: "hold", points: [[0, scale]] };
  if (axis === "sigma") return null;
  if (shape === "interval") {
    const points = [[start, scale], [end, scale]];
    return { axis, interpolation: "hold", points, outside: get("outside") };
  }
  if ([...INTERPOLATIONS, "power", "exponential"].includes(shape)) {
    const points = [[start, scale], [end, get("end_scale")]];
    return { axis, interpolation: shape, points, exponent: get("exponent") };
  }
  return null;
}

