/** The picture of a schedule: its axes, its line, the places where it guides, and a readout. */

import { LINE, ONE_PASS, SHADE } from "./curve_style.js";
import { svg } from "./dom.js";
import { GRID } from "./theme.js";
import { t } from "./words.js";

const MARGIN = { left: 34, right: 12, top: 10, bottom: 20 };
const READOUT = { height: 18, perLetter: 6.1, padding: 12 };

/**
 * @typedef {{axis: string, positions: number[], scales: (number | null)[],
 *   intervals: number[][]}} Line the server's preview, or what sampleSchedule gives
 */

export class CurvePicture {
  constructor() {
    this.svg = svg("svg", { role: "group", "aria-label": t("guidance schedule") });
    this.back = svg("g", {}, this.svg); // drawn anew each time
    this.points = svg("g", {}, this.svg); // stay: a click ends on the element where it began
    this.line = null;
    this.range = [0, 1];
  }

  clear() {
    this.line = null;
    this.back.replaceChildren();
  }

  /**
   * @param {Line} line
   * @param {{outside?: number, name: string, sameRange: boolean}} options name: of the axis, or
   *   empty. sameRange: whether the numbers of the scale stay, as they must during a drag.
   */
  draw(line, { outside, name, sameRange }) {
    this.line = line;
    const scales = line.scales.filter((scale) => scale !== null);
    const highest = Math.max(...scales, outside ?? 1, 1);
    const lowest = Math.min(...scales, outside ?? 0, 0);
    if (!sameRange) this.range = [Math.floor(lowest), Math.ceil(highest * 1.15 + 0.5)];
    // clientWidth: in the element's own pixels, however far the graph is zoomed
    this.width = Math.max(this.svg.clientWidth, 80);
    this.height = Math.max(this.svg.clientHeight, 60);
    this.back.replaceChildren();
    this.#drawIntervals();
    this.#drawGrid(name);
    this.#drawLine();
  }

  x(position) {
    return MARGIN.left + position * (this.width - MARGIN.left - MARGIN.right);
  }

  y(scale) {
    const [low, high] = this.range;
    const fraction = (scale - low) / (high - low);
    return this.height - MARGIN.bottom - fraction * (this.height - MARGIN.top - MARGIN.bottom);
  }

  /** A pointer's place in the picture's own pixels. */
  placeOf(event) {
    const box = this.svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.width;
    const y = ((event.clientY - box.top) / box.height) * this.height;
    return [x, y];
  }

  /** The share of the width, from 0 to 1, and the scale under a pointer. */
  pointAt(event) {
    const [x, y] = this.placeOf(event);
    const [low, high] = this.range;
    const position = (x - MARGIN.left) / (this.width - MARGIN.left - MARGIN.right);
    const fraction = (this.height - MARGIN.bottom - y) / (this.height - MARGIN.top - MARGIN.bottom);
    return [Math.min(Math.max(position, 0), 1), low + fraction * (high - low)];
  }

  /** Writes the numbers at a share of the width, above a line; without a scale, the line's own. */
  showReadout(share, scale = scaleOfLine(this.line, share)) {
    this.hideReadout();
    if (!this.line || scale === null) return;
    const x = this.x(share);
    const group = svg("g", { class: "cg-readout" }, this.svg);
    const ends = { x1: x, x2: x, y1: MARGIN.top, y2: this.height - MARGIN.bottom };
    svg("line", { ...ends, stroke: "currentColor", opacity: 0.5 }, group);
    svg("ellipse", { cx: x, cy: this.y(scale), rx: 2.5, ry: 2.5 }, group);
    const said = numbersOf(this.line.axis, positionAt(this.line, share), scale);
    const width = said.length * READOUT.perLetter + READOUT.padding;
    const left = Math.min(Math.max(x - width / 2, MARGIN.left), this.width - width - 2);
    const box = { x: left, y: 2, width, height: READOUT.height, rx: 4 };
    svg("rect", box, group);
    const middle = { x: left + width / 2, y: 15, "text-anchor": "middle" };
    svg("text", middle, group).textContent = said;
  }

  hideReadout() {
    this.svg.querySelector(".cg-readout")?.remove();
  }

