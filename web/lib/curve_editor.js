/** An editor for a curve of points [position, scale].
 *
 * Schedules of other kinds are shown here, too, from the server's preview. Those between a start
 * and an end have points that set these inputs.
 */

import { CurvePicture, numbersOf } from "./curve_picture.js";
import { STYLE } from "./curve_style.js";
import { addStyle, stopEvents, svg } from "./dom.js";
import { openPointForm } from "./point_form.js";
import {
  GAP,
  INTERPOLATIONS,
  countPasses,
  movePoint,
  parseSchedule,
  sampleSchedule,
  scaleAt,
  snapped,
  toText,
} from "./schedule.js";
import { addTheme } from "./theme.js";
import { t, translated } from "./words.js";

const CLICK = 3; // pixels that the pointer may move in a click
const REACH = 10; // pixels from the middle of a point that a double-click still means

export class CurveEditor {
  /**
   * @param {{value: string, onEdit: (text: string) => void, steps: () => number,
   *   disabledReason: () => string, onShapePoint: (index: number, point: number[]) => void,
   *   onShapeEdited: () => void, onPresets: () => void}} options `disabledReason` is empty while
   *   the user may edit the curve. onShapePoint: a point of `shapeSchedule` is moved there;
   *   onShapeEdited: it has been moved.
   */
  constructor(options) {
    addTheme();
    addStyle("cg-curve-style", STYLE);
    this.options = options;
    this.text = options.value;
    this.draft = null; // the text while a point is dragged: undo must not see each move
    this.shapeSchedule = null; // of another shape: drawn instead of the curve
    this.preview = null; // the server's latest answer about the schedule
    this.previewIsCurrent = false; // whether the schedule has not changed since
    this.offline = false; // whether the server did not answer
    this.sameForBatch = true; // whether all images of a batch have the same scale
    this.dragged = null; // the index of the point that is being dragged
    this.picture = new CurvePicture();
    this.svg = this.picture.svg;
    this.element = document.createElement("div");
    this.element.className = "cg-curve";
    this.message = document.createElement("div");
    this.message.className = "cg-message";
    this.message.setAttribute("role", "status");
    this.element.append(this.svg, this.message, this.#bar());
    this.svg.addEventListener("dblclick", (event) => this.#doubleClick(event));
    this.svg.addEventListener("pointermove", (event) => this.#point(event));
    this.svg.addEventListener("pointerleave", () => this.#point(null));
    // the graph behind must not move, and its menu must not open
    stopEvents(this.element, ["pointerdown", "mousedown", "contextmenu", "wheel", "dblclick"]);
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  get value() {
    return this.text;
  }

  set value(value) {
    this.text = value;
    this.draw();
  }

  /** Whether the user cannot edit the curve. */
  get disabled() {
    const curve = parseSchedule(this.text);
    return Boolean(this.options.disabledReason()) || !curve || curve.axis === "sigma";
  }

  /** The schedule whose points the user can move; null where there is none. */
  get movable() {
    if (!this.disabled) return parseSchedule(this.draft ?? this.text);
    return this.shapeSchedule?.movable ? this.shapeSchedule : null;
  }

  #bar() {
    const bar = document.createElement("div");
    bar.className = "cg-bar";
    this.axis = this.#select(["percent", "step"], "axis", bar);
    this.interpolation = this.#select(INTERPOLATIONS, "interpolation", bar);
    const presets = document.createElement("button");
    presets.type = "button";
    presets.className = "cg-presets";
    presets.textContent = t("presets");
    presets.addEventListener("click", () => this.options.onPresets());
    this.status = document.createElement("span");
    this.status.className = "cg-status";
    bar.append(presets, this.status);
    return bar;
  }

  #select(names, key, bar) {
    const select = document.createElement("select");
    select.setAttribute("aria-label", t(key));
    select.append(...names.map((name) => new Option(t(name), name)));
    select.addEventListener("change", () => this.#edit({ [key]: select.value }));
    bar.append(select);
    return select;
  }

  #edit(changes) {
    const schedule = parseSchedule(this.text);
    if (!schedule || this.disabled) return;
    this.text = toText({ ...schedule, ...changes });
    this.draw();
    this.options.onEdit(this.text);
  }

  draw() {
    const error = this.preview?.error;
    const curve = this.disabled ? null : parseSchedule(this.draft ?? this.text);
    const schedule = curve ?? (error ? null : this.shapeSchedule);
    const received = this.preview?.positions ? this.preview : null;
    const line = schedule ? sampleSchedule(schedule) : received;
    this.element.classList.toggle("cg-disabled", !curve);
    this.element.classList.toggle("cg-message-only", Boolean(error) && !line);
    this.axis.disabled = this.interpolation.disabled = !curve;
    this.picture.clear();
    this.#showText(schedule, line);
    if (!line) {
      this.#drawPoints(null);
      this.picture.hideReadout();
      return;
    }
    if (curve) {
      this.axis.value = curve.axis;
      this.interpolation.value = curve.interpolation;
    }
    const look = { name: curve ? "" : t(line.axis), sameRange: this.dragged !== null };
    this.picture.draw(line, { ...look, outside: curve?.outside });
    const movable = this.movable && (curve || !error) ? this.movable : null;
    this.#drawPoints(movable);
    this.#showReadout();
  }

  #drawPoints(schedule) {
    const circles = this.picture.points.children;
    const count = schedule?.points.length ?? 0;
    while (circles.length > count) circles[circles.length - 1].remove();
    for (let index = 0; index < count; index += 1) this.#drawPoint(schedule, index);
  }

  #drawPoint(schedule, index) {
    const [position, scale] = schedule.points[index];
    const count = schedule.points.length;
    const about = {
      cx: this.picture.x(position),
      cy: this.picture.y(scale),
      r: 6,
      tabindex: 0,
      role: "slider",
      "aria-label": t("point {index} of {count}", { index: index + 1, count }),
      "aria-valuetext": numbersOf(schedule.axis, position, scale),
      "aria-valuenow": scale,
      "data-index": index,
    };
    const circle = this.picture.points.children[index] ?? this.#newPoint(index);
    for (const [name, value] of Object.entries(about)) circle.setAttribute(name, value);
  }

  #newPoint(index) {
    const circle = svg("circle", {}, this.picture.points);
    circle.addEventListener("pointerdown", (event) => this.#drag(event, index));
    circle.addEventListener("keydown", (event) => this.#key(event, index));
    circle.addEventListener("contextmenu", (event) => {
      event.preventDefault();
      this.remove(index);
    });
    return circle;
  }

  #drag(event, index) {
    if (event.button !== 0 || !this.movable) return;
    event.preventDefault();
    this.dragged = index;
    let isClick = true; // perhaps one of a double-click: the point stays where it is
    const move = (moved) => {
      const way = Math.hypot(moved.clientX - event.clientX, moved.clientY - event.clientY);
      isClick &&= way < CLICK;
      if (!isClick) this.#moveTo(index, snapped(this.#pointAt(moved), moved.altKey), moved);
    };
    const stop = () => {
      window.removeEventListener("pointermove", move, true);
      window.removeEventListener("pointerup", stop, true);
      window.removeEventListener("pointercancel", stop, true);
      this.dragged = null;
      if (!isClick) this.#commit();
      this.focus(index);
    };
    window.addEventListener("pointermove", move, true);
    window.addEventListener("pointerup", stop, true);
    window.addEventListener("pointercancel", stop, true);
    this.focus(index);
  }

  #pointAt(event) {
    return this.picture.pointAt(event);
  }

