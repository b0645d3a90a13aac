/** Helpers that the pack's widgets share. */

/** Adds a style sheet once. */
export function addStyle(id, text) {
  if (document.getElementById(id)) return;
  const style = document.createElement("style");
  style.id = id;
  style.textContent = text;
  document.head.append(style);
}

const SVG = "http://www.w3.org/2000/svg";

/** A new SVG element. */
export function svg(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent?.append(element);
  return element;
}

/** Makes the method target[name] call `callback` when it has finished. */
export function callAfter(target, name, callback) {
  const original = target[name];
  target[name] = function (...values) {
    const result = original?.apply(this, values);
    callback();
    return result;
  };
}

/** Keeps pointer and key events of an element from the graph behind it. */
export function stopEvents(element, names) {
  for (const name of names) {
    element.addEventListener(name, (event) => event.stopPropagation());
  }
}

/** Tells the page that a widget was edited, for undo and the mark of an unsaved workflow. */
export function notifyEdited(app, node, widget) {
  widget.callback?.(widget.value);
  node.graph?.setDirtyCanvas?.(true, true);
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

/**
 * Hides or shows a widget; its value stays.
 *
 * Nodes 2.0 reads a store of its own. Where a frontend has no such store, the widget stays visible.
 */
export function setHidden(app, widget, hidden) {
  widget.hidden = hidden;
  const store = app.extensionManager?._p?._s?.get("widgetValue");
  const options = store?.getWidget?.(widget.widgetId)?.options ?? widget.options;
  if (options) options.hidden = hidden;
}

/** The node with an id like "7", or "3:7" for one inside a subgraph. */
export function nodeById(app, id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node;
}

const OFF = [2, 4]; // the modes of a node that is muted or bypassed

/** Dims an element with its node, where the canvas draws the node; Nodes 2.0 does so by itself. */
export function dimWhenOff(node, element) {
  const opacity = OFF.includes(node.mode) && !globalThis.LiteGraph?.vueNodesMode ? "0.4" : "";
  if (element.style.opacity !== opacity) element.style.opacity = opacity;
}
