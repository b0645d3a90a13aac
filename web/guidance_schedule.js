/** The curve on the node Guidance Schedule. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { CurveEditor } from "./lib/curve_editor.js";
import { DebouncedRequest } from "./lib/debounced_request.js";
import { callAfter, dimWhenOff, notifyEdited, setHidden } from "./lib/dom.js";
import { openGallery } from "./lib/preset_gallery.js";
import { ScheduleInputs } from "./lib/schedule_inputs.js";
import { inputsOfPoint, inputsOfShape, scheduleOfShape } from "./lib/schedule_shapes.js";
import { t } from "./lib/words.js";

const DEFAULT_STEPS = 20;
const WIDTH = 320;
const ALWAYS_VISIBLE = ["shape", "curve", "per_image"];

app.registerExtension({
  name: "classifier-guidance.guidance-schedule",

  getCustomWidgets() {
    return { GUIDANCE_CURVE: curveWidget };
  },

  setup() {
    // another node may have changed, for example the steps of a sampler
    api.addEventListener("graphChanged", () => {
      for (const node of app.canvas?.graph?.nodes ?? []) node.redrawSchedule?.();
    });
  },

  nodeCreated(node) {
    if (node.comfyClass === "GuidanceSchedule") followInputs(node);
  },
});

function curveWidget(node, name, inputData) {
  const inputs = new ScheduleInputs(node);
  const editor = newEditor(inputs, inputData[1]?.default ?? "", () =>
    notifyEdited(app, node, widget));
  const widget = node.addDOMWidget(name, "GUIDANCE_CURVE", editor.element, {
    getValue: () => editor.value,
    setValue: (value) => {
      editor.value = value;
    },
    getMinHeight: () => 220,
    onDraw: () => dimWhenOff(node, editor.element),
  });
  widget.editor = editor;
  return { widget };
}

/**
 * An editor of the schedule that these inputs make.
 * @param {ScheduleInputs} inputs
 * @param {string} value of the input curve
 * @param {() => void} onEdit the user has changed it, or the inputs of its shape
 */
export function newEditor(inputs, value, onEdit) {
  return new CurveEditor({
    value,
    onEdit,
    steps: () => stepsOf(inputs.node.graph) ?? stepsOf(app.graph) ?? DEFAULT_STEPS,
    disabledReason: () => disabledReason(inputs),
    onShapePoint: (index, point) => {
      const names = inputsOfPoint(inputs.value("shape"), index);
      names.forEach((name, k) => inputs.set(name, Number(point[k].toFixed(4))));
    },
    onShapeEdited: onEdit,
    onPresets: () => openGallery({
      scale: inputs.value("scale"),
      fetchPreview: (values) => previewOf({ inputs: values, steps: null }),
      choose: (shape, values) => {
        for (const name in values) inputs.set(name, values[name]);
        inputs.set("shape", shape);
        onEdit();
      },
    }),
  });
}

/** Why the user cannot draw on the curve; empty where editing is possible. */
function disabledReason(inputs) {
  if (usedInputs(inputs).some((name) => inputs.isLinked(name))) return t("linked");
  const shape = inputs.value("shape");
  if (shape === undefined || shape === "curve") return "";
  return t("shape: {shape}", { shape: t(shape) });
}

/** The inputs that decide the scale. */
function usedInputs(inputs) {
  const shape = inputs.value("shape");
  return ["shape", ...(shape === "curve" ? ["curve"] : inputsOfShape(shape))];
}

/** The number of steps of the first sampler or scheduler in a graph, or null. */
function stepsOf(graph) {
  for (const node of graph?.nodes ?? []) {
    const find = (name) => node.widgets?.find((widget) => widget.name === name)?.value;
    const steps = find("steps") ?? respacedSteps(find("respacing"));
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

/** Makes a node wide enough for the line below its curve. */
export function widen(node) {
  if (node.size[0] < WIDTH) node.setSize?.([WIDTH, node.size[1]]);
}

/** Draws the schedule, and shows the inputs of its shape, after every change of the node. */
function followInputs(node) {
  const inputs = new ScheduleInputs(node);
  const find = () => node.widgets?.find((widget) => widget.name === "curve")?.editor;
  const redraw = scheduleDrawer(inputs, find);
  node.redrawSchedule = redraw;
  widen(node);
  for (const widget of node.widgets ?? []) {
    callAfter(widget, "callback", redraw);
    if (widget.name === "shape") callAfter(widget, "callback", () => showInputsOfShape(inputs));
  }
  const update = () => {
    showInputsOfShape(inputs);
    redraw();
  };
  for (const event of ["onConnectionsChange", "onConfigure"]) {
    callAfter(node, event, () => requestAnimationFrame(update));
  }
  requestAnimationFrame(update);
}

/**
 * A function that draws the schedule of these inputs.
 *
 * Simple shapes are drawn at once, the others when the server's preview has arrived.
 */
export function scheduleDrawer(inputs, findEditor) {
  const send = (body, signal) => fetchPreview(body, signal);
  const request = new DebouncedRequest(send, () => draw());
  const isLinked = () => usedInputs(inputs).some((name) => inputs.isLinked(name));
  const draw = () => {
    const editor = findEditor();
    if (!editor) return;
    editor.preview = request.response;
    editor.previewIsCurrent = request.current && !inputs.isLinked("per_image");
    editor.offline = request.offline;
    editor.shapeSchedule = isLinked() ? null : scheduleOfShape((name) => inputs.value(name));
    editor.sameForBatch = sameForBatch(inputs);
    editor.draw();
  };
  let shape = null;
  return () => {
    const linked = isLinked();
    if (linked) request.cancel();
    if (linked || shape !== inputs.value("shape")) request.response = null;
    shape = inputs.value("shape");
    if (!linked) request.schedule(previewRequest(inputs));
    draw();
  };
}

function fetchPreview(body, signal) {
  const headers = { "Content-Type": "application/json" };
  const options = { method: "POST", body, headers, signal };
  return api.fetchApi("/classifier_guidance/schedule", options);
}

/** The server's preview, or null without a server. */
async function previewOf(content) {
  try {
    const response = await fetchPreview(JSON.stringify(content));
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

function previewRequest(inputs) {
  const perImage = inputs.isLinked("per_image") ? [] : ["per_image"];
  const names = [...usedInputs(inputs), ...perImage];
  const values = Object.fromEntries(names.map((name) => [name, inputs.value(name)]));
  return { inputs: values, steps: stepsOf(inputs.node.graph) ?? stepsOf(app.graph) };
}

/** Whether all images of a batch have the same scale, as far as the widgets tell. */
function sameForBatch(inputs) {
  return !inputs.isLinked("per_image") && !inputs.value("per_image")?.trim();
}

/** Hides the inputs that the shape does not use, unless they are linked. */
function showInputsOfShape(inputs) {
  const { node } = inputs;
  const used = inputs.isLinked("shape") ? null : usedInputs(inputs);
  const visible = (name) =>
    !used || ALWAYS_VISIBLE.includes(name) || used.includes(name) || inputs.isLinked(name);
  for (const widget of node.widgets ?? []) setHidden(app, widget, !visible(widget.name));
  node.graph?.setDirtyCanvas?.(true, true);
}
