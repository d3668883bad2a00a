"use strict";

/* The conversation as a reader sees it. Off screen it is plain text (the browser's search still finds it); what comes
   into view is made of one element a cell. */
const CHUNK = 300; // cells that are made at once

class Conversation {
  /** @param {{onQuery: function(?number, boolean)}} events Called with the cell that is looked at, and if it is kept. */
  constructor(container, images, events) {
    this.container = container;
    this.images = images;
    this.events = events;
    this.sample = null;
    this.chunks = [];
    this.query = null; // the cell whose view is shown
    this.pinned = false;
    this.row = null; // what it sees
    this.seen = null; // of which messages
    this.observer = new IntersectionObserver((entries) => this.onScroll(entries), { rootMargin: "400px 0px" });
    container.addEventListener("mouseover", (event) => this.onHover(event));
    container.addEventListener("mouseleave", () => !this.pinned && this.look(null, false));
    container.addEventListener("click", (event) => this.onClick(event));
    container.addEventListener("keydown", (event) => this.onKey(event));
  }

  show(sample) {
    this.observer.disconnect();
    this.sample = sample;
    this.chunks = [];
    this.query = this.row = this.seen = null;
    this.pinned = false;
    const fragment = document.createDocumentFragment();
    let part = null;
    let before = null;
    for (const turn of sample.turns) {
      turn.opens = sample.knowsTurns && (before === null || turn.part !== before.part || turn.number !== before.number);
      before = turn;
      if (sample.parts.length > 1 && turn.part !== null && turn.part !== part) {
        part = turn.part;
        const [dataset, index, start, stop] = sample.parts[part];
        fragment.append(element("h3", "part", `${dataset}, sample ${index}`, element("small", "", `${number(stop - start)} tokens`)));
      }
      fragment.append(this.makeTurn(turn));
    }
    this.container.replaceChildren(fragment);
    for (const chunk of this.chunks) this.observer.observe(chunk.node);
  }

  makeTurn(turn) {
    const sample = this.sample;
    const counts = sample.countRange(turn.start, turn.stop);
    const turnNumber = sample.knowsTurns && turn.number !== null ? `turn ${number(turn.number)}` : "";
    const title = [turn.message === null ? "" : `message ${turn.message}`, turnNumber].filter(Boolean).join(" · ");
    const numbers = counts.total ? `${number(counts.total)} tokens · ${number(counts.trained)} trained` : "cut away whole";
    turn.badge = element("span", "state");
    const head = element("header", "", element("span", "role", turn.role), element("span", "number", title), this.makeLook(turn), turn.badge, element("span", "counts", numbers), typeBar(counts.types));
    turn.pictures = [];
    const body = element("div", "body");
    body.dir = "auto";
    const media = [...turn.media];
    let cell = sample.cellAt(turn.start);
    const end = turn.stop > turn.start ? sample.cellOf[turn.stop - 1] + 1 : cell;
    while (cell < end) {
      let stop = Math.min(cell + CHUNK, end);
      while (media.length && sample.cellAt(media[0].start) <= cell) body.append(this.makeMedia(media.shift(), turn));
      if (media.length) stop = Math.min(stop, sample.cellAt(media[0].start));
      stop = this.breakAtLine(cell, stop, end);
      body.append(this.makeChunk(cell, stop));
      cell = stop;
    }
    const section = element("section", `turn ${turn.role} ${counts.trained ? "" : "untrained"} ${turn.opens ? "opens" : ""}`, head, body);
    if (turn.cut) {
      const lost = element("details", "cut", element("summary", "", `${number(turn.cut)} tokens cut away by cutoff_len`), element("div", "lost", turn.cutText));
      lost.lastChild.dir = "auto";
      lost.firstChild.tabIndex = -1; // one button opens them all: no stop of the Tab key for each
      section.append(lost);
    }
    turn.node = section;
    return section;
  }

  get cutTexts() {
    return [...this.container.querySelectorAll("details.cut")];
  }

  /** Open what was cut away from all messages, or close it if all is open. */
  toggleCut() {
    const cuts = this.cutTexts;
    const open = cuts.some((cut) => !cut.open);
    for (const cut of cuts) cut.open = open;
  }

  /** Prefer the end of a line near the end of a chunk, so that the change to single cells moves nothing. */
  breakAtLine(start, stop, end) {
    if (stop === end) return stop;
    for (let cell = stop - 1; cell > Math.max(start, stop - 60); cell--) {
      if (this.sample.cellText(cell).endsWith("\n")) return cell + 1;
    }
    return stop;
  }

  /** Of a reply: what shows what it still saw. (↑ and ↓ do it, too, so that it is no stop of the Tab key.) */
  makeLook(turn) {
    if (!REPLIES.includes(turn.role) || turn.stop === turn.start) return "";
    const button = element("button", "saw", "what it still saw");
    button.type = "button";
    button.tabIndex = -1;
    button.addEventListener("click", () => this.look(this.sample.cellAt(turn.start), true));
    return button;
  }

  makeMedia(media, turn) {
    const node = this.makePicture(media);
    turn.pictures.push(node);
    return node;
  }

  makePicture(media) {
    const name = media.name.split(/[\\/]/).pop() || media.kind;
    if (media.image === null) return element("span", "media none", `${media.kind}: ${name}`);
    const image = element("img", "media");
    image.src = this.images[media.image];
    image.alt = image.title = name;
    image.loading = "lazy";
    return image;
  }

