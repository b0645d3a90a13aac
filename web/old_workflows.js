/** Workflows saved before an input existed keep what they did: the input gets its value of then. */

import { app } from "../../scripts/app.js";

// what a new node is created with is another value, so the page would fill that in
const BEFORE = {
  GuidanceSchedule: { start: 0, end: 1 },
  ClassifierGuidance: { normalize: "off" },
  ImageClassifierLoader: { looks: 0 },
};

app.registerExtension({
  name: "classifier-guidance.old-workflows",
  nodeCreated(node) {
    const before = BEFORE[node.comfyClass];
    if (!before) return;
    const original = node.onConfigure;
    node.onConfigure = function (saved, ...rest) {
      const result = original?.call(this, saved, ...rest);
      fillIn(this, saved.widgets_values ?? [], before);
      return result;
    };
  },
});

/** Sets the widgets that the saved values, in the order of the widgets, do not reach. */
function fillIn(node, values, before) {
  if (!Array.isArray(values)) return;
  const saved = node.widgets.filter((widget) => widget.serialize !== false);
  for (const [name, value] of Object.entries(before)) {
    const place = saved.findIndex((widget) => widget.name === name);
    if (place >= values.length) saved[place].value = value;
  }
}