  /** Shades the intervals where the scale is not 1. */
  #drawIntervals() {
    const [low, high] = this.range;
    const vertical = { y: this.y(high), height: this.y(low) - this.y(high) };
    for (const interval of this.line.intervals) {
      const [from, to] = interval.map((position) => this.x(shareOf(this.line, position)));
      const x = Math.min(from, this.x(1) - 2);
      const horizontal = { x, width: Math.max(to - x, 2) };
      const style = { fill: SHADE, "fill-opacity": 0.14, class: "cg-active" };
      svg("rect", { ...vertical, ...horizontal, ...style }, this.back);
    }
  }

  #drawGrid(name) {
    const text = { fill: "currentColor", "font-size": 10, opacity: 0.85 };
    const [low, high] = this.range;
    const step = Math.max(1, Math.ceil((high - low) / 5));
    for (let scale = low; scale <= high; scale += step) {
      const y = this.y(scale);
      this.#straight({ x1: this.x(0), x2: this.x(1), y1: y, y2: y }, GRID);
      const place = { x: MARGIN.left - 5, y: y + 3, "text-anchor": "end" };
      svg("text", { ...place, ...text }, this.back).textContent = shortNumber(scale);
    }
    for (const position of ticks(this.line)) {
      const x = this.x(shareOf(this.line, position));
      this.#straight({ x1: x, x2: x, y1: this.y(low), y2: this.y(high) }, GRID);
      const place = { x, y: this.height - 6, "text-anchor": "middle" };
      svg("text", { ...place, ...text }, this.back).textContent = shortNumber(position);
    }
    const corner = { x: this.x(1), y: MARGIN.top + 10, "text-anchor": "end" };
    svg("text", { ...corner, ...text }, this.back).textContent = name;
    const one = this.y(1); // here CFG needs one pass instead of two
    const dashed = { "stroke-dasharray": "3 3" };
    this.#straight({ x1: this.x(0), x2: this.x(1), y1: one, y2: one, ...dashed }, ONE_PASS);
  }

  #straight(attributes, colour) {
    // an attribute knows no variables of the page's theme
    svg("line", attributes, this.back).style.stroke = colour;
  }

  /** One line, or several where some scales are missing. */
  #drawLine() {
    const { positions, scales } = this.line;
    let corners = [];
    positions.forEach((position, index) => {
      const scale = scales[index];
      const missing = scale === null;
      if (!missing) corners.push(`${this.x(shareOf(this.line, position))},${this.y(scale)}`);
      if ((missing || index === positions.length - 1) && corners.length) {
        const style = { fill: "none", "stroke-width": 2, "stroke-linejoin": "round" };
        const drawn = svg("polyline", { points: corners.join(" "), ...style }, this.back);
        drawn.style.stroke = LINE;
        corners = [];
      }
    });
  }
}

/** "percent 0.43, scale 6.2". */
export function numbersOf(axis, position, scale) {
  const [x, y] = [position, scale].map((number) => shortNumber(rounded(number)));
  return t("{axis} {position}, scale {scale}", { axis: t(axis), position: x, scale: y });
}

/** Where a position is on the picture's width, from 0 to 1. */
function shareOf({ axis, positions }, position) {
  if (axis !== "sigma") return position;
  const [high, low] = [positions[0], positions.at(-1)];
  return Math.log(high / Math.max(position, low)) / Math.log(high / low);
}

/** The position at a share of the width. */
function positionAt({ axis, positions }, share) {
  if (axis !== "sigma") return share;
  const [high, low] = [positions[0], positions.at(-1)];
  return high * (low / high) ** share;
}

/** The scale of a line at a share of the width, between the nearest two of its points. */
function scaleOfLine(line, share) {
  if (!line) return null;
  const { positions, scales } = line;
  const shares = positions.map((position) => shareOf(line, position));
  const next = shares.findIndex((one) => one >= share);
  if (next <= 0) return scales[next === 0 ? 0 : scales.length - 1];
  const [a, b] = [scales[next - 1], scales[next]];
  if (a === null || b === null) return null;
  return a + ((b - a) * (share - shares[next - 1])) / (shares[next] - shares[next - 1]);
}

/** The positions that get a vertical line and a number. */
function ticks({ axis, positions }) {
  if (axis !== "sigma") return [0, 0.25, 0.5, 0.75, 1];
  const decades = [1e-3, 1e-2, 0.1, 1, 10, 100, 1e3, 1e4, 1e5];
  return decades.filter((sigma) => sigma <= positions[0] && sigma >= positions.at(-1));
}

/** Two decimals, and three digits of what is small. */
function rounded(number) {
  return Math.abs(number) < 1 ? Number(number.toPrecision(3)) : Number(number.toFixed(2));
}

function shortNumber(number) {
  return String(Math.abs(number) < 1e5 ? number : number.toExponential(0));
}
