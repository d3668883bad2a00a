"use strict";

/* Beside the conversation: the token that is looked at, what it sees, and what every token sees. */
class TokenPanel {
  constructor(root) {
    this.facts = root.querySelector("#facts");
    this.seen = root.querySelector("#seen");
    this.strip = root.querySelector("#strip");
    this.live = root.querySelector("#live");
  }

  show(sample, cell, pinned) {
    this.facts.replaceChildren();
    this.seen.replaceChildren();
    this.strip.hidden = cell === null;
    if (cell === null) {
      this.live.textContent = "";
      this.facts.append(element("p", "hint", "Point at a token to see through its eyes; click, or use the arrow keys, to stay with it."));
      return;
    }
    const token = sample.lastToken(cell);
    const turn = sample.turnOf(token);
    const type = sample.settings.types[sample.types[token]];
    const first = sample.firstToken[cell];
    const facts = [
      ["token", element("code", "", visible(sample.cellText(cell)))],
      [first === token ? "id" : "ids", first === token || sample.isRun(cell) ? `${sample.ids[token]}` : [...sample.ids.slice(first, token + 1)].join(" ")],
      ["place", first === token ? number(token) : `${number(first)} – ${number(token)}`],
      ["type", element("span", `chip c${sample.types[token]}`, type)],
      ["trained", sample.isTrained(token) ? element("b", "", sample.weights[token] === 1 ? "yes" : `yes, weight ${+sample.weights[token].toPrecision(6)}`) : `no: ${sample.reason(token)}`],
      ["message", turn ? `${turn.message === null ? "" : `${turn.message}, `}${turn.role}` : "–"],
      ...(sample.knowsTurns && sample.documents[token] ? [["turn", number(sample.turnNumbers[token])]] : []),
    ];
    for (const [name, value] of facts) this.facts.append(element("dt", "", name), element("dd", "", value));

    const { seen, unseen } = sample.attention.count(token);
    const total = seen.reduce((a, b) => a + b);
    this.seen.append(element("caption", "", `It sees ${number(total)} of the ${number(token + 1)} tokens up to itself`));
    this.seen.append(element("tr", "", element("th", ""), element("th", "", "visible"), element("th", "", "invisible")));
    sample.settings.types.forEach((name, kind) => {
      this.seen.append(element("tr", "", element("th", "", element("span", `chip c${kind}`, name)), element("td", "", number(seen[kind])), element("td", "", number(unseen[kind]))));
    });
    this.drawStrip(sample, token);
    if (pinned) this.live.textContent = `${visible(sample.cellText(cell))}, ${sample.describe(cell)}, sees ${total} of ${token + 1}`;
  }

  drawStrip(sample, query) {
    const { context, width, height } = prepareCanvas(this.strip);
    const colours = typeColours();
    const { attention, length } = sample;
    for (let x = 0; x < width; x++) {
      const from = Math.floor((x * length) / width);
      const to = Math.max(from + 1, Math.floor(((x + 1) * length) / width));
      let best = 0;
      let kind = sample.types[from];
      for (let key = from; key < to && key <= query; key++) {
        const value = strength(attention.bias(query, key));
        if (value > best) [best, kind] = [value, sample.types[key]];
      }
      if (!best) continue;
      context.fillStyle = `rgba(${colours[kind].join()},${0.15 + 0.85 * best})`;
      context.fillRect(x, 0, 1, height);
    }
    const x = Math.min(width - 1, Math.floor(((query + 0.5) * width) / length));
    context.fillStyle = colourOf("--ink");
    context.fillRect(x, 0, Math.max(1, Math.round(devicePixelRatio)), height);
  }
}

