/** An interactive curve: points [position, scale] on an absolute axis of scales.
 *
 * A schedule that is no such curve is drawn in its place, from what the server answers about it.
 */

import { addStyle, svg as make } from "./dom.js";
import { INTERPOLATIONS, parseSchedule, passes, sampled, scaleAt, toText } from "./schedule.js";

const MARGIN = { left: 34, right: 12, top: 10, bottom: 20 };
const GAP = 0.001; // between two neighbours
const STYLE = `
.cg-curve { display: flex; flex-direction: column; min-height: 210px; height: 100%; width: 100%;
  box-sizing: border-box; font: 11px sans-serif; color: var(--input-text, #ddd); }
.cg-curve svg { flex: 1; min-height: 0; width: 100%; border-radius: 6px; touch-action: none;
  background: var(--comfy-input-bg, #222); }
.cg-curve .cg-bar { display: flex; gap: 6px; align-items: center; padding: 3px 2px; }
.cg-curve .cg-bar select { background: var(--comfy-input-bg, #222); color: inherit;
  border: 1px solid var(--border-color, #555); border-radius: 4px; font: inherit; }
.cg-curve .cg-said { margin-left: auto; opacity: 0.85; white-space: nowrap; }
.cg-curve .cg-words { padding: 2px; opacity: 0.85; overflow-wrap: anywhere; user-select: text; }
.cg-curve .cg-words:empty { display: none; }
.cg-curve .cg-words.cg-wrong { opacity: 1; max-height: 6em; overflow: auto; line-height: 1.35;
  color: color-mix(in srgb, var(--error-text, #f55) 70%, var(--input-text, #ddd)); }
.cg-curve.cg-nothing svg { display: none; }
.cg-curve.cg-nothing .cg-words { flex: 1; max-height: none; padding: 8px; border-radius: 6px;
  background: var(--comfy-input-bg, #222); font-size: 12px; }
.cg-curve circle { fill: var(--cg-point, #f0a040); stroke: #0008; cursor: grab; outline: none; }
.cg-curve circle:focus, .cg-curve circle:hover { stroke: #fff; stroke-width: 2; }
.cg-curve.cg-off svg { opacity: 0.75; pointer-events: none; }
.cg-curve.cg-off select { display: none; }
`;

