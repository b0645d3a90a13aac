/** What the server says about a run: in the page's language, and on the node that it is about. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { nodeById } from "./lib/dom.js";
import { translated } from "./lib/words.js";

const FAULT = "classifier_guidance.fault";
const TEXT_ON_NODE = "$$node-text-preview"; // core's widget for such a text
let fault = null;

app.registerExtension({
  name: "classifier-guidance.server-messages",

  // the page's own listeners have run by then, or run later: both see what is changed here
  init() {
    api.addEventListener(FAULT, ({ detail }) => {
      fault = detail;
    });
    api.addEventListener("execution_start", () => {
      fault = null;
    });
    api.addEventListener("execution_error", ({ detail }) => attribute(detail));
    api.addEventListener("progress_text", ({ detail }) => translateOnNode(detail));
  },
});

/**
 * ComfyUI knows only the sampler in which an error was raised; a fault names the node whose input is
 * wrong.
 */
function attribute(error) {
  const text = error.exception_message?.trim();
  if (fault && fault.text === text) {
    error.node_id = fault.node;
    error.node_type = nodeById(app, fault.node)?.comfyClass ?? error.node_type;
    fault = null;
  }
  if (text) error.exception_message = translated(text);
}

function translateOnNode({ nodeId, text }) {
  const widget = nodeById(app, nodeId)?.widgets?.find((one) => one.name === TEXT_ON_NODE);
  if (widget?.value === text) widget.value = translated(text);
}
