/** What Guidance Trace knows of a run: the events of the server, in a form that is small. */

const MOST_LINES = 16; // images of a classifier whose lines are drawn

/**
 * @typedef {{run: string, steps: number, classifiers: Record<string, object>,
 *   planned: Record<string, (number | null)[]>, seen: object[], before: object | null}} Run
 *   planned: the scale of a schedule at each step, by "cfg" or a classifier's number. seen: the
 *   evaluations. before: the run before this one, without its images.
 */

/**
 * The run with the evaluation of an event; a new run where the event belongs to another one.
 * @param {Run | undefined} known
 * @returns {Run}
 */
export function withEvent(known, { run, number, steps, classifiers, planned, evaluation }) {
  const isNew = !known || number === 0 || (run !== undefined && run !== known.run);
  const from = isNew ? { before: shortened(known), seen: [] } : known;
  const seen = [...(from.seen ?? [])];
  seen[number] = summary(evaluation);
  return {
    run,
    steps,
    classifiers: { ...from.classifiers, ...classifiers },
    planned: { ...from.planned, ...planned },
    seen: Array.from(seen, (one) => one ?? null), // an event may have been missed
    before: from.before ?? null,
  };
}

/** The evaluations that are known. */
export function evaluationsOf(run) {
  return (run?.seen ?? []).filter((one) => one?.classifiers);
}

/** The drawn values of an evaluation; few, because the workflow keeps them. */
function summary({ step, sigma, cfg, passes, classifiers }) {
  const kept = classifiers.map((record) => {
    const { classifier, scale, log_probs: logs, scores } = record;
    const values = scores ?? logs.map((value) => value === null ? null : Math.exp(value));
    const found = values.filter((value) => value !== null);
    const mean = found.length ? found.reduce((sum, one) => sum + one, 0) / found.length : null;
    const least = found.length ? Math.min(...found) : null;
    const each = values.slice(0, MOST_LINES).map((value) => rounded(value, 2));
    const about = { classifier, scale: rounded(scale, 4), count: values.length };
    return { ...about, mean: rounded(mean, 4), least: rounded(least, 4), each };
  });
  return { step, sigma: Number(sigma.toPrecision(4)), cfg, passes, classifiers: kept };
}

function rounded(value, digits) {
  return value === null ? null : Number(value.toFixed(digits));
}

/** What is drawn of the run before this one: scales and means. */
function shortened(run) {
  const evaluations = evaluationsOf(run);
  if (evaluations.length === 0) return null;
  const seen = evaluations.map(({ step, cfg, classifiers }) => ({
    step,
    cfg,
    classifiers: classifiers.map(({ classifier, scale, mean }) => ({ classifier, scale, mean })),
  }));
  const kinds = Object.entries(run.classifiers).map(([number, { kind }]) => [number, kind]);
  return { steps: run.steps, kinds: Object.fromEntries(kinds), seen };
}

/**
 * From where to where each evaluation counts, in steps of the run: until the next one.
 *
 * Evaluations of one step (second-order samplers, steps that are taken twice) share it evenly.
 */
export function spansOf(evaluations) {
  const counts = {};
  const ranks = evaluations.map(({ step }) => {
    const whole = Math.floor(step);
    counts[whole] = (counts[whole] ?? 0) + 1;
    return [whole, counts[whole] - 1];
  });
  const starts = ranks.map(([whole, rank]) => whole + rank / counts[whole]);
  const sorted = [...starts].sort((a, b) => a - b);
  return ranks.map(([whole, rank], index) => {
    const next = sorted.find((start) => start > starts[index]);
    return [starts[index], next ?? whole + (rank + 1) / counts[whole]];
  });
}