export class CurveEditor {
  /**
   * @param {{value: string, onEdit: (text: string) => void, steps: () => number,
   *   why: () => string}} options `why` says why the curve cannot be drawn on, or nothing.
   */
  constructor({ value, onEdit, steps, why }) {
    addStyle("cg-curve-style", STYLE);
    this.onEdit = onEdit;
    this.steps = steps;
    this.why = why;
    this.text = value;
    this.draft = null; // while a point is dragged: undo must not see each move
    this.shown = null; // another schedule, drawn in the place of this one's
    this.answer = null; // the server's, about the schedule that is to be seen
    this.fresh = false; // whether it is about this very one
    this.away = false; // whether the server did not answer
    this.alike = true; // whether all images of a batch have the same scale
    this.element = document.createElement("div");
    this.element.className = "cg-curve";
    this.svg = make("svg", { role: "group", "aria-label": "guidance schedule" });
    this.words = document.createElement("div");
    this.words.className = "cg-words";
    this.words.setAttribute("role", "status");
    this.element.append(this.svg, this.words, this.#bar());
    this.svg.addEventListener("dblclick", (event) => this.#addAt(event));
    // the graph behind must not pan, and its menu must not open
    for (const name of ["pointerdown", "mousedown", "contextmenu", "wheel", "dblclick"]) {
      this.element.addEventListener(name, (event) => event.stopPropagation());
    }
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  get value() {
    return this.text;
  }

  set value(text) {
    this.text = text;
    this.draw();
  }

  /** Whether it cannot be drawn on. */
  get off() {
    const own = parseSchedule(this.text);
    return Boolean(this.why()) || !own || own.axis === "sigma";
  }

  #bar() {
    const bar = document.createElement("div");
    bar.className = "cg-bar";
    this.axis = this.#select(["percent", "step"], "axis", bar);
    this.interpolation = this.#select(INTERPOLATIONS, "interpolation", bar);
    this.said = document.createElement("span");
    this.said.className = "cg-said";
    bar.append(this.said);
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
    if (!schedule || this.off) return;
    this.text = toText({ ...schedule, ...changes });
    this.draw();
    this.onEdit(this.text);
  }

  draw() {
    const focused = this.svg.contains(document.activeElement) && document.activeElement.dataset.index;
    const wrong = this.answer?.error;
    const own = this.off ? null : parseSchedule(this.draft ?? this.text);
    const schedule = own ?? (wrong ? null : this.shown);
    const picture = schedule ? sampled(schedule) : this.answer?.positions ? this.answer : null;
    this.element.classList.toggle("cg-off", !own);
    this.element.classList.toggle("cg-nothing", Boolean(wrong) && !picture);
    this.axis.disabled = this.interpolation.disabled = !own;
    this.svg.replaceChildren();
    this.#say(schedule, picture);
    if (!picture) return;
    if (own) {
      this.axis.value = own.axis;
      this.interpolation.value = own.interpolation;
    }
    this.#measure(picture, own);
    this.#shade(picture);
    this.#grid(picture, own ? "" : picture.axis);
    this.#line(picture);
    own?.points.forEach((point, index) => this.#point(own, index));
    if (focused) this.focus(focused);
  }

  #measure({ scales: all }, own) {
    const scales = all.filter((scale) => scale !== null);
    const highest = Math.max(...scales, own?.outside ?? 1, 1);
    const lowest = Math.min(...scales, own?.outside ?? 0, 0);
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
    const share = (scale - low) / (high - low);
    return this.height - MARGIN.bottom - share * (this.height - MARGIN.top - MARGIN.bottom);
  }

  /** Position and scale under a pointer. */
  at(event) {
    const box = this.svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.width;
    const y = ((event.clientY - box.top) / box.height) * this.height;
    const [low, high] = this.range;
    const position = (x - MARGIN.left) / (this.width - MARGIN.left - MARGIN.right);
    const share = (this.height - MARGIN.bottom - y) / (this.height - MARGIN.top - MARGIN.bottom);
    return [Math.min(Math.max(position, 0), 1), low + share * (high - low)];
  }

  /** Where guidance does something. */
  #shade(picture) {
    const [low, high] = this.range;
    const tall = { y: this.y(high), height: this.y(low) - this.y(high), fill: "#f0a040" };
    for (const interval of picture.intervals) {
      const [from, to] = interval.map((position) => this.x(shareOf(picture, position)));
      const x = Math.min(from, this.x(1) - 2);
      const wide = { x, width: Math.max(to - x, 2), "fill-opacity": 0.11, class: "cg-active" };
      make("rect", { ...tall, ...wide }, this.svg);
    }
  }

  #grid(picture, name) {
    const text = { fill: "currentColor", "font-size": 10, opacity: 0.7 };
    const [low, high] = this.range;
    const step = Math.max(1, Math.ceil((high - low) / 5));
    for (let scale = low; scale <= high; scale += step) {
      const y = this.y(scale);
      make("line", { x1: this.x(0), x2: this.x(1), y1: y, y2: y, stroke: "#8884" }, this.svg);
      const label = make("text", { x: 4, y: y + 3, ...text }, this.svg);
      label.textContent = brief(scale);
    }
    for (const position of ticks(picture)) {
      const x = this.x(shareOf(picture, position));
      const ends = { y1: this.y(low), y2: this.y(high) };
      make("line", { x1: x, x2: x, ...ends, stroke: "#8884" }, this.svg);
      const place = { x, y: this.height - 6, "text-anchor": "middle" };
      const label = make("text", { ...place, ...text }, this.svg);
      label.textContent = brief(position);
    }
    const corner = { x: this.x(1) - 4, y: this.y(high) + 11, "text-anchor": "end" };
    make("text", { ...corner, ...text }, this.svg).textContent = name;
    const one = this.y(1); // where CFG saves its second pass
    const dashed = { stroke: "#6c8", "stroke-dasharray": "3 3" };
    make("line", { x1: this.x(0), x2: this.x(1), y1: one, y2: one, ...dashed }, this.svg);
  }

