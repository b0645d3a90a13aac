/** Questions to the server that follow each other as one types: only the last one matters. */

const WAIT = 150; // milliseconds without another question

export class Questions {
  /**
   * @param {(text: string, signal: AbortSignal) => Promise<Response>} send
   * @param {() => void} answered is called when `answer` has changed
   */
  constructor(send, answered) {
    this.send = send;
    this.answered = answered;
    this.answer = null; // the latest; null where there is none, or no server
    this.fresh = false; // whether it answers what was asked last
    this.away = false; // whether the server was not there for it
    this.text = null;
  }

  /** Asks, unless it is what was asked last. */
  ask(question) {
    const text = JSON.stringify(question);
    if (text === this.text) return;
    this.forget();
    this.text = text;
    this.timer = setTimeout(() => this.#send(text), WAIT);
  }

  /** Whatever was asked, the answer is of no use any more. */
  forget() {
    clearTimeout(this.timer);
    this.underway?.abort();
    this.text = null;
    this.fresh = false;
  }

  async #send(text) {
    const underway = (this.underway = new AbortController());
    let answer = null;
    try {
      const response = await this.send(text, underway.signal);
      if (response.ok) answer = await response.json();
    } catch {
      // the server is away, or another question came
    }
    if (underway.signal.aborted) return;
    this.answer = answer;
    this.fresh = answer !== null;
    this.away = !this.fresh;
    if (this.away) this.text = null; // to be asked again
    this.answered();
  }
}
