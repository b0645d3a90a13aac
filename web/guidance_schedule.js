/** The curve on the node Guidance Schedule. */

import { app } from "../../scripts/app.js";
import { CurveEditor } from "./lib/curve_editor.js";
import { after, edited, hide } from "./lib/dom.js";
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

  nodeCreated(node) {
    if (node.comfyClass === "GuidanceSchedule") followTheNode(node);
  },
});

function curveWidget(node, name, inputData) {
  const editor = new CurveEditor({
    value: inputData[1]?.default ?? "",
    onEdit: () => edited(app, node, widget),
    steps: stepsOfTheGraph,
    why: () => whyNot(node, name),
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

function whyNot(node, name) {
  const input = node.inputs?.find((one) => one.widget?.name === name);
  if (input?.link != null) return "linked";
  const shape = valueOf(node, "shape");
  return shape === undefined || shape === "curve" ? "" : `shape: ${shape}`;
}

function valueOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name)?.value;
}

/** The number of steps that some sampler or scheduler of this graph takes. */
function stepsOfTheGraph() {
  for (const node of app.graph?.nodes ?? []) {
    const steps = valueOf(node, "steps") ?? respacedSteps(valueOf(node, "respacing"));
    if (Number.isInteger(steps) && steps > 0) return steps;
  }
  return DEFAULT_STEPS;
}

/** What ADM Scheduler makes of "250", "ddim25" or "10,15,20". */
function respacedSteps(text) {
  if (typeof text !== "string") return undefined;
  const counts = text.trim().toLowerCase().replace(/^ddim/, "").split(",");
  return counts.reduce((sum, count) => sum + Number(count), 0);
}

/** Shows what the shape reads, and draws it, as far as the widgets say what it is. */
function followTheNode(node) {
  const editor = () => node.widgets?.find((widget) => widget.name === "curve")?.editor;
  const redraw = () => {
    const curve = editor();
    if (!curve) return;
    curve.shown = shownShape(node);
    curve.draw();
  };
  for (const widget of node.widgets ?? []) {
    if (widget.name === "curve") continue;
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

/** Hides the inputs that the shape does not read, unless they are linked. */
function showInputs(node) {
  const linked = (name) => node.inputs?.some((one) => one.widget?.name === name && one.link != null);
  const read = linked("shape") ? null : (INPUTS[valueOf(node, "shape")] ?? ["scale"]);
  const seen = (name) => !read || ALWAYS.includes(name) || read.includes(name) || linked(name);
  for (const widget of node.widgets ?? []) hide(app, widget, !seen(widget.name));
  node.graph?.setDirtyCanvas?.(true, true);
}

function shownShape(node) {
  const get = (name) => valueOf(node, name);
  const shape = get("shape");
  const axis = get("axis");
  const [start, end, scale] = [get("start"), get("end"), get("scale")];
  if (shape === "constant") return { axis: "percent", interpolation: "hold", points: [[0, scale]] };
  if (shape === "interval") {
    const points = [[start, scale], [end, scale]];
    return { axis, interpolation: "hold", points, outside: get("outside") };
  }
  if ([...INTERPOLATIONS, "power", "exponential"].includes(shape)) {
    const points = [[start, scale], [end, get("end_scale")]];
    return { axis, interpolation: shape, points, exponent: get("exponent") };
  }
  return shape === "curve" ? null : { axis: "sigma", points: [[0, 1]] };
}

