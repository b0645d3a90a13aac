/** The values of a Guidance Schedule's inputs: on its node, or on the subgraph's that it is in. */

export class ScheduleInputs {
  /**
   * @param {object} node a Guidance Schedule
   * @param {object | null} host the node of its subgraph, where some of its inputs are shown
   */
  constructor(node, host = null) {
    this.node = node;
    this.host = host;
  }

  /** The value that counts. */
  value(name) {
    return this.#widget(name)?.value;
  }

  /** Sets it as the user does. */
  set(name, value) {
    const widget = this.#widget(name);
    if (!widget || widget.value === value) return;
    widget.value = value;
    widget.callback?.(value);
  }

  /** Whether another node decides the value. */
  isLinked(name) {
    const slot = this.#slot(name);
    if (slot?.link == null) return false;
    const shown = this.#slotOfHost(slot);
    return !shown || shown.link != null;
  }

  #slot(name) {
    return this.node.inputs?.find((input) => input.widget?.name === name);
  }

  #slotOfHost(slot) {
    if (slot?.link == null) return undefined;
    return this.host?.inputs.find((one) => one._subgraphSlot?.linkIds?.includes(slot.link));
  }

  #widget(name) {
    const shown = this.#slotOfHost(this.#slot(name));
    const [node, wanted] = shown ? [this.host, shown.name] : [this.node, name];
    return node.widgets?.find((widget) => widget.name === wanted);
  }
}
