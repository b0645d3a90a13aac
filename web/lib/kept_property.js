/** Properties of nodes that the server changes during a run, and that a reload must not lose.
 *
 * The page's change tracker sees what the user does. What a run shows is no change of the user's:
 * it must be in every state of the workflow, so that undo does not take it away, and a new one
 * would make redo impossible.
 */

const PAUSE = 700; // milliseconds: the page itself waits 512 of them before it saves a draft
const due = new Map(); // what is to be kept, by the node's id

/**
 * Soon keeps the property in the open workflow; calls for the same node are joined.
 * @param {(value: object) => void} onKept shows the value: undo may have loaded an older one
 */
export function keepProperty(app, api, id, name, value, onKept) {
  const before = due.get(id);
  if (before) {
    before.value = value;
    return;
  }
  const workflow = openWorkflow(app);
  const entry = { value };
  entry.keep = () => {
    keepIn(workflow, api, id, name, entry.value);
    if (workflow === openWorkflow(app)) onKept(entry.value);
  };
  entry.timer = setTimeout(() => {
    due.delete(id);
    entry.keep();
  }, PAUSE);
  due.set(id, entry);
}

/** The value that will be kept; undefined where none is due. */
export function dueProperty(id) {
  return due.get(id)?.value;
}

/** Keeps at once what is due: the run has ended. */
export function keepAllNow() {
  for (const entry of due.values()) {
    clearTimeout(entry.timer);
    entry.keep();
  }
  due.clear();
}

function openWorkflow(app) {
  return app.extensionManager?.workflow?.activeWorkflow;
}

function keepIn(workflow, api, id, name, value) {
  const tracker = workflow?.changeTracker;
  if (!tracker?.activeState) return;
  const plain = JSON.parse(JSON.stringify(value));
  const changed = (state) => withProperty(state, String(id).split(":"), name, plain);
  tracker.activeState = changed(tracker.activeState);
  for (const queue of [tracker.undoQueue, tracker.redoQueue]) {
    queue?.forEach((state, index) => (queue[index] = changed(state)));
  }
  workflow.isModified = true;
  api.dispatchCustomEvent("graphChanged", tracker.activeState); // the page saves a draft
}

/** A saved graph in which one node has the property; path: the node's id in each subgraph. */
function withProperty(graph, [id, ...inner], name, value, root = graph) {
  const node = graph.nodes?.find((one) => String(one.id) === id);
  if (!node) return root;
  if (inner.length === 0) {
    const properties = { ...node.properties, [name]: value };
    const nodes = graph.nodes.map((one) => (one === node ? { ...one, properties } : one));
    return withGraph(root, graph, { ...graph, nodes });
  }
  const subgraph = root.definitions?.subgraphs?.find((one) => one.id === node.type);
  return subgraph ? withProperty(subgraph, inner, name, value, root) : root;
}

/** The root with one of its graphs replaced. */
function withGraph(root, graph, changed) {
  if (root === graph) return changed;
  const subgraphs = root.definitions.subgraphs.map((one) => (one === graph ? changed : one));
  return { ...root, definitions: { ...root.definitions, subgraphs } };
}
