/** Properties of nodes that the server changes during a run, and that a reload must not lose.
 *
 * The page's change tracker sees what the user does. What a run shows is no change of the user's:
 * it must be in every state of the workflow, so that undo does not take it away, and a new one
 * would make redo impossible.
 */

const PAUSE = 700; // milliseconds: the page itself waits 512 of them before it saves a draft
let due = null; // the draft that is to be saved: its timer, and what saves it

/** Keeps a node's property in every state of the open workflow, and soon in its draft. */
export function keepProperty(app, api, id, name, value) {
  const workflow = app.extensionManager?.workflow?.activeWorkflow;
  const tracker = workflow?.changeTracker;
  if (!tracker?.activeState) return;
  const plain = JSON.parse(JSON.stringify(value));
  const changed = (state) => withProperty(state, String(id).split(":"), name, plain);
  tracker.activeState = changed(tracker.activeState);
  for (const queue of [tracker.undoQueue, tracker.redoQueue]) {
    queue?.forEach((state, index) => (queue[index] = changed(state)));
  }
  workflow.isModified = true;
  // the page saves a draft of the workflow that is open then
  const save = () => api.dispatchCustomEvent("graphChanged", tracker.activeState);
  due ??= { timer: setTimeout(saveDraft, PAUSE) };
  due.save = save;
}

/** Saves the draft that is due: at once where a run has ended. */
export function saveDraft() {
  if (!due) return;
  const { timer, save } = due;
  due = null;
  clearTimeout(timer);
  save();
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