/* The whole sample: rows are queries, columns are keys. */
class HeatMap {
  constructor(root, onPick) {
    this.canvas = root.querySelector("#heat");
    this.cross = root.querySelector("#cross");
    this.readout = root.querySelector("#readout");
    this.onPick = onPick;
    this.sample = null;
    this.query = null;
    this.cross.addEventListener("mousemove", (event) => this.onMove(event));
    this.cross.addEventListener("mouseleave", () => this.describe(null));
    this.cross.addEventListener("click", (event) => this.sample && this.onPick(this.at(event)[0]));
    this.cross.addEventListener("keydown", (event) => this.onKey(event));
  }

  show(sample) {
    this.sample = sample;
    this.query = null;
    this.draw();
    this.describe(null);
  }

  draw() {
    if (!this.sample) return;
    const { context, width: size } = prepareCanvas(this.canvas);
    const image = context.createImageData(size, size);
    const weights = this.weigh(size);
    const colours = typeColours();
    const paper = colourOf("--paper").match(/\d+/g).map(Number);
    for (let pixel = 0; pixel < size * size; pixel++) {
      for (let channel = 0; channel < 3; channel++) {
        let value = paper[channel];
        for (let kind = 0; kind < 3; kind++) value += weights[3 * pixel + kind] * (colours[kind][channel] - paper[channel]);
        image.data[4 * pixel + channel] = value;
      }
      image.data[4 * pixel + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    this.drawCross();
  }

  /** Mean strength of the keys in each pixel, by type. Of long samples a pixel row stands for a few of its queries. */
  weigh(size) {
    const { attention, length, types } = this.sample;
    const weights = new Float32Array(3 * size * size);
    for (let y = 0; y < size; y++) {
      const from = Math.floor((y * length) / size);
      const to = Math.max(from + 1, Math.floor(((y + 1) * length) / size));
      const step = Math.max(1, Math.ceil((to - from) / 4));
      for (let query = from; query < to && query < length; query += step) {
        for (let x = 0; x < size; x++) {
          const left = Math.floor((x * length) / size);
          const right = Math.max(left + 1, Math.floor(((x + 1) * length) / size));
          if (left > query) break;
          const share = 1 / ((right - left) * Math.ceil((to - from) / step));
          for (let key = left; key < right && key <= query; key++) {
            const value = strength(attention.bias(query, key));
            if (value) weights[3 * (y * size + x) + types[key]] += value * share;
          }
        }
      }
    }
    return weights;
  }

  mark(query) {
    this.query = query;
    this.drawCross();
  }

  drawCross() {
    const { context, width, height } = prepareCanvas(this.cross);
    if (this.query === null || !this.sample) return;
    const y = Math.floor(((this.query + 0.5) * height) / this.sample.length);
    context.fillStyle = colourOf("--ink");
    context.fillRect(0, y, width, Math.max(1, Math.round(devicePixelRatio)));
  }

  at(event) {
    const box = this.cross.getBoundingClientRect();
    const last = this.sample.length - 1;
    const place = (part, whole) => Math.max(0, Math.min(last, Math.floor((part / whole) * this.sample.length)));
    return [place(event.clientY - box.top, box.height), place(event.clientX - box.left, box.width)];
  }

  onMove(event) {
    if (this.sample && this.sample.length) this.describe(this.at(event));
  }

  onKey(event) {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!step || !this.sample) return;
    event.preventDefault();
    const by = Math.max(1, Math.round(this.sample.length / 100));
    this.onPick(Math.max(0, Math.min(this.sample.length - 1, (this.query ?? 0) + step * by)));
  }

  describe(place) {
    if (!place) {
      this.readout.textContent = "Rows are queries, columns are the keys they see. Click a row to look through it.";
      return;
    }
    const [query, key] = place;
    const { sample } = this;
    const text = (token) => `“${visible(sample.cellText(sample.cellOf[token]))}” (${number(token)})`;
    const bias = sample.attention.bias(query, key);
    const sees = bias === -Infinity ? "does not see" : "sees";
    const amount = bias === -Infinity ? "" : `, bias ${bias.toPrecision(3)}`;
    this.readout.textContent = `${text(query)} ${sees} ${sample.settings.types[sample.types[key]]} ${text(key)}${amount}`;
  }
}
