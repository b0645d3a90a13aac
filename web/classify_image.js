// Shows on the Classify Image node what the classifier saw.
import { app } from "../../scripts/app.js";
import { ComfyWidgets } from "../../scripts/widgets.js";

const WIDGET = "classes";

function show(node, lines) {
  let widget = node.widgets?.find((candidate) => candidate.name === WIDGET);
  if (!widget) {
    widget = ComfyWidgets.STRING(node, WIDGET, ["STRING", { multiline: true }], app).widget;
    widget.options.read_only = true;
    // what is shown is not an input: neither the prompt nor a saved workflow carries it
    widget.options.serialize = false;
    widget.serialize = false;
    if (widget.element) widget.element.readOnly = true;
  }
  widget.value = lines.join("\n");
  node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "classifier-guidance.ClassifyImage",
  nodeCreated(node) {
    if (node.comfyClass !== "ClassifyImage") return;
    const onExecuted = node.onExecuted;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.text) show(this, output.text);
    };
  },
});
