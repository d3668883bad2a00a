"use strict";

/* What a token still sees of the messages before its own, and of their pictures. */
const FADED = -3; // bias: what has less than a twentieth of its weight is seen in name only
const STATES = ["in sight", "in part", "faded", "gone"];
const STATE_HINTS = {
  "in sight": "all of it is seen",
  "in part": "a part of it is seen",
  faded: "what is seen of it has, by its bias, less than a twentieth of its weight",
  gone: "nothing of it is seen",
};

class StillSeen {
  /** @param {Float64Array} row Bias of each key for the query. */
  constructor(sample, query, row) {
    this.row = row;
    this.own = sample.turnOf(query);
    const isBefore = (turn) => this.own && turn.part === this.own.part && turn.part !== null && turn.stop <= this.own.start;
    this.messages = sample.turns.filter((turn) => isBefore(turn) && turn.stop > turn.start)
      .map((turn) => ({ turn, ...this.count(turn.start, turn.stop) }));
    this.media = this.messages.flatMap(({ turn }) =>
      turn.media.map((item, k) => ({ turn, k, ...this.count(item.start, item.start + item.size) })))
      .filter((item) => item.total);
  }

  count(start, stop) {
    const counts = { clear: 0, faded: 0, gone: 0, total: stop - start };
    for (let key = start; key < stop; key++) {
      const bias = this.row[key];
      counts[bias === -Infinity ? "gone" : bias < FADED ? "faded" : "clear"]++;
    }
    return { ...counts, state: this.stateOf(counts) };
  }

  stateOf({ clear, faded, gone, total }) {
    if (gone === total) return "gone";
    if (!clear) return "faded";
    return faded || gone ? "in part" : "in sight";
  }

  /** How many of some messages or pictures are in each state. */
  static tally(items) {
    return STATES.map((state) => items.filter((item) => item.state === state).length);
  }

  /** How many tokens of the messages are seen well, faded and gone. */
  get tokens() {
    const sum = (name) => this.messages.reduce((total, message) => total + message[name], 0);
    return { clear: sum("clear"), faded: sum("faded"), gone: sum("gone") };
  }
}

/* The same in numbers, above the conversation. */
class StillSeenPanel {
  constructor(root) {
    this.title = root.querySelector("#still-title");
    this.counts = root.querySelector("#still-counts");
  }

  show(sample, query, seen) {
    this.title.textContent = "What is still seen";
    this.counts.replaceChildren(element("span", "hint", "“What it still saw” on a reply counts the messages, pictures and tokens before it: in sight, faded, gone."));
    if (!seen || !seen.messages.length) return;
    const { own } = seen;
    const isReply = sample.cellAt(query) === sample.cellAt(own.start) && REPLIES.includes(own.role);
    const what = own.message === null ? own.role : `message ${own.message}`;
    const turn = sample.knowsTurns ? ` (turn ${number(own.number)})` : "";
    this.title.textContent = isReply ? `What the reply, ${what}${turn}, still saw` : `What a token of ${what}${turn} still sees`;
    const { clear, faded, gone } = seen.tokens;
    this.counts.replaceChildren(this.row("messages", StillSeen.tally(seen.messages)),
      seen.media.length ? this.row("images, clips", StillSeen.tally(seen.media)) : "",
      this.row("tokens", [clear, null, faded, gone]));
  }

  row(name, counts) {
    const chips = STATES.map((state, k) => counts[k] === null ? "" : element("span", `state ${stateClass(state)} ${counts[k] ? "" : "none"}`, `${number(counts[k])} ${state}`));
    return element("div", "", element("span", "name", name), ...chips);
  }
}

const REPLIES = ["assistant", "function"];

function stateClass(state) {
  return state.replace(" ", "-");
}