  makeChunk(start, stop) {
    const { text, textStart } = this.sample;
    const node = element("span", "chunk", text.slice(textStart[start], textStart[stop]));
    const chunk = { start, stop, node, spans: null, shown: null };
    node.chunk = chunk;
    this.chunks.push(chunk);
    return node;
  }

  onScroll(entries) {
    for (const entry of entries) {
      const chunk = entry.target.chunk;
      if (entry.isIntersecting) this.fill(chunk);
      else if (chunk.spans) {
        chunk.node.textContent = this.sample.text.slice(this.sample.textStart[chunk.start], this.sample.textStart[chunk.stop]);
        chunk.spans = null;
      }
    }
  }

  fill(chunk) {
    if (!chunk.spans) {
      chunk.spans = [];
      for (let cell = chunk.start; cell < chunk.stop; cell++) chunk.spans.push(this.makeCell(cell));
      chunk.node.replaceChildren(...chunk.spans);
      chunk.shown = null;
    }
    this.shade(chunk);
  }

  makeCell(cell) {
    const sample = this.sample;
    const token = sample.lastToken(cell);
    const text = sample.cellText(cell);
    const span = document.createElement("span");
    span.textContent = sample.isRun(cell) ? `${text} × ${number(sample.cellSize(cell))}` : text;
    span.base = `t t${sample.types[token]}${sample.isTrained(token) ? "" : " u"}`;
    if (sample.isRun(cell)) span.base += " run";
    if (text.trim() === "" && text.includes("\n")) span.base += " line";
    if (/^<\S*>$/.test(text)) span.base += " tag"; // in a line from right to left, too
    if (sample.ids[token] === sample.marker) span.base += " marker";
    span.className = span.base;
    span.cell = cell;
    return span;
  }

  /** Colour a chunk by what the query sees. */
  shade(chunk) {
    if (!chunk.spans || chunk.shown === this.row) return;
    const { sample, row } = this;
    for (const span of chunk.spans) {
      if (!row) span.className = span.base;
      else if (span.cell === this.query) span.className = `${span.base} query`;
      else if (span.cell > this.query) span.className = `${span.base} later`;
      else {
        let best = 0;
        for (let token = sample.firstToken[span.cell]; token < sample.firstToken[span.cell + 1]; token++) {
          best = Math.max(best, strength(row[token]));
        }
        span.className = `${span.base} ${best ? `s${Math.max(1, Math.round(8 * best))}` : "hidden"}`;
      }
    }
    chunk.shown = row;
  }

  /** Look through the eyes of a cell; null: of none. */
  look(cell, pin) {
    if (cell === this.query && pin === this.pinned) return;
    this.pinned = pin && cell !== null;
    if (cell !== this.query) {
      this.query = cell;
      const token = cell === null ? null : this.sample.lastToken(cell);
      this.row = cell === null ? null : this.sample.attention.biasRow(token);
      this.seen = cell === null ? null : new StillSeen(this.sample, token, this.row);
      for (const chunk of this.chunks) this.shade(chunk);
      this.showStates();
    }
    this.container.classList.toggle("seeing", cell !== null);
    this.events.onQuery(cell, this.pinned);
  }

  /** Mark messages and pictures before the query by what it still sees of them. */
  showStates() {
    for (const node of this.container.querySelectorAll("[data-state]")) delete node.dataset.state;
    for (const turn of this.sample.turns) turn.badge.textContent = "";
    if (!this.seen) return;
    for (const { turn, state, clear, total } of this.seen.messages) {
      turn.badge.textContent = state === "in part" ? `${number(clear)} of ${number(total)} in sight` : state;
      turn.badge.className = `state ${stateClass(state)}`;
      turn.badge.title = STATE_HINTS[state];
      turn.node.dataset.state = stateClass(state);
    }
    for (const { turn, k, state } of this.seen.media) turn.pictures[k].dataset.state = stateClass(state);
  }

  reveal(cell, block = "nearest") {
    const chunk = this.chunks.find((one) => one.start <= cell && cell < one.stop);
    if (!chunk) return;
    chunk.node.scrollIntoView({ block: "nearest" });
    this.fill(chunk);
    chunk.spans[cell - chunk.start].scrollIntoView({ block });
  }

  onHover(event) {
    if (event.target.cell === undefined) return;
    event.target.title = event.target.title || this.sample.describe(event.target.cell);
    if (this.pinned) return;
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.look(event.target.cell, false));
  }

  onClick(event) {
    const cell = event.target.cell;
    if (cell === undefined || String(getSelection())) return;
    cancelAnimationFrame(this.frame);
    if (this.pinned && cell === this.query) this.look(null, false);
    else this.look(cell, true);
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.sample || !this.sample.cells) return;
    const last = this.sample.cells - 1;
    const at = this.query === null ? -1 : this.query;
    const target = {
      ArrowRight: () => Math.min(at + 1, last),
      ArrowLeft: () => Math.max(at - 1, 0),
      ArrowDown: () => this.besideTurn(at, 1),
      ArrowUp: () => this.besideTurn(at, -1),
      Home: () => 0,
      End: () => last,
    }[event.key];
    if (target) {
      const cell = target();
      this.look(cell, true);
      this.reveal(cell);
    } else if (event.key === "Escape") this.look(null, false);
    else return;
    event.preventDefault();
  }

  besideTurn(cell, step) {
    const starts = this.sample.turns.filter((turn) => turn.stop > turn.start).map((turn) => this.sample.cellAt(turn.start));
    if (step > 0) return starts.find((start) => start > cell) ?? this.sample.cells - 1;
    return starts.reverse().find((start) => start < cell) ?? 0;
  }
}
