/** What the pack's widgets share. */

/** Adds the style sheet of that name once. */
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

/** Calls `then` after whatever target[name] does. */
export function after(target, name, then) {
  const before = target[name];
  target[name] = function (...values) {
    const result = before?.apply(this, values);
    then();
    return result;
  };
}

/** Tells undo and "unsaved" that a widget was edited. */
export function edited(app, node, widget) {
  widget.callback?.(widget.value);
  node.graph?.setDirtyCanvas?.(true, true);
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

/**
 * Shows or hides a widget, whose value stays.
 *
 * Nodes 2.0 reads what its own store has of a widget. Where a frontend keeps none, the widget stays
 * to be seen.
 */
export function hide(app, widget, hidden) {
  widget.hidden = hidden;
  const store = app.extensionManager?._p?._s?.get("widgetValue");
  const options = store?.getWidget?.(widget.widgetId)?.options ?? widget.options;
  if (options) options.hidden = hidden;
}

/** The node of an id such as "7", or "3:7" inside of a subgraph. */
export function nodeById(app, id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node;
}
