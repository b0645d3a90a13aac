/** A guidance schedule through points, read as guidance/schedules/curves.py reads it. */

import { hermite, monotoneSlopes } from "./monotone.js";

export const INTERPOLATIONS = ["linear", "smooth", "hold", "cosine"];
export const GAP = 0.001; // the least distance between two points
const SNAP = { position: 100, scale: 10 }; // per unit: 0.01 of the axis, 0.1 of the scale
const TOLERANCE = 1e-5;
const SEGMENTS = 200; // of a drawn line

/**
 * @typedef {{axis: string, interpolation: string, points: number[][], outside?: number,
 *   exponent?: number}} Schedule
 */

/**
 * The schedule in a JSON text, or null where the text has no points to draw.
 * @param {string} text
 * @returns {Schedule | null}
 */
export function parseSchedule(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  if (typeof value === "number") value = { points: [[0, value]] };
  if (Array.isArray(value)) value = { points: value };
  const points = value?.points;
  const isPair = (p) => Array.isArray(p) && p.length === 2 && p.every(Number.isFinite);
  if (!Array.isArray(points) || points.length === 0 || !points.every(isPair)) return null;
  return { axis: "percent", interpolation: "linear", ...value };
}

/** The JSON of a schedule, its numbers rounded. */
export function toText(schedule) {
  const points = schedule.points.map(([x, y]) => [round(x, 4), round(y, 3)]);
  return JSON.stringify({ ...schedule, points });
}

function round(value, digits) {
  return Number(value.toFixed(digits));
}

/** A point [position, scale] on the grid that points snap to, or as it is. */
export function snapped([position, scale], free) {
  if (free) return [position, scale];
  const { position: perUnit, scale: perScale } = SNAP;
  return [Math.round(position * perUnit) / perUnit, Math.round(scale * perScale) / perScale];
}

/**
 * The schedule with one point moved, which stays between its neighbours.
 * @param {boolean} free whether it may come nearer to them than a step of the grid
 */
export function movePoint(schedule, index, [position, scale], free) {
  const before = schedule.points[index - 1]?.[0];
  const after = schedule.points[index + 1]?.[0];
  const room = (after ?? 1) - (before ?? 0);
  const gap = free || room < 2 / SNAP.position ? GAP : 1 / SNAP.position;
  const low = before === undefined ? 0 : before + gap;
  const high = after === undefined ? 1 : after - gap;
  const points = schedule.points.with(index, [Math.min(Math.max(position, low), high), scale]);
  return { ...schedule, points };
}

/**
 * The scale at a position on the schedule's own axis.
 * @param {Schedule} schedule
 * @param {number} position
 */
export function scaleAt(schedule, position) {
  const sign = schedule.axis === "sigma" ? -1 : 1; // sigma falls during a run
  const points = schedule.points;
  const xs = points.map((p) => sign * p[0]);
  const x = sign * position;
  const last = points.length - 1;
  const isOutside = x < xs[0] - TOLERANCE || x > xs[last] + TOLERANCE;
  if (isOutside && Number.isFinite(schedule.outside)) return schedule.outside;
  if (x >= xs[last]) return points[last][1];
  if (x <= xs[0]) return points[0][1];
  const next = xs.findIndex((value) => value > x);
  const gap = xs[next] - xs[next - 1];
  const fraction = (x - xs[next - 1]) / gap;
  if (schedule.interpolation === "smooth") {
    const ys = points.map((p) => p[1]);
    const rises = monotoneSlopes(xs, ys).slice(next - 1, next + 1).map((slope) => slope * gap);
    return hermite(ys[next - 1], ys[next], ...rises, fraction);
  }
  return interpolate(schedule, points[next - 1][1], points[next][1], fraction);
}

function interpolate(schedule, a, b, fraction) {
  switch (schedule.interpolation) {
    case "hold":
      return a;
    case "exponential":
      return a * (b / a) ** fraction;
    case "cosine":
      return a + ((b - a) * (1 - Math.cos(Math.PI * fraction))) / 2;
    case "power":
      return a + (b - a) * fraction ** (schedule.exponent ?? 2);
    default:
      return a + (b - a) * fraction;
  }
}

/**
 * The line of a schedule on the axis percent or step, in the form of the server's preview: the
 * scales at many positions, and the intervals where the scale is not 1.
 * @param {Schedule} schedule
 */
export function sampleSchedule(schedule) {
  const even = Array.from({ length: SEGMENTS + 1 }, (_, index) => index / SEGMENTS);
  const near = 2 * TOLERANCE; // beside a point, where the scale may jump
  const corners = schedule.points.flatMap(([x]) => [x - near, x, x + near]);
  const inside = corners.filter((x) => x >= 0 && x <= 1);
  const positions = [...new Set([...even, ...inside])].sort((a, b) => a - b);
  const scales = positions.map((position) => scaleAt(schedule, position));
  return { axis: schedule.axis, positions, scales, intervals: activeIntervals(positions, scales) };
}

function activeIntervals(positions, scales) {
  const found = [];
  positions.forEach((position, index) => {
    if (scales[index] === 1) return;
    if (index > 0 && scales[index - 1] !== 1) found.at(-1)[1] = position;
    else found.push([position, position]);
  });
  return found;
}

/** The model's passes in a run of CFG: two in a step, and one where the scale is 1. */
export function countPasses(schedule, steps) {
  let count = 0;
  for (let step = 0; step < steps; step += 1) {
    const position = steps > 1 ? step / (steps - 1) : 0;
    count += scaleAt(schedule, position) === 1 ? 1 : 2;
  }
  return count;
}