  #line(picture) {
    const { positions, scales } = picture;
    let corners = [];
    positions.forEach((position, index) => {
      const scale = scales[index];
      const missing = scale === null;
      if (!missing) corners.push(`${this.x(shareOf(picture, position))},${this.y(scale)}`);
      if ((missing || index === positions.length - 1) && corners.length) {
        const line = { points: corners.join(" "), fill: "none", stroke: "#f0a040" };
        make("polyline", { ...line, "stroke-width": 2 }, this.svg);
        corners = [];
      }
    });
  }

  #point(schedule, index) {
    const [position, scale] = schedule.points[index];
    const circle = make(
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
    const move = (to) => this.#place(index, ...this.at(to));
    const stop = () => {
      window.removeEventListener("pointermove", move, true);
      window.removeEventListener("pointerup", stop, true);
      window.removeEventListener("pointercancel", stop, true);
      this.dragged = false;
      this.#keep();
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

  /** What was drafted becomes the value. */
  #keep() {
    const text = this.draft ?? this.text;
    const changed = text !== this.text;
    this.draft = null;
    this.text = text;
    this.draw();
    if (changed) this.onEdit(text);
  }

  /** Moves a point, between its neighbours, until #keep. */
  #place(index, position, scale) {
    const schedule = parseSchedule(this.text);
    if (!schedule || this.off) return;
    const low = index > 0 ? schedule.points[index - 1][0] + GAP : 0;
    const after = schedule.points[index + 1];
    const high = after ? after[0] - GAP : 1;
    schedule.points[index] = [Math.min(Math.max(position, low), high), scale];
    this.draft = toText(schedule);
    this.draw();
  }

  #key(event, index) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // undo and its like
    const large = event.shiftKey ? 10 : 1;
    const [position, scale] = parseSchedule(this.text).points[index];
    const moves = {
      ArrowLeft: [position - 0.01 * large, scale],
      ArrowRight: [position + 0.01 * large, scale],
      ArrowUp: [position, scale + 0.1 * large],
      ArrowDown: [position, scale - 0.1 * large],
    };
    if (event.key in moves) {
      this.#place(index, ...moves[event.key]);
      this.#keep();
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

  #addAt(event) {
    event.preventDefault();
    this.add(...this.at(event));
  }

  #addAfter(index) {
    const schedule = parseSchedule(this.text);
    const next = schedule.points[index + 1]?.[0] ?? 1;
    const middle = (schedule.points[index][0] + next) / 2;
    this.add(middle, scaleAt(schedule, middle));
  }

  add(position, scale) {
    const schedule = parseSchedule(this.text);
    if (!schedule || this.off) return;
    if (schedule.points.some((p) => Math.abs(p[0] - position) < GAP)) return;
    const points = [...schedule.points, [position, scale]].sort((a, b) => a[0] - b[0]);
    this.#edit({ points });
    this.focus(points.findIndex((p) => p[0] === position));
  }

  remove(index) {
    const schedule = parseSchedule(this.text);
    if (!schedule || this.off || schedule.points.length === 1) return;
    this.#edit({ points: schedule.points.filter((_, i) => i !== index) });
    this.focus(Math.max(index - 1, 0));
  }

  #say(schedule, picture) {
    const wrong = this.answer?.error;
    this.words.classList.toggle("cg-wrong", Boolean(wrong));
    const missing = this.away && !picture ? "not drawn: the server does not answer" : "";
    const words = wrong ?? this.answer?.note ?? missing;
    if (this.words.textContent !== words) this.words.textContent = words;
    const cost = wrong && this.off ? null : this.#cost(schedule);
    this.said.textContent = [this.why(), cost].filter(Boolean).join(" · ");
    this.said.title = cost
      ? `CFG in ${this.steps()} steps; where the scale is 1, one pass is enough`
      : "";
  }

  /** The passes of CFG, where they are known. */
  #cost(schedule) {
    const steps = this.steps();
    const asked = this.fresh && !this.dragged && this.answer;
    if (asked && !asked.error) {
      return asked.passes === null ? null : `${asked.passes} of ${2 * asked.steps} passes`;
    }
    return schedule && this.alike ? `${passes(schedule, steps)} of ${2 * steps} passes` : null;
  }
}

/** How far along the picture a position is. */
function shareOf({ axis, positions }, position) {
  if (axis !== "sigma") return position;
  const [high, low] = [positions[0], positions.at(-1)];
  return Math.log(high / Math.max(position, low)) / Math.log(high / low);
}

/** Where the picture has a vertical line with a number. */
function ticks({ axis, positions }) {
  if (axis !== "sigma") return [0, 0.25, 0.5, 0.75, 1];
  const decades = [1e-3, 1e-2, 0.1, 1, 10, 100, 1e3, 1e4, 1e5];
  return decades.filter((sigma) => sigma <= positions[0] && sigma >= positions.at(-1));
}

function brief(number) {
  return String(Math.abs(number) < 1e5 ? number : number.toExponential(0));
}
