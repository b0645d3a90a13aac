/** An editor for a curve of points [position, scale].
 *
 * Schedules of other kinds are shown here, too, from the server's preview; they cannot be edited.
 */

import { addStyle, stopEvents, svg } from "./dom.js";
import {
  INTERPOLATIONS,
  countPasses,
  parseSchedule,
  sampleSchedule,
  scaleAt,
  toText,
} from "./schedule.js";

const MARGIN = { left: 34, right: 12, top: 10, bottom: 20 };
const GAP = 0.001; // the least distance between two points
const STYLE = `
.cg-curve { display: flex; flex-direction: column; min-height: 210px; height: 100%; width: 100%;
  box-sizing: border-box; font: 11px sans-serif; color: var(--input-text, #ddd); }
.cg-curve svg { flex: 1; min-height: 0; width: 100%; border-radius: 6px; touch-action: none;
  background: var(--comfy-input-bg, #222); }
.cg-curve .cg-bar { display: flex; gap: 6px; align-items: center; padding: 3px 2px; }
.cg-curve .cg-bar select { background: var(--comfy-input-bg, #222); color: inherit;
  border: 1px solid var(--border-color, #555); border-radius: 4px; font: inherit; }
.cg-curve .cg-status { margin-left: auto; opacity: 0.85; white-space: nowrap; }
.cg-curve .cg-message { padding: 2px; opacity: 0.85; overflow-wrap: anywhere; user-select: text; }
.cg-curve .cg-message:empty { display: none; }
.cg-curve .cg-message.cg-error { opacity: 1; max-height: 6em; overflow: auto; line-height: 1.35;
  color: color-mix(in srgb, var(--error-text, #f55) 70%, var(--input-text, #ddd)); }
.cg-curve.cg-message-only svg { display: none; }
.cg-curve.cg-message-only .cg-message { flex: 1; max-height: none; padding: 8px; border-radius: 6px;
  background: var(--comfy-input-bg, #222); font-size: 12px; }
.cg-curve circle { fill: var(--cg-point, #f0a040); stroke: #0008; cursor: grab; outline: none; }
.cg-curve circle:focus, .cg-curve circle:hover { stroke: #fff; stroke-width: 2; }
.cg-curve.cg-disabled svg { opacity: 0.75; pointer-events: none; }
.cg-curve.cg-disabled select { display: none; }
`;

