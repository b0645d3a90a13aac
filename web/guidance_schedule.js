/** The curve on the node Guidance Schedule. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { CurveEditor } from "./lib/curve_editor.js";
import { DebouncedRequest } from "./lib/debounced_request.js";
import { callAfter, notifyEdited, setHidden } from "./lib/dom.js";
import { INTERPOLATIONS } from "./lib/schedule.js";

const DEFAULT_STEPS = 20;
const RAMP = ["axis", "scale", "end_scale", "start", "end"];
// the inputs that each shape uses; a preset of a paper uses the scale
const INPUTS_OF_SHAPE = {
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
const ALWAYS_VISIBLE = ["shape", "curve", "per_image"];

app.registerExtension({
  name: "classifier-guidance.guidance-schedule",

  getCustomWidgets() {
    return { GUIDANCE_CURVE: curveWidget };
  },

  setup() {
    // another node may have changed, for example the steps of a sampler
    api.addEventListener("graphChanged", () => {
      for (const node of app.graph?.nodes ?? []) node.redrawSchedule?.();
    });
  },

  nodeCreated(node) {
    if (node.comfyClass === "GuidanceSchedule") keepCurveUpToDate(node);
  },
});

function curveWidget(node, name, inputData) {
  const editor = new CurveEditor({
    value: inputData[1]?.default ?? "",
    onEdit: () => notifyEdited(app, node, widget),
    steps: () => stepsOfGraph() ?? DEFAULT_STEPS,
    disabledReason: () => disabledReason(node),
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

/** Why the user cannot draw on the curve; empty where editing is possible. */
function disabledReason(node) {
  if (usedInputs(node).some((name) => isLinked(node, name))) return "linked";
  const shape = widgetValue(node, "shape");
  return shape === undefined || shape === "curve" ? "" : `shape: ${shape}`;
}

/** The inputs that decide the scale. */
function usedInputs(node) {
  const shape = widgetValue(node, "shape");
  return ["shape", ...(shape === "curve" ? ["curve"] : (INPUTS_OF_SHAPE[shape] ?? ["scale"]))];
}

function isLinked(node, name) {
  return node.inputs?.some((input) => input.widget?.name === name && input.link != null) ?? false;
}

function widgetValue(node, name) {
  return node.widgets?.find((widget) => widget.name === name)?.value;
}

/** The number of steps of the first sampler or scheduler in this graph, or null. */
function stepsOfGraph() {
  for (const node of app.graph?.nodes ?? []) {
    const steps = widgetValue(node, "steps") ?? respacedSteps(widgetValue(node, "respacing"));
    if (Number.isInteger(steps) && steps > 0) return steps;
  }
  return null;
}

/** The number of steps that ADM Scheduler makes of "250", "ddim25" or "10,15,20". */
function respacedSteps(text) {
  if (typeof text !== "string") return undefined;
  const counts = text.trim().toLowerCase().replace(/^ddim/, "").split(",");
  return counts.reduce((sum, count) => sum + Number(count), 0);
}

/**
 * Draws the schedule of the node, and shows the inputs of its shape, after every change.
 *
 * Simple shapes are drawn at once, the others when the server's preview has arrived.
 */
function keepCurveUpToDate(node) {
  const request = new DebouncedRequest(fetchPreview, () => draw());
  const draw = () => {
    const editor = node.widgets?.find((widget) => widget.name === "curve")?.editor;
    if (!editor) return;
    editor.preview = request.response;
    editor.previewIsCurrent = request.current && !isLinked(node, "per_image");
    editor.offline = request.offline;
    editor.shapeSchedule = scheduleOfShape(node);
    editor.sameForBatch = sameForBatch(node);
    editor.draw();
  };
  let shape = null;
  const redraw = () => {
    const linked = disabledReason(node) === "linked";
    if (linked) request.cancel();
    if (linked || shape !== widgetValue(node, "shape")) request.response = null;
    shape = widgetValue(node, "shape");
    if (!linked) request.schedule(previewRequest(node));
    draw();
  };
  node.redrawSchedule = redraw;
  for (const widget of node.widgets ?? []) {
    callAfter(widget, "callback", redraw);
    if (widget.name === "shape") callAfter(widget, "callback", () => showInputsOfShape(node));
  }
  const update = () => {
    showInputsOfShape(node);
    redraw();
  };
  for (const event of ["onConnectionsChange", "onConfigure"]) {
    callAfter(node, event, () => requestAnimationFrame(update));
  }
  requestAnimationFrame(update);
}

function fetchPreview(body, signal) {
  const headers = { "Content-Type": "application/json" };
  const options = { method: "POST", body, headers, signal };
  return api.fetchApi("/classifier_guidance/schedule", options);
}

function previewRequest(node) {
  const names = [...usedInputs(node), ...(isLinked(node, "per_image") ? [] : ["per_image"])];
  const inputs = Object.fromEntries(names.map((name) => [name, widgetValue(node, name)]));
  return { inputs, steps: stepsOfGraph() };
}

/** Whether all images of a batch have the same scale, as far as the widgets tell. */
function sameForBatch(node) {
  return !isLinked(node, "per_image") && !widgetValue(node, "per_image")?.trim();
}

/** Hides the inputs that the shape does not use, unless they are linked. */
function showInputsOfShape(node) {
  const used = isLinked(node, "shape") ? null : usedInputs(node);
  const visible = (name) =>
    !used || ALWAYS_VISIBLE.includes(name) || used.includes(name) || isLinked(node, name);
  for (const widget of node.widgets ?? []) setHidden(app, widget, !visible(widget.name));
  node.graph?.setDirtyCanvas?.(true, true);
}

/** The schedule of a shape that the page can draw without the server; null for the others. */
function scheduleOfShape(node) {
  if (disabledReason(node) === "linked") return null;
  const get = (name) => widgetValue(node, name);
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
