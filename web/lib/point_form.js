/** A small form on the curve, where the numbers of a point are typed. */

import { stopEvents } from "./dom.js";

/**
 * Opens the form; it closes when the user leaves it.
 * @param {{parent: HTMLElement, place: number[], point: number[], names: string[],
 *   onDone: (point: number[]) => void}} options place: its left upper corner in the parent. names:
 *   of position and scale. onDone gets the new numbers; it is not called after Escape.
 */
export function openPointForm({ parent, place, point, names, onDone }) {
  parent.querySelector(".cg-form")?.remove();
  const form = document.createElement("form");
  form.className = "cg-form";
  form.noValidate = true;
  const inputs = names.map((name, index) => numberInput(form, name, point[index]));
  let open = true;
  const close = (numbers) => {
    if (!open) return;
    open = false; // removing the form is leaving it, once more
    window.removeEventListener("pointerdown", outside, true);
    form.remove();
    if (numbers?.every(Number.isFinite)) onDone(numbers);
  };
  const finish = () => close(inputs.map((input) => input.valueAsNumber));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    finish();
  });
  // the page may take the focus when it draws the node anew: that is not leaving
  form.addEventListener("focusout", ({ relatedTarget }) => {
    if (relatedTarget && !form.contains(relatedTarget)) finish();
  });
  const outside = ({ target }) => {
    if (!form.contains(target)) finish();
  };
  window.addEventListener("pointerdown", outside, true);
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close(null);
    if (event.key === "Enter") finish();
  });
  stopEvents(form, ["keydown", "pointerdown", "dblclick"]);
  parent.append(form);
  const [left, top] = place;
  form.style.left = `${Math.max(0, Math.min(left, parent.clientWidth - form.offsetWidth))}px`;
  form.style.top = `${Math.max(0, Math.min(top, parent.clientHeight - form.offsetHeight))}px`;
  inputs.at(-1).focus();
  inputs.at(-1).select();
}

function numberInput(form, name, value) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "number", step: "any", value });
  input.setAttribute("aria-label", name);
  label.append(name, input);
  form.append(label);
  return input;
}
