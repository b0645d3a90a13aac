/** The lines below the picture of a run: its latest values, and what the pale lines are. */

import { textColour } from "./theme.js";
import { CFG_COLOUR, linesOf, shortNumber } from "./trace_picture.js";
import { evaluationsOf } from "./trace_run.js";
import { t } from "./words.js";

/** The latest values in words, each in the colour of its line; a row for each classifier. */
export function statusLines(run) {
  const evaluations = evaluationsOf(run);
  const last = evaluations.at(-1);
  const passes = evaluations.reduce((sum, one) => sum + one.passes, 0);
  const step = Math.floor(last.step) + 1;
  const first = [[t("step {step}/{steps}", { step, steps: run.steps })]];
  if (last.cfg !== null) first.push([t("cfg {cfg}", { cfg: shortNumber(last.cfg) }), CFG_COLOUR]);
  first.push([t("{count} passes", { count: passes })]);
  const rows = linesOf(run).map((line) => {
    const scale = shortNumber(line.records.at(-1)?.scale ?? 0);
    const parts = [line.name, t("scale {scale}", { scale }), ...latestValue(line)];
    return parts.map((words) => [words, line.colour]);
  });
  return [first, ...rows, paleLines(run)].filter((parts) => parts.length).map((parts) => {
    const row = document.createElement("div");
    row.append(...parts.map(([words, colour]) => part(words, colour)));
    return row;
  });
}

/** "p(7) 0.93", of several images "p(7) 0.93, lowest 0.71". */
function latestValue({ kind, labels, records }) {
  const known = records.findLast((record) => record && record.mean !== null);
  if (!known) return [];
  const distinct = [...new Set(labels)];
  const label = distinct.length === 1 ? distinct[0] : "label";
  const unit = kind === "score" ? t("score") : `p(${label})`;
  const value = known.mean.toFixed(2);
  if (known.count === 1) return [`${unit} ${value}`];
  const mean = t("mean {value}", { value });
  return [`${unit} ${mean}`, t("lowest {value}", { value: known.least.toFixed(2) })];
}

/** A legend of the lines behind those of the run. */
function paleLines({ planned = {}, before }) {
  const parts = [];
  if (Object.keys(planned).length) parts.push([t("wide: the schedule")]);
  if (before) parts.push([t("pale: the run before")]);
  return parts;
}

function part(words, colour) {
  const span = document.createElement("span");
  span.textContent = words;
  if (colour) span.style.color = textColour(colour);
  return span;
}
