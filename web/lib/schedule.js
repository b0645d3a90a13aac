/** A guidance schedule through points, as guidance/schedules/curves.py reads it. */

export const INTERPOLATIONS = ["linear", "hold", "cosine"];
const SLACK = 1e-5;
const PIECES = 200; // of a line

/**
 * @typedef {{axis: string, interpolation: string, points: number[][], outside?: number,
 *   exponent?: number}} Schedule
 */

/**
 * The schedule in a text, or null when it is none that has points to draw.
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
  const pair = (p) => Array.isArray(p) && p.length === 2 && p.every(Number.isFinite);
  if (!Array.isArray(points) || points.length === 0 || !points.every(pair)) return null;
  return { axis: "percent", interpolation: "linear", ...value };
}

/** The JSON of a schedule, its numbers as short as they are meant. */
export function toText(schedule) {
  const points = schedule.points.map(([x, y]) => [round(x, 4), round(y, 3)]);
  return JSON.stringify({ ...schedule, points });
}

function round(value, digits) {
  return Number(value.toFixed(digits));
}

/**
 * The scale at a position of the schedule's own axis.
 * @param {Schedule} schedule
 * @param {number} at
 */
export function scaleAt(schedule, at) {
  const sign = schedule.axis === "sigma" ? -1 : 1;
  const points = schedule.points;
  const x = points.map((p) => sign * p[0]);
  const here = sign * at;
  const last = points.length - 1;
  const outside = here < x[0] - SLACK || here > x[last] + SLACK;
  if (outside && Number.isFinite(schedule.outside)) return schedule.outside;
  if (here >= x[last]) return points[last][1];
  if (here <= x[0]) return points[0][1];
  const after = x.findIndex((value) => value > here);
  const share = (here - x[after - 1]) / (x[after] - x[after - 1]);
  return between(schedule, points[after - 1][1], points[after][1], share);
}

function between(schedule, a, b, share) {
  switch (schedule.interpolation) {
    case "hold":
      return a;
    case "exponential":
      return a * (b / a) ** share;
    case "cosine":
      return a + ((b - a) * (1 - Math.cos(Math.PI * share))) / 2;
    case "power":
      return a + (b - a) * share ** (schedule.exponent ?? 2);
    default:
      return a + (b - a) * share;
  }
}

/**
 * What there is to draw of a schedule on percent or step, as the server answers it of others: the
 * scales at positions, and the intervals where they are not 1.
 * @param {Schedule} schedule
 */
export function sampled(schedule) {
  const even = Array.from({ length: PIECES + 1 }, (_, index) => index / PIECES);
  const corners = schedule.points.map((p) => p[0]).filter((at) => at >= 0 && at <= 1);
  const positions = [...new Set([...even, ...corners])].sort((a, b) => a - b);
  const scales = positions.map((at) => scaleAt(schedule, at));
  return { axis: schedule.axis, positions, scales, intervals: intervals(positions, scales) };
}

function intervals(positions, scales) {
  const found = [];
  positions.forEach((at, index) => {
    if (scales[index] === 1) return;
    if (index > 0 && scales[index - 1] !== 1) found.at(-1)[1] = at;
    else found.push([at, at]);
  });
  return found;
}

/** What CFG by this schedule runs in so many steps: a pass more wherever the scale is not 1. */
export function passes(schedule, steps) {
  let count = 0;
  for (let step = 0; step < steps; step += 1) {
    const at = steps > 1 ? step / (steps - 1) : 0;
    count += scaleAt(schedule, at) === 1 ? 1 : 2;
  }
  return count;
}