export class CurveEditor {
  /**
   * @param {{value: string, onEdit: (text: string) => void, steps: () => number,
   *   disabledReason: () => string}} options `disabledReason` is empty while the user may edit.
   */
  constructor({ value, onEdit, steps, disabledReason }) {
    addStyle("cg-curve-style", STYLE);
    this.onEdit = onEdit;
    this.steps = steps;
    this.disabledReason = disabledReason;
    this.text = value;
    this.draft = null; // the text while a point is dragged: undo must not see each move
    this.shapeSchedule = null; // of another shape: drawn instead of the curve
    this.preview = null; // the server's latest answer about the schedule
    this.previewIsCurrent = false; // whether the schedule has not changed since
    this.offline = false; // whether the server did not answer
    this.sameForBatch = true; // whether all images of a batch have the same scale
    this.element = document.createElement("div");
    this.element.className = "cg-curve";
    this.svg = svg("svg", { role: "group", "aria-label": "guidance schedule" });
    this.message = document.createElement("div");
    this.message.className = "cg-message";
    this.message.setAttribute("role", "status");
    this.element.append(this.svg, this.message, this.#bar());
    this.svg.addEventListener("dblclick", (event) => this.#addAtPointer(event));
    // the graph behind must not move, and its menu must not open
    stopEvents(this.element, ["pointerdown", "mousedown", "contextmenu", "wheel", "dblclick"]);
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  get value() {
    return this.text;
  }

  set value(text) {
    this.text = text;
    this.draw();
  }

  /** Whether the user cannot edit the curve. */
  get disabled() {
    const curve = parseSchedule(this.text);
    return Boolean(this.disabledReason()) || !curve || curve.axis === "sigma";
  }

  #bar() {
    const bar = document.createElement("div");
    bar.className = "cg-bar";
    this.axis = this.#select(["percent", "step"], "axis", bar);
    this.interpolation = this.#select(INTERPOLATIONS, "interpolation", bar);
    this.status = document.createElement("span");
    this.status.className = "cg-status";
    bar.append(this.status);
    return bar;
  }

  #select(options, key, bar) {
    const select = document.createElement("select");
    select.setAttribute("aria-label", key);
    select.append(...options.map((name) => new Option(name, name)));
    select.addEventListener("change", () => this.#edit({ [key]: select.value }));
    bar.append(select);
    return select;
  }

  #edit(changes) {
    const schedule = parseSchedule(this.text);
    if (!schedule || this.disabled) return;
    this.text = toText({ ...schedule, ...changes });
    this.draw();
    this.onEdit(this.text);
  }

  draw() {
    const active = document.activeElement;
    const focused = this.svg.contains(active) && active.dataset.index;
    const error = this.preview?.error;
    const curve = this.disabled ? null : parseSchedule(this.draft ?? this.text);
    const schedule = curve ?? (error ? null : this.shapeSchedule);
    const received = this.preview?.positions ? this.preview : null;
    const line = schedule ? sampleSchedule(schedule) : received;
    this.element.classList.toggle("cg-disabled", !curve);
    this.element.classList.toggle("cg-message-only", Boolean(error) && !line);
    this.axis.disabled = this.interpolation.disabled = !curve;
    this.svg.replaceChildren();
    this.#showText(schedule, line);
    if (!line) return;
    if (curve) {
      this.axis.value = curve.axis;
      this.interpolation.value = curve.interpolation;
    }
    this.#measure(line, curve);
    this.#drawIntervals(line);
    this.#drawGrid(line, curve ? "" : line.axis);
    this.#drawLine(line);
    curve?.points.forEach((point, index) => this.#drawPoint(curve, index));
    if (focused) this.focus(focused);
  }

  /** The size of the picture, and the range of its scales. */
  #measure(line, curve) {
    const scales = line.scales.filter((scale) => scale !== null);
    const highest = Math.max(...scales, curve?.outside ?? 1, 1);
    const lowest = Math.min(...scales, curve?.outside ?? 0, 0);
    if (!this.dragged) this.range = [Math.floor(lowest), Math.ceil(highest * 1.15 + 0.5)];
    // clientWidth: in the element's own pixels, however far the graph is zoomed
    this.width = Math.max(this.svg.clientWidth, 80);
    this.height = Math.max(this.svg.clientHeight, 60);
  }

  x(position) {
    return MARGIN.left + position * (this.width - MARGIN.left - MARGIN.right);
  }

  y(scale) {
    const [low, high] = this.range;
    const fraction = (scale - low) / (high - low);
    return this.height - MARGIN.bottom - fraction * (this.height - MARGIN.top - MARGIN.bottom);
  }

  /** Position and scale under a pointer. */
  pointAt(event) {
    const box = this.svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.width;
    const y = ((event.clientY - box.top) / box.height) * this.height;
    const [low, high] = this.range;
    const position = (x - MARGIN.left) / (this.width - MARGIN.left - MARGIN.right);
    const fraction = (this.height - MARGIN.bottom - y) / (this.height - MARGIN.top - MARGIN.bottom);
    return [Math.min(Math.max(position, 0), 1), low + fraction * (high - low)];
  }

  /** Shades the intervals where the scale is not 1. */
  #drawIntervals(line) {
    const [low, high] = this.range;
    const vertical = { y: this.y(high), height: this.y(low) - this.y(high) };
    for (const interval of line.intervals) {
      const [from, to] = interval.map((position) => this.x(fractionOf(line, position)));
      const x = Math.min(from, this.x(1) - 2);
      const horizontal = { x, width: Math.max(to - x, 2) };
      const style = { fill: "#f0a040", "fill-opacity": 0.11, class: "cg-active" };
      svg("rect", { ...vertical, ...horizontal, ...style }, this.svg);
    }
  }

