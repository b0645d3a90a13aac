/** Shows the classifier's result on the node Classify Image. */

import { app } from "../../scripts/app.js";

const WIDGET = "seen";
const MIN_HEIGHT = 80;

app.registerExtension({
  name: "classifier-guidance.ClassifyImage",
  nodeCreated(node) {
    if (node.comfyClass !== "ClassifyImage") return;
    const display = addDisplay(node);
    const onExecuted = node.onExecuted;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.text) display.value = output.text.join("\n");
    };
  },
});

function addDisplay(node) {
  const element = document.createElement("textarea");
  element.readOnly = true;
  element.setAttribute("aria-label", "Classes that the classifier sees");
  element.placeholder = "The classes appear here after a run.";
  Object.assign(element.style, {
    width: "100%",
    minHeight: `${MIN_HEIGHT}px`,
    boxSizing: "border-box",
    resize: "none",
    border: "none",
    padding: "6px",
    font: "12px monospace",
    color: "var(--input-text, #ddd)",
    background: "var(--comfy-input-bg, #222)",
  });
  const widget = node.addDOMWidget(WIDGET, "classifier_guidance_text", element, {
    serialize: false, // not in the prompt: it is no input
    getMinHeight: () => MIN_HEIGHT,
    getValue: () => element.value,
    setValue: (text) => (element.value = text ?? ""),
  });
  widget.serialize = false; // not in the saved workflow
  return element;
}
