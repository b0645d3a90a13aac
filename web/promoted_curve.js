/** The curve of a Guidance Schedule on the node of its subgraph, where it can be drawn as well.
 *
 * The page moves plain widgets there by itself, and the curve is none. This reads the page's own
 * stores; where a frontend has none of them, the schedule stays inside its subgraph.
 */

import { app } from "../../scripts/app.js";
import { newEditor, scheduleDrawer, widen } from "./guidance_schedule.js";
import { dimWhenOff, notifyEdited } from "./lib/dom.js";
import { ScheduleInputs } from "./lib/schedule_inputs.js";

const TYPE = "GUIDANCE_CURVE";

app.registerExtension({
  name: "classifier-guidance.promoted-curve",

  nodeCreated(node) {
    if (node.isSubgraphNode?.()) makeCurvesPossible(node);
  },

  setup() {
    app.canvas?.canvas?.addEventListener("subgraph-converted", ({ detail }) => {
      exposeCurves(detail.subgraphNode);
    });
  },
});

/** The curves of the schedules that have just gone into a subgraph become inputs of its node. */
function exposeCurves(host) {
  for (const node of host.subgraph?.nodes ?? []) {
    const widget = node.widgets?.find((one) => one.type === TYPE);
    const slot = widget && node.getSlotFromWidget?.(widget);
    if (!slot || slot.link != null) continue;
    const input = host.subgraph.addInput(freeName(host, widget.name), String(slot.type));
    if (!input.connect(slot, node)) host.subgraph.removeInput(input);
  }
  host.expandToFitContent?.();
  if (host.widgets?.some((widget) => widget.type === TYPE)) widen(host);
  host.setDirtyCanvas?.(true, true);
}

function freeName(host, name) {
  const taken = host.subgraph.inputs.map((input) => input.name);
  const names = [name, ...taken.map((_, index) => `${name}_${index + 1}`)];
  return names.find((one) => !taken.includes(one));
}

/** Lets the node of a subgraph build a widget of its own for a curve. */
function makeCurvesPossible(host) {
  const original = host.createPromotedHostWidget;
  if (!original) return;
  const drawers = new Map(); // by the widget's id
  host.createPromotedHostWidget = function (input, id, source) {
    return curveOn(this, input, id, source, drawers) ?? original.call(this, input, id, source);
  };
  host.redrawSchedule = () => drawers.forEach((redraw) => redraw());
}

/** The widget; undefined for a widget of another type, and until the node is in its graph. */
function curveOn(host, input, id, source, drawers) {
  if (source.type !== TYPE || !source.editor) return undefined;
  if (host.graph?.getNodeById(host.id) !== host) return undefined;
  const stores = app.extensionManager?._p?._s;
  const [values, widgets] = [stores?.get("widgetValue"), stores?.get("domWidget")];
  if (!values?.setValue || !widgets?.registerWidget) return undefined;
  const stored = () => values.getWidget(id)?.value ?? "";
  const inputs = new ScheduleInputs(source.node, host);
  const editor = newEditor(inputs, stored(), () => {
    values.setValue(id, editor.value);
    redraw();
    notifyEdited(app, host, widget);
  });
  const widget = new source.constructor({
    node: host,
    name: input.name,
    type: TYPE,
    element: editor.element,
    options: {
      hideOnZoom: true,
      getMinHeight: () => 220,
      getValue: stored,
      setValue: (value) => {
        values.setValue(id, value);
        redraw();
      },
      onDraw: () => dimWhenOff(host, editor.element),
    },
  });
  widget.editor = editor;
  widgets.registerWidget(widget);
  const redraw = scheduleDrawer(inputs, () => {
    if (editor.text !== stored()) editor.text = stored();
    return editor;
  });
  drawers.set(id, redraw);
  requestAnimationFrame(redraw);
  return widget;
}