  #drawGrid(line, name) {
    const text = { fill: "currentColor", "font-size": 10, opacity: 0.7 };
    const [low, high] = this.range;
    const step = Math.max(1, Math.ceil((high - low) / 5));
    for (let scale = low; scale <= high; scale += step) {
      const y = this.y(scale);
      svg("line", { x1: this.x(0), x2: this.x(1), y1: y, y2: y, stroke: "#8884" }, this.svg);
      const label = svg("text", { x: 4, y: y + 3, ...text }, this.svg);
      label.textContent = shortNumber(scale);
    }
    for (const position of ticks(line)) {
      const x = this.x(fractionOf(line, position));
      const ends = { y1: this.y(low), y2: this.y(high) };
      svg("line", { x1: x, x2: x, ...ends, stroke: "#8884" }, this.svg);
      const place = { x, y: this.height - 6, "text-anchor": "middle" };
      const label = svg("text", { ...place, ...text }, this.svg);
      label.textContent = shortNumber(position);
    }
    const corner = { x: this.x(1) - 4, y: this.y(high) + 11, "text-anchor": "end" };
    svg("text", { ...corner, ...text }, this.svg).textContent = name;
    const one = this.y(1); // here CFG needs one pass instead of two
    const dashed = { stroke: "#6c8", "stroke-dasharray": "3 3" };
    svg("line", { x1: this.x(0), x2: this.x(1), y1: one, y2: one, ...dashed }, this.svg);
  }

  /** One line, or several where some scales are missing. */
  #drawLine(line) {
    const { positions, scales } = line;
    let corners = [];
    positions.forEach((position, index) => {
      const scale = scales[index];
      const missing = scale === null;
      if (!missing) corners.push(`${this.x(fractionOf(line, position))},${this.y(scale)}`);
      if ((missing || index === positions.length - 1) && corners.length) {
        const style = { fill: "none", stroke: "#f0a040", "stroke-width": 2 };
        svg("polyline", { points: corners.join(" "), ...style }, this.svg);
        corners = [];
      }
    });
  }

  #drawPoint(schedule, index) {
    const [position, scale] = schedule.points[index];
    const circle = svg(
      "circle",
      {
        cx: this.x(position),
        cy: this.y(scale),
        r: 6,
        tabindex: 0,
        role: "slider",
        "aria-label": `point ${index + 1} of ${schedule.points.length}`,
        "aria-valuetext": `${schedule.axis} ${position}, scale ${scale}`,
        "aria-valuenow": scale,
        "data-index": index,
      },
      this.svg,
    );
    circle.addEventListener("pointerdown", (event) => this.#drag(event, index));
    circle.addEventListener("keydown", (event) => this.#key(event, index));
    circle.addEventListener("contextmenu", (event) => {
      event.preventDefault();
      this.remove(index);
    });
    circle.addEventListener("dblclick", (event) => event.stopPropagation());
  }

  #drag(event, index) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.dragged = true;
    const move = (moved) => this.#movePoint(index, ...this.pointAt(moved));
    const stop = () => {
      window.removeEventListener("pointermove", move, true);
      window.removeEventListener("pointerup", stop, true);
      window.removeEventListener("pointercancel", stop, true);
      this.dragged = false;
      this.#commit();
      this.focus(index);
    };
    window.addEventListener("pointermove", move, true);
    window.addEventListener("pointerup", stop, true);
    window.addEventListener("pointercancel", stop, true);
    this.focus(index);
  }

  focus(index) {
    this.svg.querySelector(`circle[data-index="${index}"]`)?.focus({ preventScroll: true });
  }

  /** Makes the draft the value. */
  #commit() {
    const text = this.draft ?? this.text;
    const changed = text !== this.text;
    this.draft = null;
    this.text = text;
    this.draw();
    if (changed) this.onEdit(text);
  }

  /** Moves a point in the draft; it stays between its neighbours. */
  #movePoint(index, position, scale) {
    const schedule = parseSchedule(this.text);
    if (!schedule || this.disabled) return;
    const low = index > 0 ? schedule.points[index - 1][0] + GAP : 0;
    const next = schedule.points[index + 1];
    const high = next ? next[0] - GAP : 1;
    schedule.points[index] = [Math.min(Math.max(position, low), high), scale];
    this.draft = toText(schedule);
    this.draw();
  }

  #key(event, index) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // a shortcut of the page
    const factor = event.shiftKey ? 10 : 1;
    const [position, scale] = parseSchedule(this.text).points[index];
    const moves = {
      ArrowLeft: [position - 0.01 * factor, scale],
      ArrowRight: [position + 0.01 * factor, scale],
      ArrowUp: [position, scale + 0.1 * factor],
      ArrowDown: [position, scale - 0.1 * factor],
    };
    if (event.key in moves) {
      this.#movePoint(index, ...moves[event.key]);
      this.#commit();
      this.focus(index);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.remove(index);
    } else if (event.key === "+" || event.key === "Insert") {
      this.#addAfter(index);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  #addAtPointer(event) {
    event.preventDefault();
    this.add(...this.pointAt(event));
  }

  #addAfter(index) {
    const schedule = parseSchedule(this.text);
    const next = schedule.points[index + 1]?.[0] ?? 1;
    const middle = (schedule.points[index][0] + next) / 2;
    this.add(middle, scaleAt(schedule, middle));
  }

  add(position, scale) {
    const schedule = parseSchedule(this.text);
    if (!schedule || this.disabled) return;
    if (schedule.points.some((p) => Math.abs(p[0] - position) < GAP)) return;
    const points = [...schedule.points, [position, scale]].sort((a, b) => a[0] - b[0]);
    this.#edit({ points });
    this.focus(points.findIndex((p) => p[0] === position));
  }

  remove(index) {
    const schedule = parseSchedule(this.text);
    if (!schedule || this.disabled || schedule.points.length === 1) return;
    this.#edit({ points: schedule.points.filter((_, i) => i !== index) });
    this.focus(Math.max(index - 1, 0));
  }

  /** The server's error or note, why the curve is disabled, and the number of passes. */
  #showText(schedule, line) {
    const error = this.preview?.error;
    this.message.classList.toggle("cg-error", Boolean(error));
    const missing = this.offline && !line ? "not drawn: the server does not answer" : "";
    const message = error ?? this.preview?.note ?? missing;
    if (this.message.textContent !== message) this.message.textContent = message;
    const passes = error && this.disabled ? null : this.#passes(schedule);
    this.status.textContent = [this.disabledReason(), passes].filter(Boolean).join(" · ");
    this.status.title = passes
      ? `CFG in ${this.steps()} steps; where the scale is 1, one pass is enough`
      : "";
  }

  /** How many passes CFG takes; null where that is not known. */
  #passes(schedule) {
    const preview = this.previewIsCurrent && !this.dragged && this.preview;
    if (preview && !preview.error) {
      return preview.passes === null ? null : `${preview.passes} of ${2 * preview.steps} passes`;
    }
    if (!schedule || !this.sameForBatch) return null;
    const steps = this.steps();
    return `${countPasses(schedule, steps)} of ${2 * steps} passes`;
  }
}

/** Where a position is on the picture's width, from 0 to 1. */
function fractionOf({ axis, positions }, position) {
  if (axis !== "sigma") return position;
  const [high, low] = [positions[0], positions.at(-1)];
  return Math.log(high / Math.max(position, low)) / Math.log(high / low);
}

/** The positions that get a vertical line and a number. */
function ticks({ axis, positions }) {
  if (axis !== "sigma") return [0, 0.25, 0.5, 0.75, 1];
  const decades = [1e-3, 1e-2, 0.1, 1, 10, 100, 1e3, 1e4, 1e5];
  return decades.filter((sigma) => sigma <= positions[0] && sigma >= positions.at(-1));
}

function shortNumber(number) {
  return String(Math.abs(number) < 1e5 ? number : number.toExponential(0));
}
