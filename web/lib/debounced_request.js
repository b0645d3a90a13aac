/** A request to the server while the user types: sent after a pause; only the latest one counts. */

import { translated } from "./words.js";

const DELAY = 150; // milliseconds without another request
const SENTENCES = ["error", "note"]; // of the server's answer

export class DebouncedRequest {
  /**
   * @param {(body: string, signal: AbortSignal) => Promise<Response>} send
   * @param {() => void} onChange is called when `response` has changed
   */
  constructor(send, onChange) {
    this.send = send;
    this.onChange = onChange;
    this.response = null; // the latest one; null before the first, and without a server
    this.current = false; // whether it belongs to the latest request
    this.offline = false; // whether the latest request failed
    this.body = null;
  }

  /** Sends this body after the delay, unless it is the latest one already. */
  schedule(content) {
    const body = JSON.stringify(content);
    if (body === this.body) return;
    this.cancel();
    this.body = body;
    this.timer = setTimeout(() => this.#send(body), DELAY);
  }

  /** Drops the latest request, sent or not. */
  cancel() {
    clearTimeout(this.timer);
    this.controller?.abort();
    this.body = null;
    this.current = false;
  }

  async #send(body) {
    const controller = (this.controller = new AbortController());
    let response = null;
    try {
      const received = await this.send(body, controller.signal);
      if (received.ok) response = inPageLanguage(await received.json());
    } catch {
      // there is no server, or the request was cancelled
    }
    if (controller.signal.aborted) return;
    this.response = response;
    this.current = response !== null;
    this.offline = !this.current;
    if (this.offline) this.body = null; // so that the same body is sent next time
    this.onChange();
  }
}

/** The server's answer with its sentences in the page's language. */
function inPageLanguage(response) {
  const said = Object.entries(response).filter(([name, text]) => SENTENCES.includes(name) && text);
  return { ...response, ...Object.fromEntries(said.map(([name, text]) => [name, translated(text)])) };
}
