"use strict";

/* Small things that every part of the page draws with. */
function element(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function number(value) {
  return value.toLocaleString("en-US");
}

function percent(share) {
  return `${(100 * share).toFixed(share && share < 0.1 ? 1 : 0)}%`;
}

/** A token's text with its white space made visible. */
function visible(text) {
  const shown = text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ +| +$/g, (spaces) => "·".repeat(spaces.length));
  return shown.length > 40 ? `${shown.slice(0, 40)}…` : shown;
}

function colourOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function typeColours() {
  return [0, 1, 2].map((kind) => colourOf(`--c${kind}`).match(/\d+/g).map(Number));
}

/** Fit a canvas to its place on the screen; sizes are in device pixels. */
function prepareCanvas(canvas) {
  const box = canvas.getBoundingClientRect();
  canvas.width = Math.max(1, Math.round(box.width * devicePixelRatio));
  canvas.height = Math.max(1, Math.round(box.height * devicePixelRatio));
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  return { context, width: canvas.width, height: canvas.height };
}

/** A bar with the shares of the three types. */
function typeBar(types) {
  const total = types.reduce((a, b) => a + b);
  const bar = element("span", "typebar");
  types.forEach((count, kind) => {
    if (!count) return;
    const part = element("i", `b${kind}`);
    part.style.flexGrow = count;
    part.title = `${HSA.settings.types[kind]}: ${number(count)} (${percent(count / total)})`;
    bar.append(part);
  });
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", types.map((count, kind) => `${HSA.settings.types[kind]} ${count}`).join(", "));
  return bar;
}

/**
 * A histogram whose bars are buttons.
 * @param {number[]} values One a row.
 * @param {function(number): string} label Of a bar's limits.
 * @param {function(number[], string)} onPick Called with the numbers of the rows in a bar and its label.
 */
function histogram(title, values, limits, label, onPick, style = "") {
  const bins = 24;
  const [low, high] = limits;
  const width = (high - low) / bins || 1;
  const rows = Array.from({ length: bins }, () => []);
  values.forEach((value, row) => rows[Math.min(bins - 1, Math.max(0, Math.floor((value - low) / width)))].push(row));
  const most = Math.max(1, ...rows.map((bin) => bin.length));
  const bars = element("div", "bars");
  rows.forEach((bin, place) => {
    const name = `${label(low + place * width)} – ${label(low + (place + 1) * width)}`;
    const bar = element("button", "bar", element("i", ""));
    bar.type = "button";
    bar.disabled = !bin.length;
    bar.title = `${name}: ${number(bin.length)}`;
    bar.setAttribute("aria-label", `${title} ${bar.title}`);
    bar.firstChild.style.height = bin.length ? `${Math.max(3, (100 * bin.length) / most)}%` : "0";
    bar.addEventListener("click", () => onPick(bin, `${title} ${name}`));
    bars.append(bar);
  });
  const axis = element("div", "axis", element("span", "", label(low)), element("span", "", label((low + high) / 2)), element("span", "", label(high)));
  return element("figure", `card chart ${style}`, element("figcaption", "", title), bars, axis);
}
