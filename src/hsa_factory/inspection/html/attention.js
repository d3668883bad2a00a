"use strict";

/* What each token sees: the same numbers as AttentionPlan.dense_bias, computed from types, documents and rules. */
class Attention {
  /**
   * @param {Uint8Array} types Semantic type of each token.
   * @param {Int32Array} documents Number of each token's document; 0 is padding.
   * @param {?{decays: number[], windows: (?number)[], turns: (?number)[], hide: number[][]}} rules null: plain causal
   *   attention.
   * @param {Int32Array} turnNumbers Number of each token's turn; read only where the rules have turns.
   */
  constructor(types, documents, rules, turnNumbers) {
    this.types = types;
    this.documents = documents;
    this.length = types.length;
    this.decays = rules ? rules.decays : [0, 0, 0];
    this.turnNumbers = turnNumbers;
    this.turns = (rules ? rules.turns : [null, null, null]).map((turns) => (turns === null ? -1 : turns));
    this.windows = (rules ? rules.windows : [null, null, null]).map((window, kind) =>
      window !== null ? window : this.turns[kind] < 0 ? Infinity : -1);
    this.hidden = Array.from({ length: 9 }, () => false);
    for (const [query, key] of rules ? rules.hide : []) this.hidden[3 * query + key] = true;

    this.positions = new Int32Array(this.length); // places in their own document, padding not counted
    const next = new Map();
    for (let i = 0; i < this.length; i++) {
      const position = next.get(documents[i]) || 0;
      this.positions[i] = position;
      next.set(documents[i], position + 1);
    }
  }

  /** Bias on the logit of a key, or -Infinity where the query cannot see it. */
  bias(query, key) {
    if (query === key) return 0;
    const distance = this.positions[query] - this.positions[key];
    const type = this.types[key];
    if (this.documents[query] !== this.documents[key] || this.documents[key] === 0) return -Infinity;
    if (distance < 0 || this.hidden[3 * this.types[query] + type]) return -Infinity;
    if (distance > this.windows[type] && !this.isInTurns(query, key)) return -Infinity;
    return distance * this.decays[type] === 0 ? 0 : -distance * this.decays[type];
  }

  isInTurns(query, key) {
    const turns = this.turns[this.types[key]];
    return turns >= 0 && this.turnNumbers[query] - this.turnNumbers[key] <= turns;
  }

  biasRow(query) {
    return Float64Array.from({ length: this.length }, (_, key) => this.bias(query, key));
  }

  /** Count the keys up to the query by type: seen, and not seen. */
  count(query) {
    const seen = [0, 0, 0];
    const unseen = [0, 0, 0];
    for (let key = 0; key <= query; key++) {
      (this.bias(query, key) === -Infinity ? unseen : seen)[this.types[key]]++;
    }
    return { seen, unseen };
  }
}

/** How strongly a visible key is shown, from 1 (no bias) towards 0; 0 only if it is invisible. */
function strength(bias) {
  return bias === -Infinity ? 0 : 1 / (1 - bias / 2);
}
