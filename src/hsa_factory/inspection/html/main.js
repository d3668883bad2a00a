"use strict";

/* Which sample is shown, the address bar, and the keys. */
const HSA = (() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const scripts = [...document.querySelectorAll("script.sample")];
  const samples = scripts.map(() => null);
  const page = {
    settings: read("settings"),
    names: scripts.map((script) => script.dataset.name),
    current: null,
    sample(place) {
      samples[place] = samples[place] || new Sample(JSON.parse(scripts[place].textContent), page.settings);
      return samples[place];
    },
  };
  page.images = read("images");
  page.overview = read("overview");
  return page;
})();

(() => {
  const get = (id) => document.getElementById(id);
  const panel = new TokenPanel(document);
  const still = new StillSeenPanel(document);
  const heat = new HeatMap(document, (token) => {
    const cell = sample.cellOf[token];
    conversation.look(cell, true);
    conversation.reveal(cell, "center");
  });
  const conversation = new Conversation(get("conversation"), HSA.images, { onQuery });
  const overview = new Overview(get("overview-view"), HSA.overview, new Map(HSA.names.map((name, place) => [name, place])));
  HSA.conversation = conversation;
  let sample = null;

  function onQuery(cell, pinned) {
    panel.show(sample, cell, pinned);
    still.show(sample, cell === null ? null : sample.lastToken(cell), conversation.seen);
    heat.mark(cell === null ? null : sample.lastToken(cell));
    if (pinned) history.replaceState(null, "", `${linkTo(sample.name)}&token=${sample.lastToken(cell)}`);
  }

  function route() {
    const target = new URLSearchParams(location.hash.slice(1));
    const place = target.has("sample") ? HSA.names.indexOf(target.get("sample")) : -1;
    const isSample = place >= 0;
    get("overview-view").hidden = isSample;
    get("sample-view").hidden = !isSample;
    get("to-overview").setAttribute("aria-current", String(!isSample));
    get("choice").value = isSample ? String(place) : "";
    HSA.current = isSample ? place : null;
    get("previous").disabled = isSample ? place === 0 : true;
    get("next").disabled = isSample ? place === HSA.names.length - 1 : !HSA.names.length;
    if (!isSample) {
      sample = null;
      overview.show();
      return;
    }
    const next = HSA.sample(place);
    if (next !== sample) {
      sample = next;
      scrollTo(0, 0);
      conversation.show(sample);
      describe();
      heat.show(sample);
      panel.show(sample, null, false);
      still.show(sample, null, null);
    }
    const token = Number(target.get("token"));
    if (target.has("token") && token < sample.length) {
      conversation.look(sample.cellOf[token], true);
      conversation.reveal(sample.cellOf[token], "center");
    }
  }

  function describe() {
    const counts = sample.countRange(0, sample.length);
    const cut = sample.parts.reduce((sum, part) => sum + part[4], 0);
    const words = [`${number(counts.total)} tokens`, `${percent(counts.trained / Math.max(counts.total, 1))} trained`];
    const [part] = sample.parts;
    if (sample.parts.length === 1 && part[1] !== sample.index) words.unshift(`sample ${part[1]} of its data set`);
    if (cut) words.push(`${number(cut)} cut away`);
    if (sample.parts.some((part) => part[5])) words.push("the feedback marker was cut away");
    get("sample-title").replaceChildren(element("b", "", `${sample.dataset} #${sample.name}`), ` ${words.join(" · ")}`, typeBar(counts.types), cutButton());
  }

  function cutButton() {
    if (!conversation.cutTexts.length) return "";
    const button = element("button", "", "show or hide what was cut away (c)");
    button.type = "button";
    button.id = "open-cut";
    button.addEventListener("click", () => conversation.toggleCut());
    return button;
  }

  function go(step) {
    const place = HSA.current === null ? (step > 0 ? 0 : -1) : HSA.current + step;
    if (place >= 0 && place < HSA.names.length) location.hash = linkTo(HSA.names[place]);
  }

  get("choice").append(...HSA.names.map((name, place) => {
    const option = element("option", "", `sample ${name}`);
    option.value = String(place);
    return option;
  }));
  get("choice").addEventListener("change", (event) => event.target.value && (location.hash = linkTo(HSA.names[event.target.value])));
  get("previous").addEventListener("click", () => go(-1));
  get("next").addEventListener("click", () => go(1));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input, summary")) return;
    const action = {
      "]": () => go(1),
      "[": () => go(-1),
      o: () => (location.hash = "#overview"),
      c: () => conversation.toggleCut(),
      "?": () => get("help").showModal(),
    }[event.key];
    if (action) {
      event.preventDefault();
      action();
    } else if (sample && event.target === document.body && /^(Arrow(Left|Right)|Escape)$/.test(event.key)) {
      get("conversation").focus({ preventScroll: true });
      conversation.onKey(event);
    }
  });
  get("ask").addEventListener("click", () => get("help").showModal());
  addEventListener("hashchange", route);
  const redraw = () => sample && (heat.draw(), panel.show(sample, conversation.query, false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(redraw, 150);
  });
  route();
})();