  focus(index) {
    this.svg.querySelector(`circle[data-index="${index}"]`)?.focus({ preventScroll: true });
  }

  /** Moves a point, in the draft or of the shape; it stays between its neighbours. */
  #moveTo(index, point, { altKey = true } = {}) {
    const schedule = this.movable;
    if (!schedule) return;
    const moved = movePoint(schedule, index, point, altKey);
    if (this.disabled) {
      this.shapeWasMoved = true;
      this.options.onShapePoint(index, moved.points[index]);
      return;
    }
    this.draft = toText(moved);
    this.draw();
  }

  /** Makes what has been moved the value. */
  #commit() {
    if (this.shapeWasMoved) {
      this.shapeWasMoved = false;
      this.draw();
      this.options.onShapeEdited();
      return;
    }
    const value = this.draft ?? this.text;
    const changed = value !== this.text;
    this.draft = null;
    this.text = value;
    this.draw();
    if (changed) this.options.onEdit(value);
  }

  #key(event, index) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // a shortcut of the page
    const factor = event.shiftKey ? 10 : 1;
    const [position, scale] = this.movable.points[index];
    const moves = {
      ArrowLeft: [position - 0.01 * factor, scale],
      ArrowRight: [position + 0.01 * factor, scale],
      ArrowUp: [position, scale + 0.1 * factor],
      ArrowDown: [position, scale - 0.1 * factor],
    };
    if (event.key in moves) {
      this.#moveTo(index, moves[event.key]);
      this.#commit();
      this.focus(index);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.remove(index);
    } else if (event.key === "+" || event.key === "Insert") {
      this.#addAfter(index);
    } else if (event.key === "Enter") {
      this.#type(index);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  /** On a point: its numbers are typed. Elsewhere: a new point. */
  #doubleClick(event) {
    event.preventDefault();
    const [x, y] = this.picture.placeOf(event);
    const distance = (p) => Math.hypot(this.picture.x(p[0]) - x, this.picture.y(p[1]) - y);
    const found = this.movable?.points.findIndex((point) => distance(point) <= REACH) ?? -1;
    if (found >= 0) this.#type(found);
    else this.add(...snapped(this.#pointAt(event), event.altKey));
  }

  #type(index) {
    const { points, axis } = this.movable;
    const [position, scale] = points[index];
    openPointForm({
      parent: this.element,
      place: [this.picture.x(position) + 10, this.picture.y(scale) + 10],
      point: points[index],
      names: [t(axis), t("scale")],
      onDone: (point) => {
        this.#moveTo(index, point);
        this.#commit();
        this.focus(index);
      },
    });
  }

  #addAfter(index) {
    if (this.disabled) return;
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

  /** The pointer is over the picture, or (null) has left it. */
  #point(event) {
    this.pointer = event && this.picture.line ? this.#pointAt(event)[0] : null;
    this.#showReadout();
  }

  /** The numbers of the dragged point, or of the line at the pointer. */
  #showReadout() {
    this.picture.hideReadout();
    const point = this.dragged === null ? null : this.movable?.points[this.dragged];
    if (point) this.picture.showReadout(...point);
    else if (this.pointer != null) this.picture.showReadout(this.pointer);
  }

  /** The server's error or note, why the curve is disabled, and the number of passes. */
  #showText(schedule, line) {
    const error = this.preview?.error;
    this.message.classList.toggle("cg-error", Boolean(error));
    const missing = this.offline && !line ? t("not drawn: the server does not answer") : "";
    const message = translated(error ?? this.preview?.note ?? missing);
    if (this.message.textContent !== message) this.message.textContent = message;
    const passes = error && this.disabled ? null : this.#passes(schedule);
    this.status.textContent = [this.options.disabledReason(), passes].filter(Boolean).join(" · ");
    const steps = this.options.steps();
    this.status.title = passes
      ? t("CFG in {steps} steps; where the scale is 1, one pass is enough", { steps })
      : "";
  }

  /** How many passes CFG takes; null where that is not known. */
  #passes(schedule) {
    const preview = this.previewIsCurrent && this.dragged === null && this.preview;
    let [passes, steps] = [null, this.options.steps()];
    if (preview && !preview.error) ({ passes, steps } = preview);
    else if (schedule && this.sameForBatch) passes = countPasses(schedule, steps);
    return passes === null ? null : t("{passes} of {all} passes", { passes, all: 2 * steps });
  }
}
