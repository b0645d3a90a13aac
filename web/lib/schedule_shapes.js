/** The shapes of Guidance Schedule: which inputs they use, and those that the page can draw. */

const RAMP = ["axis", "scale", "end_scale", "start", "end"];
// the inputs that each shape uses; a preset of a paper uses the scale
const INPUTS = {
  constant: ["scale"],
  linear: RAMP,
  cosine: RAMP,
  power: [...RAMP, "exponent"],
  exponential: RAMP,
  interval: ["axis", "scale", "start", "end", "outside"],
  "last steps": ["scale", "outside", "last_steps"],
  keyframes: ["axis", "keyframes"],
  curve: [],
  expression: ["expression"],
};
const RAMPS = ["linear", "cosine", "power", "exponential"];

/** The names of the inputs that a shape uses, besides shape, curve and per_image. */
export function inputsOfShape(shape) {
  return INPUTS[shape] ?? ["scale"];
}

/**
 * The schedule of a shape that the page can draw without the server; null for the others.
 *
 * `movable`: its points are the inputs of `inputsOfPoint`.
 * @param {(name: string) => any} get the value of an input
 */
export function scheduleOfShape(get) {
  const shape = get("shape");
  const axis = get("axis");
  const [start, end, scale] = [get("start"), get("end"), get("scale")];
  if (shape === "constant") return { axis: "percent", interpolation: "hold", points: [[0, scale]] };
  if (axis === "sigma") return null;
  const movable = start < end && end <= 1;
  if (shape === "interval") {
    const points = [[start, scale], [end, scale]];
    return { axis, interpolation: "hold", points, outside: get("outside"), movable };
  }
  if (RAMPS.includes(shape)) {
    const points = [[start, scale], [end, get("end_scale")]];
    return { axis, interpolation: shape, points, exponent: get("exponent"), movable };
  }
  return null;
}

/** The inputs that hold the position and the scale of a point of such a schedule. */
export function inputsOfPoint(shape, index) {
  if (index === 0) return ["start", "scale"];
  return ["end", shape === "interval" ? "scale" : "end_scale"];
}
