/** A smooth curve that never overshoots its points, as in guidance/schedules/monotone.py. */

/**
 * The slope at each point: cubic Hermite interpolation that keeps monotonicity (Fritsch and
 * Carlson 1980; Fritsch and Butland 1984).
 * @param {number[]} xs rising
 * @param {number[]} ys
 */
export function monotoneSlopes(xs, ys) {
  const gaps = xs.slice(1).map((x, index) => x - xs[index]);
  const secants = gaps.map((gap, index) => (ys[index + 1] - ys[index]) / gap);
  const last = gaps.length - 1;
  if (last < 1) return xs.map(() => secants[0] ?? 0); // one point, or a straight line
  const inner = secants.slice(1).map((next, index) =>
    innerSlope(gaps[index], gaps[index + 1], secants[index], next));
  return [
    endSlope(gaps[0], gaps[1], secants[0], secants[1]),
    ...inner,
    endSlope(gaps[last], gaps[last - 1], secants[last], secants[last - 1]),
  ];
}

/** The weighted harmonic mean of the secants beside a point; flat at a turning point. */
function innerSlope(gap, nextGap, secant, nextSecant) {
  if (Math.sign(secant) * Math.sign(nextSecant) <= 0) return 0;
  const [weight, nextWeight] = [2 * nextGap + gap, nextGap + 2 * gap];
  return (weight + nextWeight) / (weight / secant + nextWeight / nextSecant);
}

/** The slope at an end: that of a parabola through three points, within the monotone range. */
function endSlope(gap, nextGap, secant, nextSecant) {
  const slope = ((2 * gap + nextGap) * secant - gap * nextSecant) / (gap + nextGap);
  if (slope * secant <= 0) return 0;
  if (secant * nextSecant < 0 && Math.abs(slope) > 3 * Math.abs(secant)) return 3 * secant;
  return slope;
}

/** The cubic from a to b; rises: the slopes times the gap. Between equal scales exactly a. */
export function hermite(a, b, riseAtA, riseAtB, share) {
  const rest = 1 - share;
  const straight = a + (b - a) * share * share * (3 - 2 * share);
  const value = straight + share * rest * (rest * riseAtA - share * riseAtB);
  return Math.min(Math.max(value, Math.min(a, b)), Math.max(a, b));
}
