"use strict";

/* One sample, unpacked from the page. A cell is what a reader can point at: a token, or several that belong together. */
class Sample {
  constructor(data, settings) {
    this.index = data.index;
    this.name = data.name;
    this.dataset = data.dataset;
    this.ids = data.ids;
    this.reasons = data.reasons;
    this.parts = data.parts;
    this.marker = data.marker;
    this.length = data.ids.length;
    this.settings = settings;
    this.text = data.text;

    this.types = Uint8Array.from(data.types, Number);
    this.documents = this.unfold(data.documents);
    this.turnNumbers = this.unfold(data.turnNumbers);
    this.knowsTurns = data.turnNumbers.length > 0;
    this.weights = this.unfold(data.weights.length ? data.weights : [[1, this.length]], Float32Array);

    const count = data.lengths.length;
    const sizes = new Map(data.sizes);
    this.cells = count;
    this.firstToken = new Int32Array(count + 1);
    this.textStart = new Int32Array(count + 1);
    this.cellOf = new Int32Array(this.length);
    for (let cell = 0; cell < count; cell++) {
      const size = sizes.get(cell) || 1;
      this.cellOf.fill(cell, this.firstToken[cell], this.firstToken[cell] + size);
      this.firstToken[cell + 1] = this.firstToken[cell] + size;
      this.textStart[cell + 1] = this.textStart[cell] + data.lengths[cell];
    }
    this.turns = this.fillGaps(data.turns);
    this._attention = null;
  }

  /** Return numbers that were folded into [number, count], one for each token. */
  unfold(runs, Numbers = Int32Array) {
    const numbers = new Numbers(this.length);
    let place = 0;
    for (const [number, count] of runs) {
      numbers.fill(number, place, place + count);
      place += count;
    }
    return numbers;
  }

  get attention() {
    this._attention = this._attention || new Attention(this.types, this.documents, this.settings.rules, this.turnNumbers);
    return this._attention;
  }

  /** Turns as they are, and what stands between them (padding; everything, if no message is known). */
  fillGaps(turns) {
    const all = [];
    let place = 0;
    for (const turn of turns) {
      if (turn.start > place) all.push(this.gap(place, turn.start));
      all.push(turn);
      place = Math.max(place, turn.stop);
    }
    if (place < this.length) all.push(this.gap(place, this.length));
    return all;
  }

  gap(start, stop) {
    const role = this.reason(start) === "padding" ? "padding" : "tokens";
    return { part: null, message: null, number: null, role, start, stop, cut: 0, cutText: "", media: [] };
  }

  cellAt(token) {
    return token < this.length ? this.cellOf[token] : this.cells;
  }

  /** The token that stands for a cell: its last one, which completes it. */
  lastToken(cell) {
    return this.firstToken[cell + 1] - 1;
  }

  cellText(cell) {
    return this.text.slice(this.textStart[cell], this.textStart[cell + 1]);
  }

  cellSize(cell) {
    return this.firstToken[cell + 1] - this.firstToken[cell];
  }

  /** Whether a cell is a run of one token, such as image placeholders. */
  isRun(cell) {
    return this.cellSize(cell) > 1 && this.ids[this.firstToken[cell]] === this.ids[this.lastToken(cell)] &&
      this.cellSize(cell) > 4;
  }

  reason(token) {
    return this.settings.reasons[this.reasons[token]] || null;
  }

  /** What a pointer that rests on a cell is told. */
  describe(cell) {
    const token = this.lastToken(cell);
    return `${this.settings.types[this.types[token]]}, ${this.isTrained(token) ? "trained" : `not trained: ${this.reason(token)}`}`;
  }

  isTrained(token) {
    return this.reasons[token] === ".";
  }

  turnOf(token) {
    return this.turns.find((turn) => turn.start <= token && token < turn.stop) || null;
  }

  countRange(start, stop) {
    const types = [0, 0, 0];
    let trained = 0;
    for (let token = start; token < stop; token++) {
      types[this.types[token]]++;
      trained += this.isTrained(token);
    }
    return { types, trained, total: stop - start };
  }
}
